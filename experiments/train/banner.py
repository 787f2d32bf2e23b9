"""Says what a run is about to do, and what came out, in rows for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.data import Dataset
from experiments.train.optimizer import Lengths


def start_rows(
    config: ConfigDict,
    dataset: Dataset,
    cost: Mapping[str, Any],
    workdir: Path,
    start_step: int,
    lengths: Lengths,
) -> list[tuple[str, str]]:
    """The facts a person wants to see before a run starts."""
    kinds = [device.device_kind for device in jax.devices()]
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    layer = ", ".join(f"{key}={value}" for key, value in config.conv.items() if key != "name")
    shape = "x".join(str(n) if n else "any" for n in dataset.shape)
    rows = [
        ("devices", f"{len(kinds)} x {kinds[0]}, {jax.process_count()} host(s)"),
        ("data", f"{sizes}; {len(dataset.classes)} classes; {shape}"),
        *(("", note) for note in dataset.notes),
    ]
    if dataset.skipped:
        rows.append(("", f"{len(dataset.skipped)} files skipped, listed in skipped.csv"))
    rows += [
        (
            "model",
            f"{_network(config)}, {config.conv.name}{f'({layer})' if layer else ''}: "
            f"{cost['parameters']:,} parameters, {cost['macs']:,} MACs an example",
        ),
        (
            "recipe",
            f"{config.optimizer.name} at {config.optimizer.learning_rate:g}, batch "
            f"{config.batch_size}, {lengths.total:,} steps, {lengths.epoch} an epoch; augmentation "
            f"{config.augment}; {config.dtype}",
        ),
        *(("", said) for said in _stages(config, lengths)),
        ("workdir", str(workdir)),
    ]
    if start_step:
        rows.append(("continues", f"from step {start_step:,}"))
    return rows


def _stages(config: ConfigDict, lengths: Lengths) -> list[str]:
    """Whether the head learns alone first, where that was asked for."""
    epochs = config.stages.head_epochs
    if not epochs:
        return []
    if not lengths.head:
        return [
            "the head does not learn alone first: without --config.init_from there is no trained network"
        ]
    rate = config.stages.learning_rate or config.optimizer.learning_rate
    return [f"the head alone for {epochs} epoch(s), then everything at {rate:g}"]


def _network(config: ConfigDict) -> str:
    """What the convolutions are in."""
    if config.task == "acgan":
        return f"ACGAN, widths {'-'.join(map(str, config.gan.widths))}"
    if config.task == "reconstruction":
        widths = "-".join(map(str, config.autoencoder.widths))
        return f"autoencoder {widths}, {config.autoencoder.pooling} pooling"
    match config.model.network:
        case "resnet":
            network = f"ResNet-{config.model.depth}, width {config.model.width}"
        case "vgg16":
            network = f"VGG-16, width {config.model.width}"
        case "mobilenet_v2":
            network = f"MobileNetV2, {config.model.width / 64:g} times as wide as published"
        case series:
            return f"{series}, {config.series.features} features"
    if config.model.hidden:
        network += f", a hidden layer of {config.model.hidden}"
    if config.task == "segmentation":
        network = f"{config.head.name} on {network}, output stride {config.model.output_stride}"
    if config.attention.name != "none":
        network += f", {config.attention.name}"
    return network


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics to show: those that are one number each, without what only is one minus another."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not name.endswith("_error")
    }


def result_rows(summary: Mapping[str, Any], workdir: Path) -> list[tuple[str, str]]:
    """The result of a finished run, and where to find the rest."""
    test = ", ".join(f"{name} {value:.4f}" for name, value in numbers(summary["test"]).items())
    best, metric = summary["best"], summary.get("metric", "accuracy")
    reached = f", validation {metric} {best[metric]:.4f}" if metric else ", the last one"
    return [
        ("test", test),
        ("best", f"step {best['step']:,}{reached}"),
        ("time", f"{summary['seconds']:.0f} s, {summary['compile_seconds']:.0f} s of it compiling"),
        ("summary", str(workdir / "summary.json")),
        ("figures", str(workdir / "figures")),
    ]
