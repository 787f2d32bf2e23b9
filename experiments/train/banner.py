"""Describes a run in rows for the terminal: what it is about to do, and its result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.data import Dataset
from experiments.train.optimizer import StepCounts

Rows = list[tuple[str, str]]


def describe_start(
    config: ConfigDict,
    dataset: Dataset,
    cost: Mapping[str, Any],
    workdir: Path,
    start_step: int,
    steps: StepCounts,
) -> Rows:
    """Returns the rows of the start-up table."""
    devices, hosts = jax.devices(), jax.process_count()
    rows = [("devices", f"{len(devices)} x {devices[0].device_kind}, {hosts} host(s)")]
    if hosts > 1:
        rows.append(("", "if a host is lost, the others end: start all of them again to continue"))
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    shape = "x".join(str(size) if size else "any" for size in dataset.shape)
    rows.append(("data", f"{sizes}; {len(dataset.classes)} classes; {shape}"))
    rows += [("", note) for note in dataset.notes]
    if dataset.skipped:
        rows.append(("skipped", f"{len(dataset.skipped):,}, with the reasons in skipped.csv"))
    fields = ", ".join(f"{key}={value}" for key, value in config.conv.items() if key != "name")
    layer = f"{config.conv.name}({fields})" if fields else config.conv.name
    size = f"{cost['parameters']:,} parameters, {cost['macs']:,} MACs per example"
    rows.append(("model", f"{describe_network(config)}, {layer}: {size}"))
    recipe = (
        f"{config.optimizer.name} at {config.optimizer.learning_rate:g}, batch {config.batch_size}"
    )
    length = f"{steps.total:,} steps, {steps.per_epoch} per epoch"
    rows.append(("recipe", f"{recipe}, {length}; augmentation {config.augment}; {config.dtype}"))
    if epochs := config.stages.head_epochs if "stages" in config else 0:
        rate = config.stages.learning_rate or config.optimizer.learning_rate
        rows.append(
            ("", f"the head alone for {epochs} epoch(s), then everything at {rate:g}")
            if steps.head_only
            else ("", "the head does not learn alone first: that needs --config.init_from")
        )
    rows.append(("workdir", str(workdir)))
    if start_step:
        rows.append(("continues", f"from step {start_step:,}"))
    return rows


def describe_network(config: ConfigDict) -> str:
    """Returns the name and size of the network that the convolutions are in."""
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
    if config.task != "segmentation" and config.model.hidden:
        network += f", a hidden layer of {config.model.hidden}"
    if config.task == "segmentation":
        network = f"{config.head.name} on {network}, output stride {config.model.output_stride}"
    if config.model.network == "resnet" and config.attention.name != "none":
        network += f", {config.attention.name}"
    return network


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that are one number each, without those that are one minus another."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if not name.endswith("_error")}


def describe_result(summary: Mapping[str, Any], workdir: Path) -> Rows:
    """Returns the result of a finished run, and where the rest lies."""
    test = ", ".join(
        f"{name} {value:.4f}" for name, value in scalar_metrics(summary["test"]).items()
    )
    best, metric = summary["best"], summary.get("metric", "accuracy")
    reached = f", validation {metric} {best[metric]:.4f}" if metric else ", the last one"
    return [
        ("test", test),
        ("best", f"step {best['step']:,}{reached}"),
        ("time", "{seconds:.0f} s, {compile_seconds:.0f} s of it compiling".format(**summary)),
        ("summary", str(workdir / "summary.json")),
        ("figures", str(workdir / "figures")),
    ]
