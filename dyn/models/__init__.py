"""Backbones and heads with `conv=`: any callable with `nn.Conv`'s arguments.

`list_models` names the published networks, and `create_model` makes one of them.
"""

from dyn.models.acgan import ACGAN
from dyn.models.autoencoder import Autoencoder
from dyn.models.catalogue import (
    NETWORKS,
    StageFeatures,
    create_model,
    find_preprocessing,
    list_features,
    list_models,
)
from dyn.models.classifier import Classifier
from dyn.models.convnext import ConvNeXt
from dyn.models.crnn import CRNN
from dyn.models.detection.condinst import CondInst
from dyn.models.detection.detections import (
    Detections,
    make_targets,
    paint_detections,
    scale_detections,
)
from dyn.models.detection.feature_pyramid import FeaturePyramid
from dyn.models.detection.rcnn import FasterRCNN, MaskRCNN
from dyn.models.detection.settings import (
    CondInstSettings,
    RCNNSettings,
    make_small_condinst_settings,
    make_small_settings,
)
from dyn.models.dymn import DyMN
from dyn.models.efficientnet import (
    EfficientNet,
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetLite0,
)
from dyn.models.kernel_warehouse import KERNEL_WAREHOUSE
from dyn.models.mobilenet import MobileNetV2
from dyn.models.mobilenet_v3 import MobileNetV3
from dyn.models.named_parts import ATTENTIONS, CLASSIFIERS, CONVOLUTIONS
from dyn.models.preprocessing import Preprocessing
from dyn.models.rednet import RedNet, RedNet26, RedNet38, RedNet50, RedNet101, RedNet152
from dyn.models.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
)
from dyn.models.segmentation import FCN, DeepLabV3Plus
from dyn.models.selective_resnet import (
    PooledConv,
    SelectiveBasicBlock,
    SelectiveBottleneck,
    SKResNet18,
    SKResNet34,
    SKResNet50,
    SKResNeXt50,
)
from dyn.models.time_series import Net1, Net2, SeriesNet
from dyn.models.vgg import VGG, VGG16

__all__ = [
    "ACGAN",
    "ATTENTIONS",
    "CLASSIFIERS",
    "CONVOLUTIONS",
    "CRNN",
    "FCN",
    "KERNEL_WAREHOUSE",
    "NETWORKS",
    "VGG",
    "VGG16",
    "Autoencoder",
    "BasicBlock",
    "Bottleneck",
    "Classifier",
    "CondInst",
    "CondInstSettings",
    "ConvNeXt",
    "DeepLabV3Plus",
    "Detections",
    "DyMN",
    "EfficientNet",
    "EfficientNetB0",
    "EfficientNetB1",
    "EfficientNetLite0",
    "FasterRCNN",
    "FeaturePyramid",
    "MaskRCNN",
    "MobileNetV2",
    "MobileNetV3",
    "Net1",
    "Net2",
    "PooledConv",
    "Preprocessing",
    "RCNNSettings",
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
    "ResNet101",
    "SKResNeXt50",
    "SKResNet18",
    "SKResNet34",
    "SKResNet50",
    "SelectiveBasicBlock",
    "SelectiveBottleneck",
    "SeriesNet",
    "StageFeatures",
    "create_model",
    "find_preprocessing",
    "list_features",
    "list_models",
    "make_small_condinst_settings",
    "make_small_settings",
    "make_targets",
    "paint_detections",
    "scale_detections",
]
