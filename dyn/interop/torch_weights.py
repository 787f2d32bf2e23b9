"""Weights that torch has trained, in the networks here.

The networks are those of `dyn.models`, whose padding, strides, epsilon and layers are those of torchvision
and timm (a bottleneck strides in its 3x3 convolution, as in both). What a source calls its
layers is a table of regular expressions; `from_torch` takes any other one for other networks. There is no
table for networks that are not here: timm's published CondConv networks are EfficientNets, and of them
only the layers' layout is known (`CONDCONV`); its 'd' variants of a ResNet have another stem and shortcut.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Table = Sequence[tuple[str, str]]
"""Rows of a regular expression for a torch module's name and the path of the same layer here.

A path may hold `{name}` for a named group of the expression, `{next_name}` for the number after it, as torch
counts blocks from 0, and `*`, which stands for all layers that fit.
"""

_BLOCK, _OURS = r"layer(?P<stage>\d)\.(?P<block>\d+)\.", "stage{stage}_block{next_block}/"

TORCHVISION: Table = (
    (r"conv1", "stem_conv"),
    (r"bn1", "stem_norm"),
    (_BLOCK + r"conv(?P<n>\d)", _OURS + "conv{n}"),
    (_BLOCK + r"bn(?P<n>\d)", _OURS + "norm{n}"),
    (_BLOCK + r"downsample\.0", _OURS + "downsample_conv"),
    (_BLOCK + r"downsample\.1", _OURS + "downsample_norm"),
    # timm's SE-ResNets: `partial(SqueezeExcite, min_squeeze=8)` behind the blocks.
    (_BLOCK + r"se\.fc1", _OURS + "attention/reduce"),
    (_BLOCK + r"se\.fc2", _OURS + "attention/expand"),
    (r"fc", "head"),
)
"""torchvision's ResNets, and timm's of the same names: `resnet18`, `resnet34`, `resnet50`, `seresnet50`."""

ODCONV: Table = (
    *TORCHVISION,
    (_BLOCK + r"conv(?P<n>\d)\.attention\.fc", _OURS + "conv{n}/attention/squeeze"),
    (_BLOCK + r"conv(?P<n>\d)\.attention\.bn", _OURS + "conv{n}/attention/norm"),
    (
        _BLOCK + r"conv(?P<n>\d)\.attention\.(?P<head>channel|filter|spatial|kernel)_fc",
        _OURS + "conv{n}/attention/{head}",
    ),
)
"""The ResNets of ODConv's authors (OSVAI/ODConv): `ResNet18(conv=partial(ODConv, num_kernels=4))`."""

CONDCONV: Table = (*TORCHVISION, (_BLOCK + r"routing_fn", _OURS + "conv*/routing"))
"""timm's `CondConv2d`, with flattened experts, and its block's `routing_fn`, in a ResNet's blocks.

Here each convolution of a block has a routing of its own; with `context="block"` they all look at the
block's input, and begin alike.
"""


def _dcd(module: str, path: str, static: str, prefix: str = "") -> Table:
    """The rows of a layer that DCD's authors have made dynamic."""
    return (
        (module + static, path),
        (rf"{module}{prefix}q", f"{path}/compress"),
        (rf"{module}{prefix}p", f"{path}/expand"),
        (rf"{module}bn1", f"{path}/compress_norm"),
        (rf"{module}bn2", f"{path}/latent_norm"),
        (rf"{module}fc\.0", f"{path}/attention/squeeze"),
        (rf"{module}fc\.1\.fc\.0", f"{path}/attention/excite"),
        (rf"{module}fc_phi", f"{path}/attention/latent"),
        (rf"{module}fc_scale", f"{path}/attention/filter"),
    )


DCD: Table = (
    *TORCHVISION,
    *_dcd(_BLOCK + r"conv(?P<n>\d)\.", _OURS + "conv{n}", "conv"),
    *_dcd(r"classifier\.\d\.", "head", "cls", "cls_"),
)
"""The ResNets of DCD's authors (liyunsheng13/dcd): `ResNet18(conv=DCDConv, dense=DCDDense)`.

In ResNet-50 it is `partial(DCDConv, pool=1)`.
"""


def _vgg(stage_sizes: Sequence[int]) -> Table:
    """The rows of a VGG, whose layers torch counts through: a convolution and its ReLU, a pooling a stage."""
    rows, index = [], 0
    for stage, convs in enumerate(stage_sizes, 1):
        for conv in range(1, convs + 1):
            path = f"stage{stage}_conv{conv}" if index else "stem_conv"
            rows.append((rf"features\.{index}", path))
            index += 2
        index += 1
    ends = ((0, "hidden1"), (3, "hidden2"), (6, "head"))
    return (*rows, *((rf"classifier\.{index}", path) for index, path in ends))


