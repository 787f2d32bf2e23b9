"""Backbones and heads with `conv=`: any callable with `nn.Conv`'s arguments."""

from dyn.models.acgan import ACGAN
from dyn.models.autoencoder import Autoencoder
from dyn.models.classifier import Classifier
from dyn.models.mobilenet import MobileNetV2
from dyn.models.rednet import RedNet, RedNet26, RedNet38, RedNet50, RedNet101, RedNet152
from dyn.models.resnet import BasicBlock, Bottleneck, ResNet, ResNet18, ResNet34, ResNet50
from dyn.models.segmentation import FCN, DeepLabV3Plus
from dyn.models.time_series import Net1, Net2, SeriesNet
from dyn.models.vgg import VGG, VGG16

__all__ = [
    "ACGAN",
    "FCN",
    "VGG",
    "VGG16",
    "Autoencoder",
    "BasicBlock",
    "Bottleneck",
    "Classifier",
    "DeepLabV3Plus",
    "MobileNetV2",
    "Net1",
    "Net2",
    "RedNet",
    "RedNet26",
    "RedNet38",
    "RedNet50",
    "RedNet101",
    "RedNet152",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SeriesNet",
]
