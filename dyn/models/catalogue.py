"""The published networks by name, and what their pictures are to look like.

`docs/weights.md` says whose weights fit which network.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers import (
    CBAM,
    CondConv,
    DCDConv,
    DCDDense,
    DynamicConv,
    EfficientChannelAttention,
    FDConv,
    ODConv,
    SqueezeExcite,
    share_kernels,
)
from dyn.models.classifier import Classifier
from dyn.models.convnext import ConvNeXt
from dyn.models.detection.condinst import CondInst
from dyn.models.detection.rcnn import FasterRCNN, MaskRCNN
from dyn.models.dymn import DyMN
from dyn.models.efficientnet import (
    TENSORFLOW,
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetLite0,
    make_condconv_fields,
)
from dyn.models.kernel_warehouse import KERNEL_WAREHOUSE
from dyn.models.mobilenet import MobileNetV2
from dyn.models.mobilenet_v3 import MobileNetV3
from dyn.models.named_parts import (
    find_named,
    find_warehouse,
    name_warehouse,
    resolve_field,
)
from dyn.models.preprocessing import Preprocessing
from dyn.models.rednet import RedNet26, RedNet38, RedNet50, RedNet101, RedNet152
from dyn.models.resnet import ResNet18, ResNet34, ResNet50, ResNet101
from dyn.models.segmentation import FCN, DeepLabV3Plus
from dyn.models.selective_resnet import (
    PooledConv,
    SKResNet18,
    SKResNet34,
    SKResNet50,
    SKResNeXt50,
)
from dyn.models.time_series import Net1, Net2
from dyn.models.vgg import VGG16

# Published dynamic networks have a batch norm in their attention.
_odconv1, _odconv4 = (partial(ODConv, num_kernels=k, attention_norm="batch") for k in (1, 4))
_dyconv4 = partial(DynamicConv, num_kernels=4)
_fdconv = partial(FDConv, attention_norm="batch")
# timm's 'd' variants.
_deep = {"stem": "deep", "shortcut": PooledConv}


def _make_dcd_mobilenet(reduction: float) -> partial:
    """Returns DCD's MobileNetV2: neither the first stage nor the last convolution is dynamic."""
    conv = partial(DCDConv, pool=None, reduction=reduction)
    return partial(MobileNetV2, conv=conv, dense=DCDDense, dynamic_stages=range(2, 8))


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet50d": partial(ResNet50, **_deep),
    "resnet18_odconv1x": partial(ResNet18, conv=_odconv1),
    "resnet18_odconv4x": partial(ResNet18, conv=_odconv4),
    "resnet50_odconv1x": partial(ResNet50, conv=_odconv1),
    "resnet50_odconv4x": partial(ResNet50, conv=_odconv4),
    "resnet101_odconv1x": partial(ResNet101, conv=_odconv1),
    "resnet101_odconv4x": partial(ResNet101, conv=_odconv4),
    "resnet18_dyconv4x": partial(ResNet18, conv=_dyconv4, shortcut=_dyconv4),
    "resnet18_condconv8x": partial(ResNet18, conv=partial(CondConv, num_kernels=8)),
    "resnet18_dcd": partial(ResNet18, conv=partial(DCDConv, pool=2), dense=DCDDense),
    "resnet50_dcd": partial(ResNet50, conv=partial(DCDConv, pool=1), dense=DCDDense),
    "resnet18_fdconv": partial(ResNet18, conv=_fdconv),
    "resnet50_fdconv": partial(ResNet50, conv=_fdconv),
    "resnet18_se": partial(ResNet18, attention=SqueezeExcite),
    "resnet18_cbam": partial(ResNet18, attention=CBAM),
    "seresnet50": partial(ResNet50, attention=partial(SqueezeExcite, min_squeeze=8)),
    "ecaresnet50d": partial(ResNet50, attention=EfficientChannelAttention, **_deep),
    "skresnet18": SKResNet18,
    "skresnet34": SKResNet34,
    "skresnet50": SKResNet50,
    "skresnet50d": partial(SKResNet50, **_deep),
    "skresnext50_32x4d": SKResNeXt50,
    "rednet26": RedNet26,
    "rednet38": RedNet38,
    "rednet50": RedNet50,
    "rednet101": RedNet101,
    "rednet152": RedNet152,
    "vgg16": VGG16,
    "vgg16_dcd": partial(VGG16, conv=partial(DCDConv, pool=1), dense=DCDDense),
    "convnext_tiny": ConvNeXt,
    "convnext_small": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3)),
    "convnext_base": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=128),
    "convnext_large": partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=192),
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_075": partial(MobileNetV2, width=0.75),
    "mobilenet_v2_050": partial(MobileNetV2, width=0.5),
    **{
        f"mobilenet_v2{suffix}_odconv{number}x": partial(
            MobileNetV2, conv=odconv, depthwise=odconv, width=width
        )
        for suffix, width in (("", 1.0), ("_075", 0.75), ("_050", 0.5))
        for number, odconv in ((1, _odconv1), (4, _odconv4))
    },
    # The authors' `fc16` and `fc8`.
    "mobilenet_v2_dcd": _make_dcd_mobilenet(reduction=1 / 16),
    "mobilenet_v2_dcd_fc8": _make_dcd_mobilenet(reduction=1 / 8),
    "mobilenet_v3_large": MobileNetV3,
    "efficientnet_b0": EfficientNetB0,
    "efficientnet_b1": EfficientNetB1,
    "efficientnet_lite0": EfficientNetLite0,
    "tf_efficientnet_b0": partial(EfficientNetB0, **TENSORFLOW),
    "tf_efficientnet_b1": partial(EfficientNetB1, **TENSORFLOW),
    "tf_efficientnet_cc_b0_4e": partial(EfficientNetB0, **make_condconv_fields(4), **TENSORFLOW),
    "tf_efficientnet_cc_b0_8e": partial(EfficientNetB0, **make_condconv_fields(8), **TENSORFLOW),
    "tf_efficientnet_cc_b1_8e": partial(EfficientNetB1, **make_condconv_fields(8), **TENSORFLOW),
    # For ImageNet (`im`) and AudioSet (`as`).
    **{
        f"dymn{number}{suffix}_{data}": partial(DyMN, width=width, num_classes=classes, **fields)
        for number, width in (("04", 0.4), ("10", 1.0), ("20", 2.0))
        for suffix, fields in (("", {}), ("_replace_se", {"dynamic_blocks": "replace_se"}))
        for data, classes in (("im", 1000), ("as", 527))
    },
    **KERNEL_WAREHOUSE,
    # For series.
    "net1": Net1,
    "net2": Net2,
}
"""Makes each network that the papers and their authors' code describe, by name."""