VGG16: Table = _vgg((2, 2, 3, 3, 3))
"""torchvision's `vgg16`."""


def _mobilenet(blocks: Sequence[int]) -> Table:
    """The rows of a MobileNetV2 with so many blocks in each stage; the first block of all does not expand."""
    rows = [(r"features\.0\.0", "stem_conv"), (r"features\.0\.1", "stem_norm")]
    paths = [f"stage{stage}_block{n + 1}/" for stage, of in enumerate(blocks, 1) for n in range(of)]
    for index, path in enumerate(paths, 1):
        place = rf"features\.{index}\.conv\."
        parts = ("expand", "depthwise") if index > 1 else ("depthwise",)
        for n, part in enumerate(parts):
            rows += [(rf"{place}{n}\.0", path + part), (rf"{place}{n}\.1", f"{path}{part}_norm")]
        n = len(parts)
        rows += [(f"{place}{n}", f"{path}project"), (f"{place}{n + 1}", f"{path}project_norm")]
    last = rf"features\.{len(paths) + 1}\."
    return (*rows, (f"{last}0", "last_conv"), (f"{last}1", "last_norm"), (r"classifier\.1", "head"))


MOBILENET_V2: Table = _mobilenet((1, 2, 3, 4, 3, 3, 1))
"""torchvision's `mobilenet_v2`."""

SOURCES: Mapping[str, Table] = {
    "torchvision": TORCHVISION,
    "odconv": ODCONV,
    "condconv": CONDCONV,
    "dcd": DCD,
    "vgg16": VGG16,
    "mobilenet_v2": MOBILENET_V2,
}

# What torch calls the arrays of a module, and what they are called here: of a layer, or of a norm.
_LEAVES = {
    "weight": (("params", "kernel"), ("params", "scale")),
    "bias": (("params", "bias"),),
    "running_mean": (("batch_stats", "mean"),),
    "running_var": (("batch_stats", "var"),),
}


class Imported(NamedTuple):
    """A network with the weights of another.

    Attributes:
        variables: the network's.
        left_out: names of weights that were not taken: torch's counts of batches, and what `without` says.
        kept: paths of parameters that stayed as they were, because of `without`.
    """

    variables: dict[str, Any]
    left_out: tuple[str, ...]
    kept: tuple[str, ...]


def from_torch(
    variables: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    names: Table | None = None,
    *,
    without: Sequence[str] = (),
) -> Imported:
    """Gives a network the weights of a torch network that computes the same.

    For a dynamic network out of a static one's weights, fill its static twin, and start from that:

        weights = read_weights("resnet18.safetensors")
        twin = jax.eval_shape(ResNet18(num_classes=1000).init, key, x)
        variables = warm_start(variables, from_torch(twin, weights).variables, key=key)

    Layouts are turned (O, I, height, width to height, width, I, O; candidates in front; timm's experts
    unfolded; 1x1 convolutions made linear layers where they are such here), and dtypes become the network's.

    Args:
        variables: of the network, arrays or their shapes.
        weights: torch's names and arrays, as `read_weights` gives them. A `module.` in front of all names
            (of a network that was trained on several devices) is passed over.
        names: which layer is which, one of `SOURCES` or of your own; None for the one of `SOURCES` that
            knows the most names.
        without: paths of layers that keep what they have, such as `("head",)` for other classes.

    Returns:
        An `Imported`: the variables, and what was not taken and not given.

    Raises:
        ValueError: if any name has no place or another shape, or any parameter gets nothing; all are named.

    Example:
        >>> import jax, numpy as np
        >>> from dyn.interop import from_torch
        >>> from dyn.models import BasicBlock, ResNet
        >>> norm = ("weight", "bias", "running_mean", "running_var")
        >>> weights = {f"bn1.{name}": np.ones(4) for name in norm}
        >>> weights |= {"conv1.weight": np.ones((4, 3, 7, 7)), "bn1.num_batches_tracked": np.ones(())}
        >>> weights |= {"fc.weight": np.ones((1000, 4)), "fc.bias": np.zeros(1000)}
        >>> net = ResNet((), BasicBlock, num_classes=10, width=4)
        >>> variables = net.init(jax.random.key(0), np.ones((1, 32, 32, 3), np.float32))
        >>> _, left_out, kept = from_torch(variables, weights, without=("head",))
        >>> left_out, kept
        (('bn1.num_batches_tracked', 'fc.weight', 'fc.bias'), ('params/head/bias', 'params/head/kernel'))
    """
    table = SOURCES[source_of(weights)] if names is None else names
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    mine = {
        path: leaf for path, leaf in flat.items() if path.startswith(("params/", "batch_stats/"))
    }
    kept = sorted(path for path in mine if _below(path.partition("/")[2], without))
    filled: dict[str, Any] = {}
    left_out, nowhere, misshapen = [], [], []
    for name, layer, leaf, value in _layers(weights, table):
        if leaf == "num_batches_tracked" or (layer and _below(layer, without)):
            left_out.append(name)
            continue
        targets = [
            path
            for collection, ours in _LEAVES.get(leaf, ())
            for path in fnmatch.filter(mine, f"{collection}/{layer}/{ours}")
        ]
        if not targets:
            nowhere.append(f"{name} {value.shape}")
        for path in targets:
            array = _ours(value, path, tuple(mine[path].shape))
            if array is None:
                misshapen.append(f"{name} {value.shape} for {path} {tuple(mine[path].shape)}")
                array = value
            filled[path] = jnp.asarray(array, mine[path].dtype)
    nothing = [
        f"{path} {tuple(leaf.shape)}"
        for path, leaf in mine.items()
        if path not in filled and path not in kept
    ]
    problems = {
        "of another shape": misshapen,
        "without a place in the network": nowhere,
        "parameters that get nothing": nothing,
    }
    if any(problems.values()):
        raise ValueError(
            "the weights do not fit the network: "
            + "; ".join(
                f"{len(found)} {words}: {', '.join(found)}"
                for words, found in problems.items()
                if found
            )
            + "."
        )
    started = traverse_util.unflatten_dict({**flat, **filled}, sep="/")
    return Imported(started, tuple(left_out), tuple(kept))


