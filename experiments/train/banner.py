"""Describes a run in rows for the terminal: what it is about to do, and its result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.core.words import count_noun
from experiments.data import Dataset
from experiments.runs.metrics import count_classes, select_scalars
from experiments.train.optimizer import StepCounts, find_rate_of_all

Rows = list[tuple[str, str]]
# The names of the networks whose width is a factor.
MOBILE_NAMES = {
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3-Large",
    "dymn": "DyMN",
    "efficientnet_b0": "EfficientNet-B0",
    "efficientnet_b1": "EfficientNet-B1",
    "efficientnet_lite0": "EfficientNet-Lite0",
}


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
    rows = [("devices", f"{len(devices)} x {devices[0].device_kind}, {count_noun(hosts, 'host')}")]
    if hosts > 1:
        rows.append(("", "if a host is lost, the others end: start all of them again to continue"))
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    classes = count_noun(len(dataset.classes), "class", "classes")
    shape = describe_shape(dataset.shape, config.get("image_size", 0))
    rows.append(("data", f"{sizes}; {classes}; {shape}"))
    rows += [("", note) for note in dataset.notes]
    if skipped := len(dataset.skipped) + len(dataset.incomplete):
        rows.append(("skipped", f"{skipped:,}, with the reasons in skipped.csv"))
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
        rate = find_rate_of_all(config, steps)
        rows.append(
            ("", f"the head alone for {count_noun(epochs, 'epoch')}, then everything at {rate:g}")
            if steps.head_only
            else ("", "the head does not learn alone first: that needs --config.init_from")
        )
    rows.append(("workdir", str(workdir)))
    if start_step:
        rows.append(("continues", f"from step {start_step:,}"))
    return rows


def describe_shape(shape: Sequence[int], image_size: int) -> str:
    """Describes the shape of an example, where sizes of 0 differ between pictures."""
    whole = "x".join(map(str, shape))
    if not all(shape):
        whole = f"pictures of different sizes, {count_noun(shape[-1], 'channel')}"
    if not image_size or tuple(shape[:-1]) == (image_size, image_size):
        return whole
    return f"{whole}, resized to {image_size}x{image_size}"


def describe_network(config: ConfigDict) -> str:
    """Returns the name and size of the network that the convolutions are in."""
    if config.task == "acgan":
        return f"ACGAN, widths {'-'.join(map(str, config.gan.widths))}"
    if config.task == "reconstruction":
        widths = "-".join(map(str, config.autoencoder.widths))
        return f"autoencoder {widths}, {config.autoencoder.pooling} pooling"
    if config.task == "event_detection":
        widths = "-".join(map(str, config.events.features))
        return f"CRNN {widths}, recurrent {config.events.recurrent}"
    match config.model.network:
        case "resnet":
            network = f"ResNet-{config.model.depth}, width {config.model.width}"
        case "vgg16":
            network = f"VGG-16, width {config.model.width}"
        case name if name in MOBILE_NAMES:
            network = (
                f"{MOBILE_NAMES[name]}, {config.model.width / 64:g} times as wide as published"
            )
            if most := config.model.get("max_blocks"):
                network += f", blocks of a stage: {most}"
        case series:
            return f"{series}, {config.series.features} features"
    if config.model.get("hidden"):
        network += f", a hidden layer of {config.model.hidden}"
    if config.task == "segmentation":
        network = f"{config.head.name} on {network}, output stride {config.model.output_stride}"
    if config.task == "instance_segmentation":
        detector = config.detector
        network = f"{detector.name} ({detector.size}) on {network}, {detector.norm} norms"
    if config.model.network == "resnet" and config.attention.name != "none":
        network += f", {config.attention.name}"
    return network


def describe_test(summary: Mapping[str, Any]) -> str:
    """Returns the test metrics of a finished run in one line."""
    metrics = select_scalars(summary["test"], count_classes(summary))
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def describe_result(summary: Mapping[str, Any], workdir: Path) -> Rows:
    """Returns the result of a finished run, and where the rest lies."""
    best, metric = summary["best"], summary.get("metric", "accuracy")
    reached = ", the last one" if metric is None else ""
    if isinstance(value := best.get(metric), int | float):
        reached = f", validation {metric} {value:.4f}"
    times = [("time", f"{seconds:.0f} s")] if (seconds := summary.get("seconds")) else []
    if seconds and (compiling := summary.get("compile_seconds")):
        times = [("time", f"{seconds:.0f} s, {compiling:.0f} s of it compiling")]
    return [
        ("test", describe_test(summary)),
        ("best", f"step {best['step']:,}{reached}"),
        *times,
        ("summary", str(workdir / "summary.json")),
        ("figures", str(workdir / "figures")),
    ]
