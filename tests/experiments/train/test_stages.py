"""A head that learns alone first, and then with everything: in one run, which continues where it stopped."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from small_runs import assert_same_run, rows, small

from experiments import data
from experiments.configs import base
from experiments.core.errors import UserError
from experiments.data import pipeline
from experiments.runs import artifacts as maps
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.weights import write_weights
from experiments.tasks import make_task
from experiments.train import loop as loop
from experiments.train.initialise import start_from_run
from experiments.train.loop import find_program, train
from experiments.train.optimizer import make_lengths
from experiments.train.validate import refuse_unused, validate

pytestmark = pytest.mark.usefixtures("compiled_once")


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
    """With attention that has running averages of its own."""
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
        pytest.param(0, {"params/head"}, marks=pytest.mark.long, id="a network's own head"),
        pytest.param(4, {"params/head", "params/hidden"}, id="a hidden layer"),
    ],
)
def test_before_the_boundary_the_head_alone_changes_and_behind_it_everything(start, hidden, head):
    config = dynamic(config_of(start(hidden), **{"model.hidden": hidden}))
    dataset = data.load(config.data, config.seed)
    transform = {train: make_task(config).make_transform(train) for train in (True, False)}
    lengths = make_lengths(config, len(dataset.splits["train"]))
    assert (lengths.head, lengths.total) == (4, 8)
    program = find_program({}, config, make_task(config), dataset, lengths, transform)
    inputs = transform[False](dataset.splits["train"][0])["inputs"]
    new = program.create(0)
    state, words = start_from_run(
        new, config, make_task(config), 10, inputs, program.shape.step.sharding
    )
    assert "new (other classes): head/bias (10,), head/kernel" in words
    begun, moved, rates = flat(state), [], []
    batches = pipeline.train_batches(
        dataset.splits["train"], transform[True], batch_size=config.batch_size, seed=0
    )
    for _ in range(6):
        before = flat(state)
        state, metrics = program.train_step(state, program.put(next(batches)))
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


class Interrupted(Exception):
    """Stands for anything that ends a run in the middle."""


def test_a_run_that_is_stopped_on_either_side_of_the_boundary_is_the_uninterrupted_one(
    start, tmp_path, monkeypatch, capsys
):
    # What is kept for reports takes as long to compile as all else, and has tests of its own.
    monkeypatch.setattr(maps, "save_maps", lambda *_: None)
    # Nor is compiled anew what is the same for all: other tests continue in other processes.
    config, programs = config_of(start(0, attention=False)), {}
    train(config, tmp_path / "whole", programs)
    assert "the head alone for 1 epoch(s), then everything at 0.01" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in rows(tmp_path / "whole") if row["split"] == "train"]
    assert rates[3] == pytest.approx(3e-3) and rates[4] == pytest.approx(1e-2)

    managers, real, begun = [], loop.pipeline.train_batches, []

    class Recorded(Checkpoints):
        def __init__(self, *args):
            super().__init__(*args)
            managers.append(self)

    def stop_before(last):
        def batches(*args, start_step, **fields):
            begun.append(start_step)
            for step, batch in enumerate(real(*args, start_step=start_step, **fields), start_step):
                if step == last:
                    raise Interrupted
                yield batch

        return batches

    monkeypatch.setattr(loop, "Checkpoints", Recorded)
    for last in (3, 7):
        monkeypatch.setattr(loop.pipeline, "train_batches", stop_before(last))
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run", programs)
        managers.pop().close()
    monkeypatch.setattr(loop.pipeline, "train_batches", stop_before(None))
    train(config, tmp_path / "run", programs)
    assert begun == [0, 3, 6]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_stages_are_refused_where_they_would_do_nothing():
    config = config_of("")
    validate(config)
    with pytest.raises(
        UserError, match=r"stages\.head_epochs would do nothing: it is for --config\.i"
    ):
        refuse_unused(config, ["stages.head_epochs"])
    config = config_of("somewhere", **{"stages.head_epochs": 0})
    with pytest.raises(
        UserError, match=r"learning_rate would do nothing: it is for --config\.stages"
    ):
        refuse_unused(config, ["stages.learning_rate"])
    config = config_of("somewhere", **{"model.network": "net1"})
    with pytest.raises(UserError, match="a head can learn alone in a classification by a resnet"):
        validate(config)
