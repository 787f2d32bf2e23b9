"""Writes `torch_references_kernels.json`: as `torch_references.py`, for networks that assemble kernels.

    python tests/dyn/torch_references_kernels.py

They are those of KernelWarehouse's and FDConv's authors, and ConvNeXt. KernelWarehouse's are made of static
networks, whose convolutions are replaced; the name of a layer's warehouse follows from its own name.
"""

import math
import re
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch_references import (
    CLASSES,
    WIDTH,
    MobileNet,
    ResNet,
    compute_references,
    plain,
    pooled,
    write_references,
)


def convolve_each(x, kernels, conv):
    """Convolves each picture with a kernel of its own, and with the geometry of `conv`."""
    geometry = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
    samples = zip(x, kernels, strict=True)
    return torch.cat([functional.conv2d(one[None], kernel, **geometry) for one, kernel in samples])


# KernelWarehouse


class CellAttention(nn.Module):
    """Weights of all cells in each block of a kernel, `[B, blocks, cells]`."""

    def __init__(self, inputs, blocks, cells, start, options):
        super().__init__()
        norm = nn.LayerNorm if options["squeeze_bias"] else nn.BatchNorm1d
        hidden = max(int(inputs * options["reduction"]), 16)
        self.blocks, self.start, self.basis_ratio = blocks, start, options["basis_ratio"]
        self.fc1 = nn.Linear(inputs, hidden, bias=options["squeeze_bias"])
        self.norm1 = norm(hidden)
        if self.basis_ratio == 1:
            self.fc2 = nn.Linear(hidden, blocks * (cells + 1))
            return
        self.own = int(options["cells"] * blocks)
        others = cells - self.own
        basis = max(int(others * self.basis_ratio), 16)
        self.fc2 = nn.Linear(hidden, blocks * (self.own + basis + 1), bias=False)
        self.fc3 = nn.Linear(basis, others, bias=False)
        self.basis_bias = nn.Parameter(torch.empty(blocks * (cells + 1)))

    def forward(self, context):
        z = functional.relu(self.norm1(self.fc1(context)))
        q = self.fc2(z).unflatten(1, (self.blocks, -1))
        if self.basis_ratio < 1:
            own, others, zero = q[..., : self.own], self.fc3(q[..., self.own : -1]), q[..., -1:]
            q = [others[..., : self.start], own, others[..., self.start :], zero]
            q = torch.cat(q, -1) + self.basis_bias.view(self.blocks, -1)
        return (q / (q.abs().sum(-1, keepdim=True) + 0.001))[..., :-1]


