"""Dynamic convolutions as NNX modules, drop-in for `flax.nnx.Conv`.

    conv = ODConv(64, 128, kernel_size=(3, 3), num_kernels=4, rngs=rngs)
    y = conv(x)

Each class is made from the class of that name in `dyn.layers` or `dyn.models`, and computes it: formulas and
numbers are the same, and so are the names of parameters. Convolutions take `nnx.Conv`'s arguments first,
dense layers `nnx.Linear`'s, and layers that keep the shape of their input `num_features`, as `nnx.BatchNorm`
does; networks take `in_features`. All other arguments are the fields of the Linen class, by keyword.

Where the docstrings name a collection of Linen, think of a type of variables:

* `params` are `nnx.Param`, `batch_stats` are `nnx.BatchStat`. `batch_stats` is mutable unless
  `use_running_average` is True: `train` and `eval` set it, as they do for `nnx.BatchNorm`.
* `attention` is `Attention`: temperature and blend, one per layer. `set_temperature(model, t)` sets them all.
  They are data, so that annealing compiles only once, and no parameters.
* `intermediates` are `nnx.Intermediate` and `losses` are `Loss`. A call keeps neither: `nnx.capture(model,
  nnx.Intermediate)` returns them with the outputs.
* the rng `dropout` is a stream of the module's own, as in `nnx.Dropout`. `deterministic` turns it off.

The parameters of attention depend on the width of what it looks at. Write `context_features=D` for a layer
that is called as `conv(x, context)` with a context of D features. The parameters of layers at the end of a
block may depend on the number of spatial axes: two, without `spatial_axes`. Those of `ACGAN` and of the
networks for time series depend on the size of the inputs: write `spatial_shape`.

`to_linen` and `load_linen` carry weights from one to the other. `FromLinen` is the module of any Linen
module, and the base of all the others: see there for what attributes a module has. A Linen layer of your own
becomes a class by one line:

    class MyConv(ConvModule, linen=my_layers.MyConv): ...
"""

from dyn.nnx.constructors import ConvModule, DenseModule, FeatureModule, NetworkModule
from dyn.nnx.layers import (
    CBAM,
    CondConv,
    CondDense,
    Conv,
    CoordinateAttention,
    DCDConv,
    DCDDense,
    DecoupledDynamicFilter,
    DeformableAggregation,
    DeformableConv,
    DynamicConv,
    DynamicDense,
    DynamicReLU,
    EfficientChannelAttention,
    FDConv,
    FrequencyDynamicConv,
    GatedConv,
    Involution,
    KernelRepresentation,
    LightweightConv,
    ODConv,
    PartialFrequencyDynamicConv,
    PixelDynamicConv,
    RotatedConv,
    SelectiveKernel,
    SequenceDynamicConv,
    SpectralNormConv,
    SpectralNormDense,
    SqueezeExcite,
    Warehouse,
    WarehouseConv,
    WarehouseDense,
)
from dyn.nnx.models import (
    ACGAN,
    CRNN,
    FCN,
    VGG,
    VGG16,
    Autoencoder,
    Classifier,
    ConvNeXt,
    DeepLabV3Plus,
    DyMN,
    EfficientNet,
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetLite0,
    MobileNetV2,
    MobileNetV3,
    Net1,
    Net2,
    PooledConv,
    RedNet,
    RedNet26,
    RedNet38,
    RedNet50,
    RedNet101,
    RedNet152,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    SeriesNet,
    SKResNet18,
    SKResNet34,
    SKResNet50,
    SKResNeXt50,
)
from dyn.nnx.module import FromLinen, Modes, Scope
from dyn.nnx.variables import Attention, Loss, load_linen, set_blend, set_temperature, to_linen

__all__ = [
    "ACGAN",
    "CBAM",
    "CRNN",
    "FCN",
    "VGG",
    "VGG16",
    "Attention",
    "Autoencoder",
    "Classifier",
    "CondConv",
    "CondDense",
    "Conv",
    "ConvModule",
    "ConvNeXt",
    "CoordinateAttention",
    "DCDConv",
    "DCDDense",
    "DecoupledDynamicFilter",
    "DeepLabV3Plus",
    "DeformableAggregation",
    "DeformableConv",
    "DenseModule",
    "DyMN",
    "DynamicConv",
    "DynamicDense",
    "DynamicReLU",
    "EfficientChannelAttention",
    "EfficientNet",
    "EfficientNetB0",
    "EfficientNetB1",
    "EfficientNetLite0",
    "FDConv",
    "FeatureModule",
    "FrequencyDynamicConv",
    "FromLinen",
    "GatedConv",
    "Involution",
    "KernelRepresentation",
    "LightweightConv",
    "Loss",
    "MobileNetV2",
    "MobileNetV3",
    "Modes",
    "Net1",
    "Net2",
    "NetworkModule",
    "ODConv",
    "PartialFrequencyDynamicConv",
    "PixelDynamicConv",
    "PooledConv",
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
    "RotatedConv",
    "SKResNeXt50",
    "SKResNet18",
    "SKResNet34",
    "SKResNet50",
    "Scope",
    "SelectiveKernel",
    "SequenceDynamicConv",
    "SeriesNet",
    "SpectralNormConv",
    "SpectralNormDense",
    "SqueezeExcite",
    "Warehouse",
    "WarehouseConv",
    "WarehouseDense",
    "load_linen",
    "set_blend",
    "set_temperature",
    "to_linen",
]
