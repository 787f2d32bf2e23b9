"""The networks that KernelWarehouse's authors have published, by the names of their configurations.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

The number before the x is the budget: parameters of the assembled kernels against those of static ones.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn

from dyn.layers.warehouse_sharing import by_stage, share_kernels
from dyn.models.convnext import ConvNeXt
from dyn.models.mobilenet import MobileNetV2
from dyn.models.resnet import ResNet18, ResNet50

Path = tuple[str, ...]


def _share_resnet18(options: Mapping[str, Any], x: Any, **fields: Any) -> nn.Module:
    """Makes a ResNet-18 whose blocks and shortcuts share by stage."""
    return share_kernels(
        lambda conv: ResNet18(**fields, conv=conv, shortcut=conv),
        x,
        attention_norm="batch",
        **options,
    )


def _share_resnet50(options: Mapping[str, Any], x: Any, **fields: Any) -> nn.Module:
    """Makes a ResNet-50 whose stages share; layers that lead into the first one stay static."""

    def share(path: Path) -> str | None:
        first = path[-2:] in (("stage1_block1", "conv1"), ("stage1_block1", "downsample_conv"))
        return None if first else by_stage(path)

    return share_kernels(
        lambda conv: ResNet50(**fields, conv=conv, shortcut=conv),
        x,
        share=share,
        attention_norm="batch",
        **options,
    )


def _share_mobilenet(options: Mapping[str, Any], x: Any, **fields: Any) -> nn.Module:
    """Makes a MobileNetV2 whose depthwise and 1x1 convolutions share, each kind by stage.

    `options` are those of `share_kernels`, and `pointwise` for one warehouse of both 1x1 convolutions of a
    stage, and `static` for the stages whose 1x1 convolutions stay static; the classifier is assembled then.
    """
    options = dict(options)
    pointwise, static = options.pop("pointwise", False), options.pop("static", ())
    if not fields.get("num_classes"):  # no classifier, whose value is the last
        options |= {name: v[:-1] for name, v in options.items() if isinstance(v, tuple)}

    def share(path: Path) -> str | None:
        if path[-1] in ("stem_conv", "head"):
            return path[-1].removesuffix("_conv")
        stage, part = 6, "project"  # of the last convolution
        if match := re.fullmatch(r"stage(\d)_block(\d)", path[-2] if len(path) > 1 else ""):
            stage, block, part = int(match[1]), int(match[2]), path[-1]
            # A stage's first block shares with the stage before; the last two stages are one.
            stage = min(stage - (block == 1 and stage > 1), 6)
        if part == "depthwise":
            return f"stage{stage}_depthwise"
        if stage in static:
            return None
        return f"stage{stage}_{'pointwise' if pointwise else part}"

    def network(conv: Callable[..., nn.Module]) -> nn.Module:
        makes: dict[str, Any] = dict.fromkeys(("conv", "depthwise", "first_conv"), conv)
        if static:
            makes["dense"] = conv
        return MobileNetV2(**{**makes, **fields})

    return share_kernels(network, x, share=share, attention_norm="batch", **options)


def _share_convnext(options: Mapping[str, Any], x: Any, **fields: Any) -> nn.Module:
    """Makes a ConvNeXt whose depthwise and 1x1 convolutions share by stage; strided ones share with none."""

    def share(path: Path) -> str:
        stage, _, name = path[-2].partition("_") if len(path) > 1 else (path[-1], "", "")
        if name.startswith("block"):
            return f"{stage}_{'depthwise' if path[-1] == 'depthwise' else 'pointwise'}"
        return path[-1].removesuffix("_conv") if path[-1] == "stem_conv" else path[-1]

    return share_kernels(
        lambda conv: ConvNeXt(**fields, conv=conv, depthwise=conv, strided=conv),
        x,
        share=share,
        squeeze_bias=True,
        **options,
    )


def _halve(first: Sequence[float], classifier: float) -> tuple[float, ...]:
    """Returns the values of an option for the ten warehouses of a MobileNetV2 at a budget of 1/2."""
    return (*(1.0,) * 6, *first, classifier)


_HALF = {"cell_ratio": 1 / 2, "in_ratio": 1 / 2, "out_ratio": 1 / 2}
_HALF_MOBILENET = {
    "static": (1, 2, 3, 4, 5),
    "reduction": 1 / 32,
    # The stem and five depthwise ones; expanding, depthwise and projecting ones of stage 6; the classifier.
    "cell_ratio": _halve((0.5, 1, 0.5), 0.5),
    "in_ratio": _halve((0.5, 1, 0.5), 0.025),
    "out_ratio": _halve((0.5, 1, 0.5), 1),
}

KERNEL_WAREHOUSE: Mapping[str, Callable[..., nn.Module]] = {
    "kw1d4x_resnet18": partial(_share_resnet18, {**_HALF, "cell_ratio": 1 / 4}),
    "kw1d2x_resnet18": partial(_share_resnet18, _HALF),
    "kw1x_resnet18": partial(_share_resnet18, {}),
    "kw2x_resnet18": partial(_share_resnet18, {"cell_ratio": 2}),
    "kw4x_resnet18": partial(_share_resnet18, {"cell_ratio": 4}),
    "kw1d2x_resnet50": partial(_share_resnet50, {**_HALF, "basis_ratio": 1 / 16}),
    "kw1x_resnet50": partial(_share_resnet50, {}),
    "kw4x_resnet50": partial(_share_resnet50, {"cell_ratio": 4}),
    "kw1x_convnext_tiny": partial(_share_convnext, {}),
    "kw1d2x_mobilenetv2_100": partial(_share_mobilenet, _HALF_MOBILENET),
    "kw1x_mobilenetv2_100": partial(_share_mobilenet, {"pointwise": True}),
    "kw4x_mobilenetv2_100": partial(_share_mobilenet, {"cell_ratio": 4}),
    "kw1d2x_mobilenetv2_050": partial(_share_mobilenet, _HALF_MOBILENET, width=0.5),
    "kw1x_mobilenetv2_050": partial(_share_mobilenet, {"pointwise": True}, width=0.5),
    "kw4x_mobilenetv2_050": partial(_share_mobilenet, {"cell_ratio": 4}, width=0.5),
}
"""Makes a published network: `KERNEL_WAREHOUSE["kw1x_resnet18"](x, num_classes=1000)`.

`x` is the network's input or its shape, of which only the features matter. Other fields are the network's,
such as `dtype`. In training the blend falls from 1 to 0 over the first epochs: `dyn.schedules.linear_blend`.
"""
