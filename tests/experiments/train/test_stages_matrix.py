"""A head that learns alone first, and then with everything, in one run."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from small_runs import assert_same_run, interrupted_before, rows, small

from experiments import data
from experiments.configs import base
from experiments.data import pipeline
from experiments.runs.weights import write_weights
from experiments.tasks import classification, make_task
from experiments.train.initialise import initialise_from, read_trained_weights
from experiments.train.loop import train
from experiments.train.optimizer import count_steps
from experiments.train.program import compile_program
from experiments.train.sharding import shardings_of

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]


def config_of(start, **changes):
    """Eight steps, of which the head has the first four alone."""
    settings = {
        "stages.head_epochs": 1,
        "stages.learning_rate": 1e-2,
        "optimizer.weight_decay": 0.1,
        "init_from": str(start),
    }
    return small(base, **settings | changes)


def dynamic(config):
    """Adds attention with running averages."""
    config.conv = {"name": "dyconv", "num_kernels": 2, "attention_norm": "batch"}
    return config


@pytest.fixture(scope="module")
def start(compiled_once, tmp_path_factory):
    """Returns a function that writes a file of a network of other classes."""

    def write(hidden, attention=True):
        config = config_of("", **{"model.hidden": hidden})
        config = dynamic(config) if attention else config
        model = make_task(config).make_model(7, spatial_axes=2)
        x = np.zeros((1, 8, 8, 1), np.float32)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf: np.abs(0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes
        )
        path = tmp_path_factory.mktemp("start") / "start.safetensors"
        write_weights(path, variables, {"config": {}, "classes": [], "shape": []})
        return path

    return write


def flat(state):
    tree = {"params": state.params, "batch_stats": state.batch_stats}
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@pytest.mark.parametrize(
    ("hidden", "head"),
    [
        pytest.param(0, {"params/head"}, id="a network's own head"),
        pytest.param(4, {"params/head", "params/hidden"}, id="a hidden layer"),
    ],
)
def test_the_head_alone_changes_before_the_boundary_and_everything_after_it(start, hidden, head):
    config = dynamic(config_of(start(hidden), **{"model.hidden": hidden}))
    dataset = data.load(config.data, config.seed)
    task, examples = make_task(config), dataset.splits["train"]
    transform = task.make_transform(train=True)
    train_example = transform(examples[0], np.random.default_rng(0))
    eval_example = task.make_transform(train=False)(examples[0])
    steps = count_steps(config, len(examples))
    assert (steps.head_only, steps.total) == (4, 8)
    program = compile_program(config, task, 10, steps, train_example, eval_example)
    trained = read_trained_weights(config, 10, eval_example["inputs"])
    state, words = initialise_from(
        program.create_state(0), trained, config, 10, eval_example["inputs"]
    )
    state = jax.device_put(state, shardings_of(program.state_shape))
    assert "new (other classes): head/bias (10,), head/kernel" in words
    begun, moved, rates = flat(state), [], []
    batches = pipeline.train_batches(examples, transform, batch_size=config.batch_size, seed=0)
    for _ in range(6):
        before = flat(state)
        state, metrics = program.train_step(state, program.shard_batch(next(batches)))
        after = flat(state)
        moved.append({name for name in after if not np.array_equal(before[name], after[name])})
        rates.append(float(metrics["learning_rate"]))
    batches.close()
    of_head = {name for name in begun if name.rpartition("/")[0] in head}
    assert moved[:4] == [of_head] * 4
    assert rates[:5] == pytest.approx([config.optimizer.learning_rate] * 4 + [1e-2])
    # A bias may have no gradient by chance: ReLUs are silent in so small a network.
    below = {name for name in begun if name not in of_head}
    still = below - moved[4] - moved[5]
    assert len(still) < 0.1 * len(below)
    assert not {name for name in still if name.startswith("batch_stats")}


def test_a_run_interrupted_on_either_side_of_the_boundary_continues_bit_for_bit(
    start, tmp_path, monkeypatch, capsys
):
    # The maps of reports take as long to compile as everything else, and have tests of their own.
    monkeypatch.setattr(classification, "save_maps", lambda *_: None)
    config, programs = config_of(start(0, attention=False)), {}
    train(config, tmp_path / "whole", programs)
    assert "the head alone for 1 epoch(s), then everything at 0.01" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in rows(tmp_path / "whole") if row["split"] == "train"]
    assert rates[3] == pytest.approx(3e-3) and rates[4] == pytest.approx(1e-2)

    for step in (3, 7):
        with interrupted_before(step):
            train(config, tmp_path / "run", programs)
    train(config, tmp_path / "run", programs)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
