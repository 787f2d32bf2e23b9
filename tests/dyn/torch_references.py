"""Writes `torch_references.json`: what torch makes of networks with the weights of `torch_numbers`.

It also holds, as `file`, a checkpoint as torch writes it.

    python tests/dyn/torch_references.py

It needs torch; the tests need the file alone. The networks are written here for their layouts: their
layers are called and shaped as those of torchvision, timm, ODConv's and DCD's authors.
"""

import base64
import io
import json
import zlib
from collections import OrderedDict
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch_numbers import pictures, weight

CLASSES, WIDTH = 5, 8


def pooled(x):
    return x.mean((2, 3))


def plain(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def per_sample(x, kernels, stride):
    """A convolution of each picture with a kernel of its own."""
    padding = kernels.shape[-1] // 2
    samples = zip(x, kernels, strict=True)
    return torch.cat([functional.conv2d(one[None], k, None, stride, padding) for one, k in samples])


class OmniAttention(nn.Module):
    def __init__(self, inputs, outputs, size, kernels):
        super().__init__()
        hidden = max(inputs // 16, 16)
        self.fc = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.channel_fc = nn.Conv2d(hidden, inputs, 1)
        self.filter_fc = nn.Conv2d(hidden, outputs, 1)
        self.spatial_fc = nn.Conv2d(hidden, size * size, 1) if size > 1 else None
        self.kernel_fc = nn.Conv2d(hidden, kernels, 1) if kernels > 1 else None

    def forward(self, x):
        z = functional.relu(self.bn(self.fc(pooled(x)[:, :, None, None])))
        heads = (self.channel_fc, self.filter_fc, self.spatial_fc, self.kernel_fc)
        return [None if head is None else head(z)[:, :, 0, 0] for head in heads]


class OmniConv(nn.Module):
    def __init__(self, inputs, outputs, size, stride=1, kernels=4):
        super().__init__()
        self.stride, self.size = stride, size
        self.attention = OmniAttention(inputs, outputs, size, kernels)
        self.weight = nn.Parameter(torch.empty(kernels, outputs, inputs, size, size))

    def forward(self, x):
        channel, filters, spatial, mix = self.attention(x)
        kernel = self.weight[None]
        if spatial is not None:
            kernel = kernel * spatial.sigmoid().view(-1, 1, 1, 1, self.size, self.size)
        if mix is not None:
            kernel = kernel * mix.softmax(1)[:, :, None, None, None, None]
        kernel = kernel.sum(1).expand(len(x), *self.weight.shape[1:])
        y = per_sample(x * channel.sigmoid()[:, :, None, None], kernel, self.stride)
        return y * filters.sigmoid()[:, :, None, None]


class ExpertConv(nn.Module):
    """timm's: every expert's kernel is one row."""

    def __init__(self, inputs, outputs, size, stride=1, experts=3):
        super().__init__()
        self.shape, self.stride = (outputs, inputs, size, size), stride
        self.weight = nn.Parameter(torch.empty(experts, outputs * inputs * size * size))

    def forward(self, x, routing):
        return per_sample(x, (routing @ self.weight).view(-1, *self.shape), self.stride)


def gate(x):
    return functional.relu6(x + 3) / 3


class Excite(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(features, features, bias=False))

    def forward(self, x):
        return x * gate(self.fc(x))


class Latent(nn.Module):
    """The parts shared by DCD's convolutions and its classifier."""

    def decompose(self, context, squeezed, latent, outputs):
        self.latent = latent
        self.bn1 = (nn.BatchNorm2d if hasattr(self, "conv") else nn.BatchNorm1d)(latent)
        self.bn2 = nn.BatchNorm1d(latent)
        self.fc = nn.Sequential(nn.Linear(context, squeezed, bias=False), Excite(squeezed))
        self.fc_phi = nn.Linear(squeezed, latent**2, bias=False)
        self.fc_scale = nn.Linear(squeezed, outputs, bias=False)

    def attend(self, context):
        z = self.fc(context)
        return self.fc_phi(z).view(-1, self.latent, self.latent), gate(self.fc_scale(z))


class DecomposedConv(Latent):
    def __init__(self, inputs, outputs, size, stride=1):
        super().__init__()
        self.conv = plain(inputs, outputs, size, stride)
        latent = int((4 * inputs) ** 0.5)
        self.q = nn.Conv2d(inputs, latent, 1, stride, bias=False)
        self.p = nn.Conv2d(latent, outputs, 1, bias=False)
        self.decompose(4 * inputs, max(max(4 * inputs, latent**2) // 16, 4), latent, outputs)

    def forward(self, x):
        phi, scale = self.attend(functional.adaptive_avg_pool2d(x, 2).flatten(1))
        q = self.bn1(self.q(x))
        mixed = self.bn2(phi @ q.flatten(2)).view_as(q)
        return self.p(mixed + q) + scale[:, :, None, None] * self.conv(x)


class DecomposedLinear(Latent):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.cls = nn.Linear(inputs, outputs)
        self.cls_q = nn.Linear(inputs, 32, bias=False)
        self.cls_p = nn.Linear(32, outputs, bias=False)
        self.decompose(inputs, 32, 32, outputs)

    def forward(self, x):
        phi, scale = self.attend(x)
        q = self.bn1(self.cls_q(x))
        return self.cls_p(self.bn2((phi @ q[:, :, None])[:, :, 0]) + q) + scale * self.cls(x)


class SqueezeExcite(nn.Module):
    def __init__(self, features):
        super().__init__()
        squeezed = max(8, int(features / 16 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(features, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, features, 1)

    def forward(self, x):
        z = functional.relu(self.fc1(pooled(x)[:, :, None, None]))
        return x * self.fc2(z).sigmoid()


class Block(nn.Module):
    """A basic block or, with `wide`, a bottleneck."""

    def __init__(self, inputs, features, stride, conv, wide, squeeze):
        super().__init__()
        outputs = 4 * features if wide else features
        if wide:
            self.conv1, self.conv2 = conv(inputs, features, 1), conv(features, features, 3, stride)
            self.conv3, self.bn3 = conv(features, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.conv2 = conv(inputs, features, 3, stride), conv(features, features, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)
        self.wide = wide
        self.routing_fn = nn.Linear(inputs, 3) if isinstance(self.conv1, ExpertConv) else None
        self.se = SqueezeExcite(outputs) if squeeze else None
        self.downsample = None
        if stride > 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x):
        given = () if self.routing_fn is None else (self.routing_fn(pooled(x)).sigmoid(),)
        y = functional.relu(self.bn1(self.conv1(x, *given)))
        y = self.bn2(self.conv2(y, *given))
        if self.wide:
            y = self.bn3(self.conv3(functional.relu(y), *given))
        if self.se is not None:
            y = self.se(y)
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, sizes, conv=plain, wide=False, squeeze=False, decomposed=False, width=WIDTH):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, blocks in enumerate(sizes):
            layers = []
            for number in range(blocks):
                features, stride = width * 2**stage, 2 if stage and not number else 1
                layers.append(Block(inputs, features, stride, conv, wide, squeeze))
                inputs = 4 * features if wide else features
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(sizes)
        if decomposed:
            self.classifier = nn.Sequential(nn.Dropout(0.1), DecomposedLinear(inputs, CLASSES))
        else:
            self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return (self.classifier if hasattr(self, "classifier") else self.fc)(pooled(x))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for stage, convs in enumerate((2, 2, 3, 3, 3)):
            for _ in range(convs):
                features = WIDTH * min(2**stage, 8)
                layers += [nn.Conv2d(inputs, features, 3, 1, 1), nn.ReLU()]
                inputs = features
            layers.append(nn.MaxPool2d(2))
        self.features, hidden = nn.Sequential(*layers), 64 * WIDTH
        ends = [nn.Linear(49 * inputs, hidden), nn.ReLU(), nn.Dropout()]
        ends += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, CLASSES)]
        self.classifier = nn.Sequential(*ends)

    def forward(self, x):
        return self.classifier(functional.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


def activated(inputs, outputs, size, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        hidden, self.adds = inputs * expansion, stride == 1 and inputs == outputs
        layers = [activated(inputs, hidden, 1)] if expansion > 1 else []
        layers.append(activated(hidden, hidden, 3, stride, hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNet(nn.Module):
    """An eighth as wide as the paper's, each number of features rounded to a multiple of 8."""

    def __init__(self):
        super().__init__()
        layers, inputs = [activated(3, 8, 3, 2)], 8
        features = (8, 8, 8, 8, 16, 24, 40)
        strides, blocks = (1, 2, 2, 2, 1, 2, 1), (1, 2, 3, 4, 3, 3, 1)
        for outputs, stride, number in zip(features, strides, blocks, strict=True):
            for block in range(number):
                expansion = 6 if len(layers) > 1 else 1
                layers.append(Inverted(inputs, outputs, 1 if block else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, activated(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))

    def forward(self, x):
        return self.classifier(pooled(self.features(x)))


NETWORKS = {
    "resnet18": partial(ResNet, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, (3, 4, 6, 3), wide=True),
    "seresnet": partial(ResNet, (1, 1), squeeze=True),
    "odconv18": partial(ResNet, (2, 2, 2, 2), OmniConv),
    "odconv50": partial(ResNet, (1, 1), OmniConv, wide=True),
    "odconv50, K = 1": partial(ResNet, (1, 1), partial(OmniConv, kernels=1), wide=True),
    "condconv": partial(ResNet, (1, 1), ExpertConv),
    "dcd": partial(ResNet, (1, 1), DecomposedConv, decomposed=True),
    "vgg16": VGG,
    "mobilenet_v2": MobileNet,
}


def checkpoint():
    """The bytes of a training's checkpoint, with tensors of several kinds and layouts."""
    table = torch.arange(12.0).reshape(3, 4)
    state = {
        "table": table,
        "turned": table.T,
        "part": table[1:, ::2],
        "half": table[0].half(),
        "bfloat16": table[0].bfloat16(),
        "double": table[0].double(),
        "count": torch.tensor(7),
        "parameter": nn.Parameter(table[2]),
    }
    module = nn.BatchNorm2d(2)
    state |= {f"norm.{name}": value for name, value in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    file = io.BytesIO()
    torch.save(
        {
            "epoch": 3,
            "accuracy": 0.5,
            "state_dict": OrderedDict(state),
            "optimizer": optimizer.state_dict(),
        },
        file,
    )
    return file.getvalue()


def compute_references(networks):
    """Returns the logits of networks with the weights of `torch_numbers`, and the shapes of these."""
    references = {}
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2)
    for name, network in networks.items():
        net = network().eval()
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        made = {key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}
        net.load_state_dict(made)
        with torch.no_grad():
            logits = net.double()(x.double())
        references[name] = {"logits": logits.tolist(), "shapes": shapes}
        print(f"{name:24} {len(shapes):4} weights, logits {logits.min():.2f} to {logits.max():.2f}")
    return references


def write_references(script, references, separators=None):
    """Writes references beside a script, one network a line."""
    lines = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(v, separators=separators)}" for k, v in references.items()
    )
    path = Path(script).with_suffix(".json")
    path.write_text(f"{{\n{lines}\n}}\n")
    print(f"{path}: {path.stat().st_size:,} bytes")


def main():
    file = base64.b64encode(zlib.compress(checkpoint(), 9)).decode()
    write_references(__file__, compute_references(NETWORKS) | {"file": file})


if __name__ == "__main__":
    main()
