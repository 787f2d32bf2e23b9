"""Writes `torch_references_mobile.json`: torch's logits of mobile networks and of selective kernels.

    python tests/dyn/torch_references_mobile.py

It needs torch; the tests need the file alone. The networks are written here from their formulas, with the
names and shapes of timm, torchvision, EfficientAT and the authors of ODConv and DCD.
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch_numbers import contrasting_pictures, scale_statistics, weight
from torch_references import (
    CLASSES,
    DecomposedLinear,
    Latent,
    OmniAttention,
    pooled,
    write_references,
)


def rounded(features, multiple=8):
    """The nearest multiple, at most a tenth below."""
    nearest = max(multiple, int(features + multiple / 2) // multiple * multiple)
    return nearest + multiple if nearest < 0.9 * features else nearest


class Sliding(nn.Module):
    """The sizes of a convolution; slides a kernel of its own over each picture."""

    def __init__(self, inputs, outputs, size=1, stride=1, groups=1, same=False):
        super().__init__()
        self.shape = (outputs, inputs // groups, size, size)
        self.stride, self.groups, self.same = stride, groups, same

    def slide(self, x, kernels):
        pads, size = [], self.shape[-1]
        for length in (x.shape[3], x.shape[2]):
            if self.same:
                outputs = math.ceil(length / self.stride)
                total = max((outputs - 1) * self.stride + size - length, 0)
                pads += [total // 2, total - total // 2]
            else:
                pads += [size // 2, size // 2]
        x = functional.pad(x, pads)
        one = partial(functional.conv2d, stride=self.stride, groups=self.groups)
        return torch.cat([one(x[n : n + 1], kernel) for n, kernel in enumerate(kernels)])


class StaticConv(Sliding):
    def __init__(self, *sizes, **fields):
        super().__init__(*sizes, **fields)
        self.weight = nn.Parameter(torch.empty(self.shape))

    def forward(self, x):
        return self.slide(x, self.weight.expand(len(x), *self.shape))


class ExpertConv(Sliding):
    """timm's: every expert's kernel is one row."""

    def __init__(self, *sizes, **fields):
        super().__init__(*sizes, **fields)
        self.weight = nn.Parameter(torch.empty(4, math.prod(self.shape)))

    def forward(self, x, routing):
        return self.slide(x, (routing @ self.weight).view(-1, *self.shape))


class ContextConv(Sliding):
    """EfficientAT's: a softmax of the block's context mixes four rows."""

    def __init__(self, inputs, outputs, size, stride, groups, context, temperature):
        super().__init__(inputs, outputs, size, stride, groups)
        self.temperature = temperature
        self.residuals = nn.Sequential(nn.Linear(context, 4))
        self.weight = nn.Parameter(torch.empty(1, 1, 4, math.prod(self.shape)))

    def forward(self, x, context):
        mixture = (self.residuals(context) / self.temperature).softmax(1)
        return self.slide(x, (mixture @ self.weight[0, 0]).view(-1, *self.shape))


class OmniConv(Sliding):
    """ODConv's authors': a depthwise one does not weight its filters."""

    def __init__(self, inputs, outputs, size=1, stride=1, groups=1, kernels=4):
        super().__init__(inputs, outputs, size, stride, groups)
        self.attention = OmniAttention(inputs, outputs, size, kernels)
        if groups > 1:
            self.attention.filter_fc = None
        self.weight = nn.Parameter(torch.empty(kernels, *self.shape))

    def forward(self, x):
        channels, filters, taps, mixture = self.attention(x)
        kernels = self.weight.expand(len(x), *self.weight.shape)
        if taps is not None:
            kernels = kernels * taps.sigmoid().view(-1, 1, 1, 1, *self.shape[2:])
        if mixture is not None:
            kernels = kernels * mixture.softmax(1)[:, :, None, None, None, None]
        y = self.slide(x * channels.sigmoid()[:, :, None, None], kernels.sum(1))
        return y if filters is None else y * filters.sigmoid()[:, :, None, None]


class DecomposedPointwise(Latent):
    """A 1x1 convolution of DCD's MobileNetV2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.bins, divisor = (2, 8) if inputs < outputs else (1, 2)
        seen = self.bins**2 * inputs
        latent = min(seen // divisor, outputs // divisor)
        while latent**2 > 2 * seen:
            divisor *= 2
            latent = min(seen // divisor, outputs // divisor)
        latent = max(latent, 4)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.conv_q = nn.Conv2d(inputs, latent, 1, bias=False)
        self.conv_p = nn.Conv2d(latent, outputs, 1, bias=False)
        self.decompose(seen, max(max(seen, latent**2) // 16, 4), latent, outputs)

    def forward(self, x):
        phi, scale = self.attend(functional.adaptive_avg_pool2d(x, self.bins).flatten(1))
        q = self.bn1(self.conv_q(x))
        mixed = self.bn2(phi @ q.flatten(2)).view_as(q)
        return self.conv_p(mixed + q) + scale[:, :, None, None] * self.conv(x)


class Excite(nn.Module):
    """Squeeze-and-excitation, whose two layers have names."""

    def __init__(self, names, features, squeezed, activation, gate):
        super().__init__()
        self.names, self.activation, self.gate = names, activation, gate
        self.add_module(names[0], nn.Conv2d(features, squeezed, 1))
        self.add_module(names[1], nn.Conv2d(squeezed, features, 1))

    def forward(self, x):
        reduce, expand = (self.get_submodule(name) for name in self.names)
        z = self.activation(reduce(x.mean((2, 3), keepdim=True)))
        return x * self.gate(expand(z))


class NamedBlock(nn.Module):
    """An inverted residual block with pairs of names: of each convolution, and of its norm."""

    def __init__(self, names, inputs, hidden, outputs, size, stride, conv, eps, act, squeezed=0):
        super().__init__()
        self.names, self.activation, self.adds = names, act, stride == 1 and inputs == outputs
        convs = [conv(hidden, hidden, size, stride, hidden), conv(hidden, outputs)]
        convs = convs if len(names) == 2 else [conv(inputs, hidden), *convs]
        for (name, norm), made in zip(names, convs, strict=True):
            self.add_module(name, made)
            self.add_module(norm, nn.BatchNorm2d(made.shape[0], eps))
        parts = ("conv_reduce", "conv_expand")
        self.se = Excite(parts, hidden, squeezed, act, torch.sigmoid) if squeezed else None
        self.routing_fn = nn.Linear(inputs, 4) if isinstance(convs[0], ExpertConv) else None

    def forward(self, x):
        y, given = x, ()
        if self.routing_fn is not None:
            given = (self.routing_fn(pooled(x)).sigmoid(),)
        for left, (name, norm) in zip(reversed(range(len(self.names))), self.names, strict=False):
            y = self.get_submodule(norm)(self.get_submodule(name)(y, *given))
            if left:
                y = self.activation(y)
            if left == 1 and self.se is not None:
                y = self.se(y)
        return x + y if self.adds else y


TIMM = {
    1: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    6: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}
LITE = {
    1: (("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
    6: (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
}
# Expansion, kernel, features, blocks, stride of each stage.
EFFICIENTNET = (
    *((1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2)),
    *((6, 5, 112, 3, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1)),
)


class EfficientNet(nn.Module):
    """timm's, an eighth as wide and half as deep; with `experts` its last three stages have four."""

    def __init__(self, same=False, experts=False):
        super().__init__()
        eps, inputs, stages = 1e-3 if same else 1e-5, rounded(32 / 8), []
        static = partial(StaticConv, same=same)
        self.conv_stem, self.bn1 = static(3, inputs, 3, 2), nn.BatchNorm2d(inputs, eps)
        for number, (expansion, size, features, blocks, stride) in enumerate(EFFICIENTNET):
            conv = partial(ExpertConv, same=same) if experts and number > 3 else static
            layers = []
            for block in range(math.ceil(blocks / 2)):
                sizes = inputs, expansion * inputs, rounded(features / 8), size
                layers.append(
                    NamedBlock(
                        TIMM[expansion],
                        *sizes,
                        1 if block else stride,
                        conv,
                        eps,
                        functional.silu,
                        inputs // 4,
                    )
                )
                inputs = rounded(features / 8)
            stages.append(nn.Sequential(*layers))
        self.blocks = nn.Sequential(*stages)
        last = rounded(1280 / 8)
        self.conv_head, self.bn2 = static(inputs, last), nn.BatchNorm2d(last, eps)
        self.classifier = nn.Linear(last, CLASSES)

    def forward(self, x):
        x = self.blocks(functional.silu(self.bn1(self.conv_stem(x))))
        return self.classifier(pooled(functional.silu(self.bn2(self.conv_head(x)))))


class LiteNet(nn.Module):
    """EfficientNet-Lite0, named as in `efficientnet_lite_pytorch`; an eighth as wide, but for its ends."""

    def __init__(self):
        super().__init__()
        conv, layers, inputs = partial(StaticConv, same=True), [], 32
        self._conv_stem, self._bn0 = conv(3, 32, 3, 2), nn.BatchNorm2d(32, 1e-3)
        for expansion, size, features, blocks, stride in EFFICIENTNET:
            for block in range(blocks):
                sizes = inputs, expansion * inputs, rounded(features / 8), size
                strides = 1 if block else stride
                ends = conv, 1e-3, functional.relu6
                layers.append(NamedBlock(LITE[expansion], *sizes, strides, *ends))
                inputs = rounded(features / 8)
        self._blocks = nn.ModuleList(layers)
        self._conv_head, self._bn1 = conv(inputs, 1280), nn.BatchNorm2d(1280, 1e-3)
        self._fc = nn.Linear(1280, CLASSES)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(pooled(functional.relu6(self._bn1(self._conv_head(x)))))


class Residual(nn.Module):
    """Layers in a row under a name, and perhaps a shortcut around them."""

    def __init__(self, name, layers, adds):
        super().__init__()
        self.name, self.adds = name, adds
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x):
        y = self.get_submodule(self.name)(x)
        return x + y if self.adds else y


def make_v2_block(inputs, hidden, outputs, stride, conv):
    def activated(*sizes):
        return nn.Sequential(conv(*sizes), nn.BatchNorm2d(sizes[1]), nn.ReLU6())

    layers = [activated(inputs, hidden)] if hidden != inputs else []
    layers += [activated(hidden, hidden, 3, stride, hidden), conv(hidden, outputs)]
    adds = stride == 1 and inputs == outputs
    return Residual("conv", [*layers, nn.BatchNorm2d(outputs)], adds)


def make_decomposed_block(inputs, hidden, outputs, stride):
    """The block that does not expand is static."""
    expands = hidden != inputs
    pointwise = DecomposedPointwise if expands else StaticConv
    layers = [pointwise(inputs, hidden), nn.BatchNorm2d(hidden), nn.ReLU6()] if expands else []
    layers += [StaticConv(hidden, hidden, 3, stride, hidden), nn.BatchNorm2d(hidden), nn.ReLU6()]
    layers += [pointwise(hidden, outputs), nn.BatchNorm2d(outputs)]
    return Residual("conv", layers, stride == 1 and inputs == outputs)


def end(conv, inputs, outputs, size=1, stride=1, act=nn.ReLU6, eps=1e-5):
    """The first or last convolution of a network."""
    return nn.Sequential(conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs, eps), act())


# Expansion, features, blocks, stride of each stage.
MOBILENET_V2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV2(nn.Module):
    """An eighth as wide; the last convolution is one of the features but with DCD."""

    def __init__(self, make_block, last_conv=None):
        super().__init__()
        inputs = rounded(32 / 8)
        layers = [end(StaticConv, 3, inputs, 3, 2)]
        for expansion, features, blocks, stride in MOBILENET_V2:
            for block in range(blocks):
                outputs = rounded(features / 8)
                sizes = inputs, expansion * inputs, outputs
                layers.append(make_block(*sizes, 1 if block else stride))
                inputs = outputs
        if last_conv is None:
            self.conv, classifier = end(StaticConv, inputs, 1280), DecomposedLinear
        else:
            layers.append(end(last_conv, inputs, 1280))
            classifier = nn.Linear
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), classifier(1280, CLASSES))

    def forward(self, x):
        x = self.features(x)
        return self.classifier(pooled(self.conv(x) if hasattr(self, "conv") else x))


def make_omni_mobilenet(kernels):
    conv = partial(OmniConv, kernels=kernels)
    return MobileNetV2(partial(make_v2_block, conv=conv), conv)


# Kernel, expanded features, features, stride, hard swish, squeeze-and-excitation of each block.
MOBILENET_V3 = (
    *((3, 16, 16, 1, 0, 0), (3, 64, 24, 2, 0, 0), (3, 72, 24, 1, 0, 0), (5, 72, 40, 2, 0, 1)),
    *((5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 2, 1, 0), (3, 200, 80, 1, 1, 0)),
    *((3, 184, 80, 1, 1, 0), (3, 184, 80, 1, 1, 0), (3, 480, 112, 1, 1, 1)),
    *((3, 672, 112, 1, 1, 1), (5, 672, 160, 2, 1, 1), (5, 960, 160, 1, 1, 1)),
    (5, 960, 160, 1, 1, 1),
)


def make_v3_block(inputs, hidden, outputs, size, stride, swish, squeezes):
    act = nn.Hardswish if swish else nn.ReLU

    def normed(*sizes):
        return [StaticConv(*sizes), nn.BatchNorm2d(sizes[1], 1e-3)]

    layers = [nn.Sequential(*normed(inputs, hidden), act())] if hidden != inputs else []
    layers.append(nn.Sequential(*normed(hidden, hidden, size, stride, hidden), act()))
    if squeezes:
        ends = functional.relu, functional.hardsigmoid
        layers.append(Excite(("fc1", "fc2"), hidden, rounded(hidden // 4), *ends))
    layers.append(nn.Sequential(*normed(hidden, outputs)))
    return Residual("block", layers, stride == 1 and inputs == outputs)


class Context(nn.Module):
    """The context of a block, and its gates for each row and column."""

    def __init__(self, inputs, hidden, size, stride):
        super().__init__()
        self.stride = stride
        self.joint_conv = nn.Conv2d(inputs, size, 1, bias=False)
        self.joint_norm = nn.BatchNorm2d(size, 1e-3)
        self.conv_f, self.conv_t = nn.Conv2d(size, hidden, 1), nn.Conv2d(size, hidden, 1)

    def forward(self, x):
        means = torch.cat([x.mean(3), x.mean(2)], 2)[..., None]
        q = functional.hardswish(self.joint_norm(self.joint_conv(means)))
        rows, columns = q.split(x.shape[2:], 2)
        if self.stride > 1:
            pool = (3, 1), (self.stride, 1), (1, 0)
            rows, columns = (functional.avg_pool2d(part, *pool) for part in (rows, columns))
        gates = self.conv_f(rows).sigmoid() * self.conv_t(columns).sigmoid().transpose(2, 3)
        return q.mean((2, 3)), gates


class DynamicReLU(nn.Module):
    def __init__(self, features, context):
        super().__init__()
        self.coef_net = nn.Sequential(nn.Linear(context, 4 * features))
        self.register_buffer("lambdas", torch.empty(4))
        self.register_buffer("init_v", torch.empty(4))

    def forward(self, x, context):
        theta = 2 * self.coef_net(context).sigmoid() - 1
        lines = theta.view(*x.shape[:2], 4) * self.lambdas + self.init_v
        a, c, b, d = lines[:, :, None, None].unbind(-1)
        return torch.maximum(a * x + b, c * x + d)


class DynamicBlock(nn.Module):
    """A block of EfficientAT's DyMN, of a network whose width is `width`."""

    def __init__(self, inputs, hidden, outputs, size, stride, swish, width, temperature):
        super().__init__()
        bounds = (rounded(32 * width), rounded(128 * width))
        context = min(max(rounded(hidden // 4), bounds[0]), bounds[1])
        conv = partial(ContextConv, context=context, temperature=temperature)
        self.activation = functional.hardswish if swish else functional.relu
        self.adds = stride == 1 and inputs == outputs
        self.exp_conv = conv(inputs, hidden, 1, 1, 1) if hidden != inputs else None
        self.exp_norm = nn.BatchNorm2d(hidden, 1e-3) if hidden != inputs else None
        self.depth_conv = conv(hidden, hidden, size, stride, hidden)
        self.depth_norm = nn.BatchNorm2d(hidden, 1e-3)
        self.depth_act = DynamicReLU(hidden, context)
        self.proj_conv = conv(hidden, outputs, 1, 1, 1)
        self.proj_norm = nn.BatchNorm2d(outputs, 1e-3)
        self.context_gen = Context(inputs, hidden, context, stride)

    def forward(self, x):
        context, gates = self.context_gen(x)
        y = x
        if self.exp_conv is not None:
            y = self.activation(self.exp_norm(self.exp_conv(y, context)))
        y = self.depth_act(self.depth_norm(self.depth_conv(y, context)), context)
        y = self.proj_norm(self.proj_conv(y * gates, context))
        return x + y if self.adds else y


class MobileNetV3(nn.Module):
    """torchvision's, a quarter as wide; with a temperature EfficientAT's DyMN, whose input has one channel.

    With `static` the blocks without squeeze-and-excitation stay as they are (their `replace_se`).
    """

    def __init__(self, temperature=None, static=False):
        super().__init__()
        inputs = rounded(16 / 4)
        stem = end(StaticConv, 3 if temperature is None else 1, inputs, 3, 2, nn.Hardswish, 1e-3)
        layers = []
        for size, expanded, features, stride, swish, squeezes in MOBILENET_V3:
            sizes = inputs, rounded(expanded / 4), rounded(features / 4), size, stride, swish
            if temperature is None:
                layers.append(make_v3_block(*sizes, squeezes))
            elif static and not squeezes:
                layers.append(make_v3_block(*sizes, False))
            else:
                layers.append(DynamicBlock(*sizes, 1 / 4, temperature))
            inputs = rounded(features / 4)
        last = end(StaticConv, inputs, 6 * inputs, 1, 1, nn.Hardswish, 1e-3)
        ends = [nn.Linear(6 * inputs, rounded(1280 / 4)), nn.Hardswish(), nn.Dropout(0.2)]
        ends.append(nn.Linear(rounded(1280 / 4), CLASSES))
        if temperature is None:
            self.features = nn.Sequential(stem, *layers, last)
            self.classifier = nn.Sequential(*ends)
        else:
            self.in_c, self.layers, self.out_c = stem, nn.Sequential(*layers), last
            self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *ends)

    def forward(self, x):
        if hasattr(self, "features"):
            return self.classifier(pooled(self.features(x)))
        return self.classifier(self.out_c(self.layers(self.in_c(x))))


class NormedConv(nn.Module):
    def __init__(self, inputs, outputs, size, stride=1, dilation=1, groups=1):
        super().__init__()
        padding = dilation * (size // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x))


class PathAttention(nn.Module):
    def __init__(self, features, squeezed):
        super().__init__()
        self.fc_reduce = nn.Conv2d(features, squeezed, 1, bias=False)
        self.bn = nn.BatchNorm2d(squeezed)
        self.fc_select = nn.Conv2d(squeezed, 2 * features, 1, bias=False)

    def forward(self, x):
        z = functional.relu(self.bn(self.fc_reduce(x.mean((2, 3), keepdim=True))))
        return self.fc_select(z).unflatten(1, (2, -1)).softmax(1)


class SelectiveKernel(nn.Module):
    """timm's: the kernel that would be 5x5 is a dilated one."""

    def __init__(self, inputs, outputs, stride, groups=1, split=True, ratio=1 / 16, multiple=8):
        super().__init__()
        self.split = split
        seen = inputs // 2 if split else inputs
        self.paths = nn.ModuleList(
            NormedConv(seen, outputs, 3, stride, dilation, groups) for dilation in (1, 2)
        )
        self.attn = PathAttention(outputs, rounded(ratio * outputs, multiple))

    def forward(self, x):
        parts = x.chunk(2, 1) if self.split else (x, x)
        made = [functional.relu(path(part)) for path, part in zip(self.paths, parts, strict=True)]
        weights = self.attn(made[0] + made[1])
        return weights[:, 0] * made[0] + weights[:, 1] * made[1]


class SelectiveBlock(nn.Module):
    """A basic block, or with `wide` a bottleneck, of which one convolution is a selective kernel."""

    def __init__(self, inputs, features, stride, wide, groups, select, deep):
        super().__init__()
        outputs = 4 * features if wide else features
        if groups > 1:
            features = features * 4 // 64 * groups
            select = partial(select, groups=groups)
        self.conv1 = (NormedConv if wide else select)(inputs, features, 1 if wide else stride)
        self.conv2 = (
            select(features, features, stride) if wide else NormedConv(features, outputs, 3)
        )
        self.conv3 = NormedConv(features, outputs, 1) if wide else None
        self.downsample = None
        if stride > 1 or inputs != outputs:
            project = [nn.Conv2d(inputs, outputs, 1, 1 if deep else stride, bias=False)]
            if deep:  # averages before it
                means = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
                project.insert(0, means if stride > 1 else nn.Identity())
            self.downsample = nn.Sequential(*project, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.conv1(x) if self.conv3 is None else functional.relu(self.conv1(x))
        y = self.conv2(y)
        y = y if self.conv3 is None else self.conv3(y)
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class SelectiveResNet(nn.Module):
    """timm's, with two stages of a block; with `deep` it is its 'd' variant."""

    def __init__(self, wide=False, groups=1, deep=False, **fields):
        super().__init__()
        width, select = 16, partial(SelectiveKernel, **fields)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        if deep:
            convs, inputs = [], 3
            for outputs, stride in ((width // 2, 2), (width // 2, 1), (width, 1)):
                convs.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
                convs += [nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            self.conv1 = nn.Sequential(*convs[:-2])
        self.bn1 = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for features, stride in ((width, 1), (2 * width, 2)):
            blocks.append(SelectiveBlock(inputs, features, stride, wide, groups, select, deep))
            inputs = 4 * features if wide else features
        self.layer1, self.layer2 = (nn.Sequential(block) for block in blocks)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(pooled(self.layer2(self.layer1(x))))


NETWORKS = {
    "efficientnet": EfficientNet,
    "efficientnet, same padding": partial(EfficientNet, same=True),
    "efficientnet, 4 experts": partial(EfficientNet, same=True, experts=True),
    "efficientnet_lite0": LiteNet,
    "mobilenet_v2": partial(MobileNetV2, partial(make_v2_block, conv=StaticConv), StaticConv),
    "mobilenet_v3": MobileNetV3,
    "dymn": partial(MobileNetV3, temperature=1.0),
    "dymn, replace_se": partial(MobileNetV3, temperature=30.0, static=True),
    "odconv_mobilenet_v2, K = 1": partial(make_omni_mobilenet, 1),
    "odconv_mobilenet_v2, K = 4": partial(make_omni_mobilenet, 4),
    "dcd_mobilenet_v2": partial(MobileNetV2, make_decomposed_block),
    "skresnet18": partial(SelectiveResNet, ratio=1 / 8, multiple=16),
    "skresnet50": partial(SelectiveResNet, wide=True),
    "skresnet50d": partial(SelectiveResNet, wide=True, deep=True),
    "skresnext50": partial(SelectiveResNet, wide=True, groups=32, split=False, multiple=32),
}


def make_input(name):
    return torch.from_numpy(contrasting_pictures(name)).permute(0, 3, 1, 2)


def load_weights(net, weights):
    net.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})


def measure_scales(net, x):
    """Returns for each norm the standard deviation of its inputs, when all norms before it are scaled."""
    scales, hooks = {}, []

    def scale(name, norm, inputs):
        scales[name] = float(f"{inputs[0].std():.3g}")
        norm.running_mean *= scales[name]
        norm.running_var *= scales[name] ** 2

    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(partial(scale, name)))
    net(x)
    for hook in hooks:
        hook.remove()
    return scales


def group_by_module(shapes):
    """Groups names by module, which makes the file half as large."""
    modules = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = shape
    return modules


def main():
    references = {}
    torch.set_num_threads(1)
    for name, network in NETWORKS.items():
        net, x = network().eval(), make_input(name)
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        weights = {key: weight(key, shape) for key, shape in shapes.items()}
        with torch.no_grad():
            load_weights(net, weights)
            scales = measure_scales(net, x)
            scale_statistics(weights, scales)
            load_weights(net, weights)
            logits = net.double()(x.double())
        modules = group_by_module(shapes)
        references[name] = {"logits": logits.tolist(), "scales": scales, "shapes": modules}
        apart = (logits[0] - logits[1]).abs().max()
        print(
            f"{name:26} {len(shapes):4} weights, logits {logits.min():.2f} to {logits.max():.2f}, ",
            end="",
        )
        print(f"those of the pictures {apart:.2f} apart")
    write_references(__file__, references, separators=(",", ":"))


if __name__ == "__main__":
    main()
