"""Dynamic convolutions, drop-in for `flax.linen.Conv`.

Every layer takes `nn.Conv`'s fields first, with the same names, order and meaning, and one positional
input; the fields of the method follow. All layers have in common:

* **context** `layer(x, context=c)`: what attention looks at. None: the mean of the layer's own input
  over space. `[*batch, D]`: any vector, for instance the mean of a block's input, or a label's embedding.
* **temperature**: the variable `temperature` of the collection `attention`, one per layer;
  `dyn.schedules.set_temperature(variables, t)` sets them all. It may be traced, so that annealing compiles
  only once. It is 1 if the collection is not passed.
* **the norm of attention**, `attention_norm`, is 'layer' by default where the papers have a batch norm. It
  has no statistics, so that a network evaluates as it trains, and a batch of one is enough. It keeps the
  direction of the squeezed context and not its length: of a context of one number only the sign. 'batch' is
  the papers' own and the one for published weights; 'none' is neither.
* **training or inference** is not passed: batch norms inside attention use batch statistics exactly when the
  collection `batch_stats` is mutable, unless `use_running_average` overrides that. If a gradient is taken
  for their parameters while they use running statistics, a warning says so.
* **decisions** of a layer are sown into `intermediates` as `weights`, auxiliary losses into `losses`.

Choose a layer for

* a mixture of K kernels for each input: `DynamicConv` (one softmax), `ODConv` (it also weights positions,
  channels and filters), `CondConv` (a weighted sum whose routing a whole block can share);
* about as many parameters as a static network: `ODConv(num_kernels=1)`, `DCDConv`, `WarehouseConv`, `FDConv`;
* a different kernel at each position, for dense prediction: `PixelDynamicConv`, with
  `KernelRepresentation` to carry information from layer to layer;
* a kernel per position and no mixing of channels, with far fewer parameters: `Involution`,
  `DecoupledDynamicFilter`; for sequences `SequenceDynamicConv` and the static `LightweightConv`;
* spectrograms: `FrequencyDynamicConv`, a mixture of kernels for each frequency;
* a network whose parts are switched off, to be read or pruned: `GatedConv`;
* in place of `nn.Dense`, for a classifier or for tokens (`token_axes=1`): `DynamicDense` and `CondDense`,
  mixtures of K matrices; `WarehouseDense`; `DCDDense`;
* features that rotate with the picture: `RotatedConv(pooling="max")`, or orientations by attention;
* kernels whose positions follow what is in the picture: `DeformableConv`, or in a transformer's block
  `DeformableAggregation`;
* kernels of several sizes, selected for each channel: `SelectiveKernel`;
* the cheapest change of a static network: `SqueezeExcite`, `EfficientChannelAttention`, `CBAM` or
  `CoordinateAttention`, at the end of a block;
* an activation that depends on the input: `DynamicReLU`;
* a discriminator: `SpectralNormConv`.
"""

# Scales channels and then positions, at the end of a block: from x to an x of the same shape.
from dyn.layers.cbam import CBAM

# A weighted sum of expert kernels; a block can share its sigmoid routing. CondDense is its dense layer.
from dyn.layers.cond_conv import CondConv, CondDense

# Scales channels by a weight per row and one per column: from x to an x of the same shape.
from dyn.layers.coordinate_attention import CoordinateAttention

# A static kernel and a small dynamic matrix, without per-sample kernels. DCDDense is its classifier.
from dyn.layers.dcd_conv import DCDConv, DCDDense

# A filter per position times, or plus, one per channel. Keeps the number of features.
from dyn.layers.decoupled_filter import DecoupledDynamicFilter

# Sums values at moved points by weights of each position: DCNv3 and DCNv4. It is not a convolution.
from dyn.layers.deformable_aggregation import DeformableAggregation

# Kernel positions that move and are weighted at each output position.
from dyn.layers.deformable_conv import DeformableConv

# A mixture of candidate kernels and biases under softmax attention. DynamicDense is its dense layer.
from dyn.layers.dynamic_conv import DynamicConv, DynamicDense

# An activation: the maximum of linear functions with coefficients from the input.
from dyn.layers.dynamic_relu import DynamicReLU

# Scales channels by the means of those beside them: from x to an x of the same shape.
from dyn.layers.efficient_channel_attention import EfficientChannelAttention

# Candidate kernels that divide one kernel's spectrum: many kernels for one kernel's parameters.
from dyn.layers.fd_conv import FDConv

# A mixture of candidate kernels for each frequency, or moment, of a spectrogram.
from dyn.layers.frequency_conv import FrequencyDynamicConv, PartialFrequencyDynamicConv

# Hard attention: switches kernels, filters or slices of a kernel on and off.
from dyn.layers.gated_conv import GatedConv, density_loss, gate_report, hard_gate, prune_kernels

# A kernel per position, made from the features there. Keeps the number of features.
from dyn.layers.involution import Involution

# A state carried across layers, which gives any of them its context; it is not a convolution.
from dyn.layers.kernel_representation import KernelRepresentation, append_state, beside

# Kernels assembled from cells that several layers can share. WarehouseDense is their dense layer.
from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv, WarehouseDense

# Softmax kernels for heads of channels, static and at each position (Wu et al.'s dynamic convolution).
from dyn.layers.light_conv import LightweightConv, SequenceDynamicConv

# Omni-dimensional attention: candidate kernels, kernel positions, input channels, output filters.
from dyn.layers.od_conv import ODConv

# A separate mixture of candidate kernels at each output position.
from dyn.layers.pixel_conv import PixelDynamicConv

# Puts any of them into a network that was written with nn.Conv.
from dyn.layers.replacing import ReplacedLayers, replace_convs

# A bank of rotated kernels, mixed by attention or pooled over orientations. 2-D.
from dyn.layers.rotated_conv import RotatedConv

# Paths with kernels of several dilations, weighted for each channel.
from dyn.layers.selective_kernel import SelectiveKernel

# Kernels of spectral norm one, for discriminators. SpectralNormDense is their head.
from dyn.layers.spectral_norm import SpectralNormConv, SpectralNormDense

# Scales channels, at the end of a block: from x to an x of the same shape.
from dyn.layers.squeeze_excite import SqueezeExcite

# nn.Conv by the same lowerings, for the static network of a comparison.
from dyn.layers.static_conv import Conv

# share_kernels makes a network of WarehouseConvs whose stages share their cells.
from dyn.layers.warehouse_sharing import Warehouses, by_stage, share_kernels

__all__ = [
    "CBAM",
    "CondConv",
    "CondDense",
    "Conv",
    "CoordinateAttention",
    "DCDConv",
    "DCDDense",
    "DecoupledDynamicFilter",
    "DeformableAggregation",
    "DeformableConv",
    "DynamicConv",
    "DynamicDense",
    "DynamicReLU",
    "EfficientChannelAttention",
    "FDConv",
    "FrequencyDynamicConv",
    "GatedConv",
    "Involution",
    "KernelRepresentation",
    "KernelShape",
    "LightweightConv",
    "ODConv",
    "PartialFrequencyDynamicConv",
    "PixelDynamicConv",
    "ReplacedLayers",
    "RotatedConv",
    "SelectiveKernel",
    "SequenceDynamicConv",
    "SpectralNormConv",
    "SpectralNormDense",
    "SqueezeExcite",
    "Warehouse",
    "WarehouseConv",
    "WarehouseDense",
    "Warehouses",
    "append_state",
    "beside",
    "by_stage",
    "density_loss",
    "gate_report",
    "hard_gate",
    "prune_kernels",
    "replace_convs",
    "share_kernels",
]