def source_of(weights: Iterable[str]) -> str:
    """The name in `SOURCES` of the table that knows the most of these names; the first of equals."""

    named = dict.fromkeys(weights)

    def known(source: str) -> int:
        return sum(layer is not None for _, layer, _, _ in _layers(named, SOURCES[source]))

    return max(SOURCES, key=known)


def num_classes(weights: Mapping[str, np.ndarray]) -> int | None:
    """How many classes the weights' head tells apart; None where they have no head."""
    for _, layer, leaf, value in _layers(weights, SOURCES[source_of(weights)]):
        if (layer, leaf) == ("head", "bias"):
            return len(value)
    return None


def _layers(weights: Mapping[str, Any], table: Table) -> Iterator[tuple[str, str | None, str, Any]]:
    """Of each weight its name, its layer's path here (None for none), torch's word for it, and itself."""
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""
    for name, value in weights.items():
        layer, _, leaf = name.removeprefix(prefix).rpartition(".")
        matches = ((re.fullmatch(pattern, layer), path) for pattern, path in table)
        yield (
            name,
            next((_path(found, path) for found, path in matches if found), None),
            leaf,
            value,
        )


def _path(found: re.Match[str], path: str) -> str:
    """The path of a row of a table, with the names found put in."""
    groups = found.groupdict()
    counted = {f"next_{name}": int(text) + 1 for name, text in groups.items() if text.isdigit()}
    return path.format(**groups, **counted)


def _ours(value: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A torch array in the layout of ours, of a shape; None if it cannot have that."""
    if path.endswith("/kernel"):
        value = _linear(value) if len(shape) == 2 else _kernel(value, shape)
    return value if value.shape == shape else None


def _linear(value: np.ndarray) -> np.ndarray:
    """`[O, I]`, or `[O, I, 1, 1]` of a convolution that is used as one, to `[I, O]`."""
    return value.reshape(value.shape[:2]).T if value.shape[2:] in ((), (1, 1)) else value


def _kernel(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`[O, I, *k]` to `[*k, I, O]`, and so for K candidates or one, flattened as timm has them or not."""
    if len(shape) not in (4, 5):
        return value
    *candidates, height, width, i, o = shape
    theirs = (*candidates, o, i, height, width)
    if value.shape in ((*candidates, o * i * height * width), theirs[-4:]) and candidates:
        value = value.reshape(theirs) if value.size == np.prod(shape) else value
    return np.moveaxis(value, (-4, -3), (-1, -2)) if value.ndim == len(shape) else value


def _below(path: str, layers: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{layer}/") for layer in layers)
