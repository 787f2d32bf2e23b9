"""A ResNet-18 in PyTorch, static or with ODConv by grouped convolutions, and its training step.

The networks are the same as ours, with the same names and shapes of parameters, so that the two can be
compared. Only `against_torch` imports this file, after it has checked that torch is installed.
"""

from collections.abc import Callable, Sequence

import torch  # pyrefly: ignore [missing-import]
from torch import nn  # pyrefly: ignore [missing-import]
from torch.nn import functional  # pyrefly: ignore [missing-import]

from experiments.benchmarks.adam_step import CLASSES, LEARNING_RATE

Conv = Callable[[int, int, int], nn.Module]
"""`conv(inputs, outputs, stride)`: a 3x3 convolution without bias, padded by one."""


def make_static_conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Returns torch's own convolution."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class ODConv(nn.Module):
    """A 3x3 ODConv that folds the batch into the groups of one convolution, at temperature 1.

    A batch of B examples becomes one example with B groups, `[1, B * I, H, W]`, and the kernels become
    `[B * O, I, 3, 3]`. As in the papers' code, they are the sum over the product `[B, K, O, I, 3, 3]`.

    Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution. ICLR 2022, equation 3.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, num_kernels: int):
        super().__init__()
        self.stride = stride
        self.kernel = nn.Parameter(torch.empty(num_kernels, outputs, inputs, 3, 3))
        for candidate in self.kernel.detach():
            nn.init.kaiming_normal_(candidate, mode="fan_out")
        self.attention = ODAttention(inputs, outputs, num_kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, I, H, W]` to `[B, O, H / stride, W / stride]`."""
        channel, filters, spatial, mix = self.attention(x.mean((2, 3)))
        (batch, inputs, *size), outputs = x.shape, self.kernel.shape[1]
        weights = spatial.view(batch, 1, 1, 1, 3, 3)
        if mix is not None:
            weights = weights * mix.view(batch, -1, 1, 1, 1, 1)
        kernels = (weights * self.kernel).sum(1).view(batch * outputs, inputs, 3, 3)
        folded = (x * channel[:, :, None, None]).reshape(1, batch * inputs, *size)
        y = functional.conv2d(folded, kernels, stride=self.stride, padding=1, groups=batch)
        return y.view(batch, outputs, *y.shape[2:]) * filters[:, :, None, None]


class ODAttention(nn.Module):
    """Computes weights for channels, filters, taps and, for K > 1, candidates from a context `[B, I]`."""

    def __init__(self, inputs: int, outputs: int, num_kernels: int):
        super().__init__()
        hidden = max(inputs // 16, 16)
        self.squeeze = nn.Linear(inputs, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.channel = nn.Linear(hidden, inputs)
        self.filter = nn.Linear(hidden, outputs)
        self.spatial = nn.Linear(hidden, 9)
        self.kernel = nn.Linear(hidden, num_kernels) if num_kernels > 1 else None

    def forward(self, context: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Returns weights `[B, I]`, `[B, O]`, `[B, 9]`, and `[B, K]` or None."""
        z = functional.relu(self.norm(self.squeeze(context)))
        mix = None if self.kernel is None else self.kernel(z).softmax(dim=1)
        return *(torch.sigmoid(head(z)) for head in (self.channel, self.filter, self.spatial)), mix


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a static convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, conv: Conv):
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.downsample_conv = None
        if stride > 1 or inputs != outputs:
            self.downsample_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, I, H, W]` to `[B, O, H / stride, W / stride]`."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.downsample_conv is not None:
            x = self.downsample_norm(self.downsample_conv(x))
        return functional.relu(x + y)


class ResNet18(nn.Module):
    """He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016.

    `conv` makes the convolutions of the blocks, and `width` is the number of features of the first stage.
    """

    def __init__(self, conv: Conv, width: int, sizes: Sequence[int] = (2, 2, 2, 2)):
        super().__init__()
        self.stem_conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks = []
        inputs = width
        for stage, blocks in enumerate(sizes):
            for block in range(blocks):
                outputs, stride = width * 2**stage, 2 if stage and not block else 1
                name = f"stage{stage + 1}_block{block + 1}"
                self.add_module(name, BasicBlock(inputs, outputs, stride, conv))
                self.blocks.append(name)
                inputs = outputs
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[B, 1000]` of pictures `[B, 3, H, W]`."""
        x = functional.relu(self.stem_norm(self.stem_conv(x)))
        x = functional.max_pool2d(x, 3, 2, padding=1)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.head(x.mean((2, 3)))


class TorchStep:
    """Forward pass, backward pass and Adam's update of a network, as `TrainingStep` is for ours."""

    def __init__(self, network: nn.Module, device: str, dtype: str, batch: int, size: int):
        """Moves the network and a batch of pictures of a size to the device; bfloat16 is torch's autocast."""
        self._network = network.to(device).train()
        self._x = torch.randn(batch, 3, size, size, device=device)
        self._labels = torch.arange(batch, device=device) % CLASSES
        self._optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        self.parameters = sum(values.numel() for values in network.parameters())

    def __call__(self) -> None:
        """Takes one step and waits until it is done."""
        self._optimizer.zero_grad()
        with self._autocast:
            loss = functional.cross_entropy(self._network(self._x), self._labels)
        loss.backward()
        self._optimizer.step()
        if self._x.is_cuda:
            torch.cuda.synchronize()
