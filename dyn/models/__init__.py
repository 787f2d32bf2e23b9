"""Backbones and heads that take `conv=`: any callable with `nn.Conv`'s arguments."""

from dyn.models.resnet import BasicBlock, Bottleneck, ResNet, ResNet18, ResNet34, ResNet50

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "ResNet18", "ResNet34", "ResNet50"]
