"""Prunes a trained network of `GatedConv` by its gates, and compares it with the original."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from matplotlib.ticker import MaxNLocator

from dyn.diagnostics import count_macs, count_parameters, sown_weights
from dyn.layers.gated_conv import gate_report, prune_kernels
from experiments.core import files
from experiments.core.console import print_line, print_result
from experiments.core.errors import UserError
from experiments.core.timing import compute_ratio, time_alternately
from experiments.data import Source
from experiments.figures.style import PALETTE, new_figure, save_figure, style_axes
from experiments.inference.trained import Trained, check_network
from experiments.runs import weights
from experiments.runs.data_record import reload_data

HEADER = ("layer", "kernels", "never", "always", "left")


class Layer(NamedTuple):
    """The kernels of a layer: all of them, those that are never and always on, and how many are left."""

    name: str
    kernels: int
    never: int
    always: int
    left: int


def prune_network(
    trained: Trained, out: str = "", *, batch_size: int = 0, runs: int = 20, overwrite: bool = False
) -> None:
    """Prunes a network, measures it, and writes it with tables and a figure to a folder.

    Args:
        trained: a classifier with gates for whole kernels.
        out: the folder; '' for `pruned` in that of the run.
        batch_size: examples at once; 0 for those of the run.
        runs: timed pairs of batches.
        overwrite: whether an earlier result may be replaced.

    Raises:
        UserError: if the network has no such gates, or the folder cannot be used.
    """
    home = trained.source.parent if trained.source.suffix == weights.SUFFIX else trained.source
    folder = Path(out).expanduser() if out else home / "pruned"
    _check_arguments(trained, folder, runs, overwrite)
    size = batch_size or trained.config.batch_size
    dataset, warning = reload_data(
        trained.config, trained.classes, trained.source, ["train", "validation", "test"]
    )
    if warning:
        print_line(f"warning: {warning}", error=True)
    seen = [dataset.splits[name] for name in ("train", "validation") if name in dataset.splits]
    gates = collect_gates(trained, seen, size)
    pruned, layers = remove_kernels(trained, gates)
    measured = compare(trained, pruned, dataset.splits["test"], size, runs)

    folder.mkdir(parents=True, exist_ok=True)
    weights.write_weights(folder / weights.MODEL, pruned.variables, pruned.make_metadata())
    files.write_json(
        folder / "prune.json", measured | {"layers": [one._asdict() for one in layers]}
    )
    files.write_csv(folder / "prune.csv", HEADER, layers)
    draw_layers(layers, folder / "prune.png")
    before, after = measured["before"], measured["after"]
    rows = [
        ("kernels", f"{sum(one.kernels for one in layers)} to {sum(one.left for one in layers)}"),
        *((name, f"{before[name]:,} to {after[name]:,}") for name in ("parameters", "macs")),
        ("accuracy", f"{before['accuracy']:.4f} to {after['accuracy']:.4f} on test"),
        ("probabilities", f"differ by {measured['difference']:.1e} at most on test"),
        ("a batch", f"takes {measured['time_ratio']:.2f} times as long"),
        ("folder", str(folder)),
    ]
    print_result("pruned", rows)


def _check_arguments(trained: Trained, folder: Path, runs: int, overwrite: bool) -> None:
    """Raises a UserError for a network, a folder or a number that cannot be used."""
    config = trained.config
    if config.task != "classification" or config.conv.name != "gated":
        raise UserError(
            f"{trained.source} is no classifier with gates: give a run of hard.py, for example."
        )
    if config.conv.get("granularity", "kernel") != "kernel":
        raise UserError(
            f"{trained.source} has gates for each {config.conv.granularity}; only whole kernels can be "
            "removed."
        )
    if config.conv.get("pruned", False):
        raise UserError(f"{trained.source} is pruned already.")
    if runs < 1:
        raise UserError(f"--runs={runs}: choose 1 or more.")
    weights.check_new_folder(folder, overwrite)


def collect_gates(trained: Trained, sources: Sequence[Source], size: int) -> dict[str, np.ndarray]:
    """Returns the gates of each layer for all examples, `[N, K]`."""

    @jax.jit
    def run(variables: Any, inputs: np.ndarray) -> dict[str, jax.Array]:
        _, state = trained.model.apply(variables, inputs, train=False, mutable=["intermediates"])
        sown = sown_weights(state["intermediates"])
        return {name: kinds["kernel"] for name, kinds in sown.items() if "kernel" in kinds}

    gates: dict[str, list[np.ndarray]] = {}
    for source in sources:
        for inputs, number in _read_batches(trained, source, size):
            for name, values in jax.device_get(run(trained.variables, inputs)).items():
                gates.setdefault(name, []).append(values[:number])
    return {name: np.concatenate(values) for name, values in gates.items()}


def _read_batches(trained: Trained, source: Source, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the inputs of batches of one size, filled up with zeros, and how many are examples."""
    for start in range(0, len(source), size):
        examples = [
            trained.transform(source[n]["inputs"])["inputs"]
            for n in range(start, min(start + size, len(source)))
        ]
        inputs = np.zeros((size, *trained.shape), np.float32)
        inputs[: len(examples)] = examples
        yield inputs, len(examples)