class AssembledConv(nn.Module):
    """Has the geometry of a convolution or a linear layer, and a kernel made of a warehouse's cells."""

    def __init__(self, static, cells, start, options):
        super().__init__()
        shape = (*static.weight.shape, 1, 1)[:4]
        self.shape, self.cells = shape, [cells]  # in a list, because the layer does not own them
        self.stride, self.padding = getattr(static, "stride", 1), getattr(static, "padding", 0)
        self.groups = getattr(static, "groups", 1)
        if static.bias is not None:
            self.bias = nn.Parameter(torch.empty(shape[0]))
        self.counts = (shape[2] * shape[3], shape[0] // cells.shape[1], shape[1] // cells.shape[2])
        inputs, blocks = shape[1] * self.groups, math.prod(self.counts)
        self.attention = CellAttention(inputs, blocks, len(cells), start, options)

    def forward(self, x):
        # Blocks are counted position by position, then along the outputs, then along the inputs.
        mix = self.attention(pooled(x)).unflatten(1, self.counts)
        cells = self.cells[0].flatten(2)
        kernels = torch.einsum("btoin,nuv->bouivt", mix, cells).reshape(len(x), *self.shape)
        y = convolve_each(x, kernels, self)
        return y + self.bias[:, None, None] if hasattr(self, "bias") else y


class AssembledLinear(nn.Module):
    """Holds its convolution as `conv`, as the authors' does."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x[:, :, None, None])[:, :, 0, 0]


class Manager(nn.Module):
    """Holds the cells of all warehouses."""

    def __init__(self, shapes):
        super().__init__()
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)


OPTIONS = {
    "cells": 1,
    "inside": 1,
    "outside": 1,
    "reduction": 1 / 16,
    "basis_ratio": 1,
    "squeeze_bias": False,
}


def assemble(net, warehouse_of, **options):
    """Replaces the layers of a static network for whose path `warehouse_of` returns a warehouse's name."""
    plan = {}
    for path, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear) and (name := warehouse_of(path)):
            plan.setdefault(name, []).append((path, layer))
    shapes, all_options = [], []
    for number, members in enumerate(plan.values()):
        own = OPTIONS | options
        own = {key: v[number] if isinstance(v, tuple) else v for key, v in own.items()}
        kernels = [layer.weight.shape for _, layer in members]
        outputs = max(1, int(math.gcd(*(shape[0] for shape in kernels)) * own["outside"]))
        inputs = max(1, int(math.gcd(*(shape[1] for shape in kernels)) * own["inside"]))
        blocks = sum(shape.numel() // (outputs * inputs) for shape in kernels)
        cells = max(1, int(blocks * own["cells"]))
        taps = (1,) * (len(kernels[0]) - 2) or (1,)
        shapes.append((cells, outputs, inputs, *taps))
        all_options.append(own)
    manager = Manager(shapes)
    for members, cells, own in zip(plan.values(), manager.weights, all_options, strict=True):
        start = 0
        for path, layer in members:
            made = AssembledConv(layer, cells, start, own)
            start += count_taken(math.prod(made.counts), own["cells"])
            linear = isinstance(layer, nn.Linear)
            parent, _, leaf = path.rpartition(".")
            setattr(net.get_submodule(parent), leaf, AssembledLinear(made) if linear else made)
        assert start == len(cells)
    net.warehouse_manager = manager
    return net


def count_taken(blocks, ratio):
    """Returns how many cells blocks start with: floor(ratio) each, or below one a share of them."""
    if ratio >= 1:
        return blocks * int(ratio)
    every = int(1 / ratio)
    return sum(block % every == block // every % every for block in range(blocks))


def find_resnet_stage(path, wide):
    """Names a layer's warehouse after its stage; what leads into a stage belongs to the one before."""
    match = re.fullmatch(r"layer(\d)\.(\d)\.(conv\d|downsample\.0)", path)
    if match is None:
        return None
    stage, enters = int(match[1]), match[2] == "0" and match[3] in ("conv1", "downsample.0")
    if stage == 1 and enters and wide:
        return None
    return f"stage{max(stage - enters, 1)}"


def make_warehouse_resnet(sizes, wide=False, **options):
    return assemble(ResNet(sizes, wide=wide), partial(find_resnet_stage, wide=wide), **options)


# The group of each block of a MobileNetV2, in order.
GROUPS = [g for g, number in enumerate((1, 2, 3, 4, 3, 3, 1)) for _ in range(number)]


def find_mobilenet_warehouse(path, shared, static_stages):
    """Names a layer's warehouse after its stage and kind; groups 6 and 7 of blocks are one stage."""
    if path == "features.0.0":
        return "stem"
    if path.startswith("classifier"):
        return "classifier" if static_stages else None
    kind, stage = "project", 6
    if path != "features.18.0":
        _, index, _, *place = path.split(".")
        block = int(index) - 1
        stages = [min(group + 1, 6) for group in GROUPS]
        enters = block > 0 and stages[block] != stages[block - 1]
        stage = stages[block] - enters
        kinds = ["expand", "depthwise", "project"][block == 0 :]
        kind = kinds[int(place[0])]
    if kind == "depthwise":
        return f"stage{stage} depthwise"
    return None if stage in static_stages else f"stage{stage} {'both' if shared else kind}"


def make_warehouse_mobilenet(shared=False, static_stages=(), **options):
    net = MobileNet()
    if not static_stages:
        net.classifier = net.classifier[1]  # dropout is before it
    find = partial(find_mobilenet_warehouse, shared=shared, static_stages=static_stages)
    return assemble(net, find, **options)


def find_convnext_warehouse(path):
    if match := re.fullmatch(r"stages\.(\d)\.\d\.(dw|pw)conv\d?", path):
        return f"stage{match[1]} {match[2]}"
    return path if path.startswith("downsample_layers") else None


def make_warehouse_convnext(sizes):
    return assemble(ConvNeXt(sizes, convs=True), find_convnext_warehouse, squeeze_bias=True)


# ConvNeXt


class FeatureNorm(nn.LayerNorm):
    """A norm over the features of `[B, C, H, W]`."""

    def __init__(self, features):
        super().__init__(features, 1e-6)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """Its 1x1 convolutions are linear layers or, with `convs`, convolutions."""

    def __init__(self, features, convs):
        super().__init__()
        self.convs = convs
        self.gamma = nn.Parameter(torch.empty((1, features, 1, 1) if convs else features))
        self.dwconv = nn.Conv2d(features, features, 7, padding=3, groups=features)
        self.norm = FeatureNorm(features)
        pointwise = partial(nn.Conv2d, kernel_size=1) if convs else nn.Linear
        self.pwconv1 = pointwise(features, 4 * features)
        self.pwconv2 = pointwise(4 * features, features)

    def forward(self, x):
        y = self.norm(self.dwconv(x))
        y = y if self.convs else y.movedim(1, -1)
        y = self.pwconv2(functional.gelu(self.pwconv1(y)))
        y = y if self.convs else y.movedim(-1, 1)
        return x + self.gamma.view(-1, 1, 1) * y


class ConvNeXt(nn.Module):
    def __init__(self, sizes, convs=False):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4), FeatureNorm(WIDTH))
        self.downsample_layers = nn.ModuleList([stem])
        widths = [WIDTH * 2**stage for stage in range(len(sizes))]
        for before, features in pairwise(widths):
            halve = nn.Sequential(FeatureNorm(before), nn.Conv2d(before, features, 2, 2))
            self.downsample_layers.append(halve)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(features, convs) for _ in range(number)))
            for features, number in zip(widths, sizes, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], 1e-6)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x):
        for halve, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(halve(x))
        return self.head(self.norm(pooled(x)))


