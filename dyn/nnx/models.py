"""The networks of `dyn.models` as NNX modules; their docstrings are made from those of the Linen networks."""

from dyn import models
from dyn.nnx.constructors import ConvModule, NetworkModule


class ACGAN(NetworkModule, linen=models.ACGAN, methods=("generate", "discriminate")): ...


class Autoencoder(NetworkModule, linen=models.Autoencoder, methods=("encode", "decode")): ...


class CRNN(NetworkModule, linen=models.CRNN): ...


class Classifier(NetworkModule, linen=models.Classifier): ...


class ConvNeXt(NetworkModule, linen=models.ConvNeXt): ...


class DeepLabV3Plus(NetworkModule, linen=models.DeepLabV3Plus): ...


class DyMN(NetworkModule, linen=models.DyMN): ...


class EfficientNet(NetworkModule, linen=models.EfficientNet): ...


class EfficientNetB0(NetworkModule, linen=models.EfficientNetB0): ...


class EfficientNetB1(NetworkModule, linen=models.EfficientNetB1): ...


class EfficientNetLite0(NetworkModule, linen=models.EfficientNetLite0): ...


class FCN(NetworkModule, linen=models.FCN): ...


class MobileNetV2(NetworkModule, linen=models.MobileNetV2): ...


class MobileNetV3(NetworkModule, linen=models.MobileNetV3): ...


class Net1(NetworkModule, linen=models.Net1):
    spatial_axes = 1


class Net2(NetworkModule, linen=models.Net2):
    spatial_axes = 1


class PooledConv(ConvModule, linen=models.PooledConv): ...


class RedNet(NetworkModule, linen=models.RedNet): ...


class RedNet26(NetworkModule, linen=models.RedNet26): ...


class RedNet38(NetworkModule, linen=models.RedNet38): ...


class RedNet50(NetworkModule, linen=models.RedNet50): ...


class RedNet101(NetworkModule, linen=models.RedNet101): ...


class RedNet152(NetworkModule, linen=models.RedNet152): ...


class ResNet(NetworkModule, linen=models.ResNet): ...


class ResNet18(NetworkModule, linen=models.ResNet18): ...


class ResNet34(NetworkModule, linen=models.ResNet34): ...


class ResNet50(NetworkModule, linen=models.ResNet50): ...


class ResNet101(NetworkModule, linen=models.ResNet101): ...


class SKResNeXt50(NetworkModule, linen=models.SKResNeXt50): ...


class SKResNet18(NetworkModule, linen=models.SKResNet18): ...


class SKResNet34(NetworkModule, linen=models.SKResNet34): ...


class SKResNet50(NetworkModule, linen=models.SKResNet50): ...


class SeriesNet(NetworkModule, linen=models.SeriesNet):
    spatial_axes = 1


class VGG(NetworkModule, linen=models.VGG): ...


class VGG16(NetworkModule, linen=models.VGG16): ...