# Networks over the features of another one, their `backbone`.
_HEADS: Mapping[str, Callable[..., nn.Module]] = {
    "classifier": Classifier,
    "fcn": FCN,
    "deeplabv3plus": DeepLabV3Plus,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "cond_inst": CondInst,
}

_bicubic = Preprocessing(resize=256, interpolation="bicubic")
_halves = {"mean": (0.5,), "std": (0.5,), "interpolation": "bicubic"}
# Exceptions to ImageNet's usual preprocessing: timm's networks, EfficientNets and ConvNeXts.
_PREPROCESSING: Mapping[str, Preprocessing | None] = {
    "efficientnet_lite0": Preprocessing((127 / 255,), (128 / 255,), resize=256),
    "efficientnet_b1": Preprocessing(size=256, resize=256, interpolation="bicubic"),
    "tf_efficientnet_b1": Preprocessing(size=240, resize=272, interpolation="bicubic"),
    "tf_efficientnet_cc_b0_4e": Preprocessing(resize=256, **_halves),
    "tf_efficientnet_cc_b0_8e": Preprocessing(resize=256, **_halves),
    "tf_efficientnet_cc_b1_8e": Preprocessing(size=240, resize=272, **_halves),
    **dict.fromkeys(("efficientnet_b0", "tf_efficientnet_b0", "seresnet50"), _bicubic),
    **dict.fromkeys(("resnet50d", "ecaresnet50d", "kw1x_convnext_tiny"), _bicubic),
    **{name: _bicubic for name in NETWORKS if name.startswith(("skresne", "convnext_"))},
    # Spectrograms and series.
    **{name: None for name in NETWORKS if name.startswith(("dymn", "net"))},
}


def list_models(pattern: str = "*") -> list[str]:
    """Lists the names of the networks that `create_model` makes.

    Args:
        pattern: those whose names match, with `*` for any characters.

    Example:
        >>> from dyn.models import list_models
        >>> list_models("resnet*odconv*")[:3]
        ['resnet18_odconv1x', 'resnet18_odconv4x', 'resnet50_odconv1x']
    """
    return fnmatch.filter(NETWORKS, pattern)