def remove_kernels(
    trained: Trained, gates: Mapping[str, np.ndarray]
) -> tuple[Trained, list[Layer]]:
    """Returns the network with fewer kernels, and what became of those of each layer."""
    merge = (
        trained.config.conv.get("active") is None
    )  # with it, the number of kernels that are on is fixed
    flat = traverse_util.flatten_dict(dict(trained.variables))
    layers = []
    for name, values in gates.items():
        path = ("params", *name.split("/"))
        old = _subtree(flat, path)
        new = prune_kernels(old, values, merge=merge)
        report = gate_report(values)
        never, always = (int(np.sum(report[kind])) for kind in ("always_off", "always_on"))
        layers.append(Layer(name, values.shape[1], never, always, len(new["kernel"])))
        # Without gates, their temperature and statistics go as well.
        for collection in trained.variables:
            own = (collection, *path[1:])
            if collection == "params" or "attention" not in new:
                flat = {other: leaf for other, leaf in flat.items() if other[: len(own)] != own}
        flat |= {(*path, *below): leaf for below, leaf in traverse_util.flatten_dict(new).items()}
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.conv.pruned = True
    variables = {name: {} for name in trained.variables} | traverse_util.unflatten_dict(flat)
    pruned = Trained(config, trained.classes, trained.shape, variables, trained.source)
    check_network(pruned)
    return pruned, layers


def _subtree(flat: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(
        {other[len(path) :]: leaf for other, leaf in flat.items() if other[: len(path)] == path}
    )


def compare(
    before: Trained, after: Trained, source: Source, size: int, runs: int
) -> dict[str, Any]:
    """Measures two networks on the same examples, and their time in turns."""
    labels = np.array([int(source[n]["label"]) for n in range(len(source))])
    examples = [(n, before.transform(source[n]["inputs"])) for n in range(len(source))]
    facts, predicted, steps = {}, {}, {}
    batch, _ = next(_read_batches(before, source, size))
    for name, trained in {"before": before, "after": after}.items():
        predicted[name] = np.stack([found for _, found in trained.predict(examples, size)])
        one = jax.ShapeDtypeStruct((1, *trained.shape), np.float32)
        apply = partial(trained.model.apply, train=False)
        facts[name] = {
            "parameters": count_parameters(trained.variables["params"]),
            "macs": count_macs(apply, trained.variables, one),
            "accuracy": float(np.mean(predicted[name].argmax(axis=-1) == labels)),
        }
        compiled = jax.jit(apply).lower(trained.variables, batch).compile()
        variables = jax.device_put(trained.variables)
        steps[name] = partial(_run, compiled, variables, batch)
    seconds = time_alternately(steps, runs)
    for name, values in seconds.items():
        facts[name]["batch_seconds"] = statistics.median(values)
    return {
        **facts,
        "difference": float(np.abs(predicted["after"] - predicted["before"]).max()),
        "time_ratio": compute_ratio(seconds["after"], seconds["before"]),
        "batch_size": size,
        "examples": len(labels),
    }


def _run(compiled: Any, variables: Any, batch: np.ndarray) -> None:
    jax.block_until_ready(compiled(variables, batch))


def draw_layers(layers: Sequence[Layer], path: Path) -> None:
    """Draws how many kernels of each layer are never on, always on, or chosen by the input."""
    figure = new_figure(
        8,
        1.5 + 0.28 * len(layers),
        "Kernels and their gates",
        "On training and validation examples.",
    )
    axes = figure.add_subplot()
    places, left = np.arange(len(layers)), np.zeros(len(layers))
    parts = {
        "chosen by the input": [one.kernels - one.never - one.always for one in layers],
        "always on, added up": [one.always for one in layers],
        "never on, removed": [one.never for one in layers],
    }
    for (label, numbers), colour in zip(
        parts.items(), (PALETTE[0], PALETTE[1], "#dddddd"), strict=True
    ):
        axes.barh(places, numbers, left=left, color=colour, label=label)
        left += numbers
    axes.set_yticks(places, [one.name for one in layers])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    style_axes(axes, "kernels")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 1.0 + 1.2 / (len(layers) + 2)),
        ncols=3,
        fontsize=8.5,
    )
    save_figure(figure, path)