# FDConv


class StarReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def forward(self, x):
        return self.scale * functional.relu(x) ** 2 + self.bias


class GlobalAttention(nn.Module):
    def __init__(self, inputs, outputs, size, kernels):
        super().__init__()
        hidden = max(inputs // 16, 16)
        self.fc = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = StarReLU()
        heads = {"channel": inputs, "filter": outputs, "spatial": size * size, "kernel": kernels}
        self.heads = [name for name, number in heads.items() if number > 1]
        for name in self.heads:
            self.add_module(f"{name}_fc", nn.Conv2d(hidden, heads[name], 1))

    def forward(self, mean):
        z = self.relu(self.bn(self.fc(mean[:, :, None, None])))
        return {
            name: 2 * self.get_submodule(f"{name}_fc")(z)[:, :, 0, 0].sigmoid()
            for name in self.heads
        }


class LocalAttention(nn.Module):
    def __init__(self, inputs, outputs, size):
        super().__init__()
        near = 2 * (round(math.log2(inputs) / 2 + 0.5) // 2) + 1
        self.norm, self.shape = nn.LayerNorm(inputs), (outputs, size, size, inputs)
        self.conv = nn.Conv1d(1, outputs * size * size, near, padding=near // 2, bias=False)

    def forward(self, mean):
        logits = self.conv(self.norm(mean)[:, None]).unflatten(1, self.shape[:3])
        return 2 * logits.movedim(-1, 2).sigmoid()  # [B, O, I, k, k]


def frequencies(rows, columns):
    """The frequencies of the rows and the columns of a real picture's transform, in float32."""
    return torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)[None]


class Bands(nn.Module):
    """Weights the octaves of a picture at each position."""

    def __init__(self, inputs):
        super().__init__()
        maps = (nn.Conv2d(inputs, 1, 3, padding=1) for _ in range(3))
        self.freq_weight_conv_list = nn.ModuleList(maps)

    def forward(self, x):
        height, width = x.shape[2:]
        spectrum, y, before = torch.fft.rfft2(x), 0, x
        rows, columns = (f.abs() for f in frequencies(64, 64))
        size = height, width // 2 + 1
        for conv, divisor in zip(self.freq_weight_conv_list, (2, 4, 8), strict=True):
            inside = (torch.maximum(rows, columns) < 0.5 / divisor + 1e-8)[None, None]
            mask = functional.interpolate(inside.float(), size, mode="nearest")
            low = torch.fft.irfft2(spectrum * mask, s=(height, width))
            y = y + 2 * conv(x).sigmoid() * (before - low)
            before = low
        return y + before


class FrequencyConv(nn.Module):
    def __init__(self, inputs, outputs, size, stride=1, kernels=32):
        super().__init__()
        self.inputs, self.outputs, self.size = inputs, outputs, size
        self.stride, self.padding, self.groups, self.kernels = stride, size // 2, 1, kernels
        rows, columns = outputs * size, inputs * size
        self.dft_weight = nn.Parameter(torch.empty(1, rows, columns // 2 + 1, 2))
        self.KSM_Global = GlobalAttention(inputs, outputs, size, kernels)
        self.KSM_Local = LocalAttention(inputs, outputs, size)
        self.FBM = Bands(inputs) if size == 3 else None
        f, g = frequencies(rows, columns)
        radius = torch.stack(torch.broadcast_tensors(f, g), -1).norm(dim=-1).flatten()
        # The authors' torch kept the order of equal ones; later ones need to be asked.
        order = radius.sort(stable=True).indices
        group = torch.empty(len(order), dtype=torch.long)
        group[order] = torch.arange(len(order)) // (len(order) // kernels)
        assert len(order) % kernels == 0
        self.group = group.view(rows, -1)

    def forward(self, x):
        mean = pooled(x)
        weights, size = self.KSM_Global(mean), self.size
        # The sum over groups has one weight for each, twice a sigmoid over K, times K.
        factor = min(self.inputs, self.outputs) // 2 * weights["kernel"][:, self.group]
        spectrum = torch.view_as_complex(self.dft_weight[0]) * factor
        kernels = torch.fft.irfft2(spectrum).view(-1, self.outputs, size, self.inputs, size)
        kernels = kernels.transpose(2, 3) * self.KSM_Local(mean)
        kernels = kernels * weights["channel"][:, None, :, None, None]
        kernels = kernels * weights["filter"][:, :, None, None, None]
        if size > 1:
            kernels = kernels * weights["spatial"].view(-1, 1, 1, size, size)
        return convolve_each(x if self.FBM is None else self.FBM(x), kernels, self)


def frequency_conv(inputs, outputs, size, stride=1):
    make = FrequencyConv if min(inputs, outputs) > 16 else plain
    return make(inputs, outputs, size, stride)


HALF_MOBILENET = {
    "static_stages": (1, 2, 3, 4, 5),
    "reduction": 1 / 32,
    "cells": (1, 1, 1, 1, 1, 1, 0.5, 1, 0.5, 0.5),
    "inside": (1, 1, 1, 1, 1, 1, 0.5, 1, 0.5, 0.025),
    "outside": (1, 1, 1, 1, 1, 1, 0.5, 1, 0.5, 1),
}
HALF_RESNET = {"cells": 0.5, "inside": 0.5, "outside": 0.5, "basis_ratio": 1 / 16}

NETWORKS = {
    "kw1x_resnet18": partial(make_warehouse_resnet, (2, 2)),
    "kw4x_resnet18": partial(make_warehouse_resnet, (1, 1), cells=4),
    "kw1d2x_resnet50": partial(make_warehouse_resnet, (2, 2), wide=True, **HALF_RESNET),
    "kw1x_mobilenetv2_100": partial(make_warehouse_mobilenet, shared=True),
    "kw1d2x_mobilenetv2_100": partial(make_warehouse_mobilenet, **HALF_MOBILENET),
    "kw1x_convnext_tiny": partial(make_warehouse_convnext, (2, 1, 1)),
    "convnext": partial(ConvNeXt, (2, 1, 1)),
    "fdconv50": partial(ResNet, (1, 2), frequency_conv, wide=True, width=16),
}


if __name__ == "__main__":
    write_references(__file__, compute_references(NETWORKS))