def create_model(
    name: str, *, features_only: bool = False, channels: int = 3, **fields: Any
) -> nn.Module:
    """Makes a network by its name.

    Args:
        name: one of `list_models()`. `'classifier'`, `'fcn'`, `'deeplabv3plus'`, `'faster_rcnn'`,
            `'mask_rcnn'` and `'cond_inst'` are networks over another one, which their field `backbone`
            describes: `{"name": "resnet18", "width": 32}`.
        features_only: whether the network returns its features after each stage, for dense prediction,
            instead of logits: the same as `num_classes=None`. `list_features` has their sizes.
        channels: features of the input. Only networks whose first layer shares its kernels depend on it.
        fields: fields of the network that differ from the published ones. `num_classes=0` is for the inputs
            of the classifier. Fields that make layers take a function, or its name among `CONVOLUTIONS` and
            the like with the fields of the layer: `conv={"name": "odconv", "num_kernels": 4}`. All
            `{"name": "warehouse"}` of a network share their kernels by stage.

    Raises:
        ValueError: for an unknown name, of a network or a layer, or a negative `num_classes`.

    Example:
        >>> from dyn.models import create_model
        >>> net = create_model("resnet18_odconv4x", num_classes=10, stem="small", width=16)
        >>> type(net).__name__, net.num_classes
        ('ResNet', 10)
    """
    if features_only:
        fields["num_classes"] = None
    backbone = fields.get("backbone")
    described = {**backbone, **fields} if isinstance(backbone, Mapping) else fields
    axes = described.get("spatial_axes", 1 if name in ("net1", "net2") else 2)
    # Kernels do not depend on the sizes of the inputs. Series are long enough for all poolings.
    sizes = (1024,) if axes == 1 else (32,) * axes
    example = jax.ShapeDtypeStruct((1, *sizes, channels), jnp.float32)
    options = find_warehouse(fields)
    if options is None:
        return _make(name, fields, None, example)

    def build(conv: Callable[..., nn.Module]) -> nn.Module:
        return _make(name, fields, conv, example)

    return share_kernels(build, example, share=name_warehouse, **options)


def _make(
    name: str,
    fields: Mapping[str, Any],
    shared: Callable[..., nn.Module] | None,
    example: jax.ShapeDtypeStruct,
) -> nn.Module:
    """Makes a network of described fields; `shared` is the convolution that has warehouses."""
    make = find_named({**NETWORKS, **_HEADS}, name, "the network")
    if name in KERNEL_WAREHOUSE:
        make = partial(make, example)
    num_classes = getattr(make, "keywords", {}).get("num_classes", 1000)
    wanted = fields.get("num_classes")
    if isinstance(wanted, int) and wanted < 0:
        raise ValueError(
            f"num_classes={wanted} is negative: write the number of classes, 0 for the inputs of the "
            "classifier, or None for the features of the stages."
        )
    return make(**{"num_classes": num_classes, **_resolve(fields, shared)})


def _resolve(fields: Mapping[str, Any], shared: Callable[..., nn.Module] | None) -> dict[str, Any]:
    """Returns the fields of a network, with functions for the layers and the backbone that they describe."""
    resolved = {field: resolve_field(field, value, shared) for field, value in fields.items()}
    backbone = fields.get("backbone")
    if isinstance(backbone, Mapping):
        inner = _resolve(backbone, shared)
        table = {n: make for n, make in NETWORKS.items() if n not in KERNEL_WAREHOUSE}
        make = find_named(table, inner.pop("name", None), "backbone: the network")
        resolved["backbone"] = partial(make, **{"num_classes": None, **inner})
    return resolved


def find_preprocessing(name: str) -> Preprocessing | None:
    """Returns what the pictures of a published network are to look like; None for other inputs.

    It is the evaluation of torchvision, or of timm for the networks that have timm's names: weights that were
    trained otherwise need `dataclasses.replace(preprocessing, ...)`.

    Example:
        >>> from dyn.models import find_preprocessing
        >>> find_preprocessing("tf_efficientnet_cc_b0_4e").mean
        (0.5,)
    """
    find_named(NETWORKS, name, "the network")
    return _PREPROCESSING.get(name, Preprocessing(resize=256))


class StageFeatures(NamedTuple):
    """The features of a stage.

    Attributes:
        features: their number at each position.
        stride: pixels of the input from one position to the next.
    """

    features: int
    stride: int


def list_features(network: nn.Module, shape: Sequence[int] = (1, 64, 64, 3)) -> list[StageFeatures]:
    """Returns number and stride of the features after each stage, of a network with `features_only`.

    Nothing is computed.

    Args:
        network: a network that returns the features of its stages.
        shape: of an input.

    Raises:
        ValueError: if the network returns something else.

    Example:
        >>> from dyn.models import create_model, list_features
        >>> net = create_model("resnet18_odconv4x", features_only=True)
        >>> [(stage.features, stage.stride) for stage in list_features(net)]
        [(64, 4), (128, 8), (256, 16), (512, 32)]
    """
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    features, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
    if not isinstance(features, tuple):
        raise ValueError(
            "the network returns no features of its stages: make it with features_only=True."
        )
    return [StageFeatures(y.shape[-1], round(x.shape[1] / y.shape[1])) for y in features]
