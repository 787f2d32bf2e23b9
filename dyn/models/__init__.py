"""Backbones and heads that take `conv=`: any callable with `nn.Conv`'s arguments."""

from dyn.models.autoencoder import Autoencoder
from dyn.models.resnet import BasicBlock, Bottleneck, ResNet, ResNet18, ResNet34, ResNet50
from dyn.models.segmentation import FCN, DeepLabV3Plus
from dyn.models.time_series import Net1, Net2, SeriesNet

__all__ = [
    "FCN",
    "Autoencoder",
    "BasicBlock",
    "Bottleneck",
    "DeepLabV3Plus",
    "Net1",
    "Net2",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SeriesNet",
]
