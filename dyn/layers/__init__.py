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
* a network whose parts are switched off, to be read or pruned: `GatedConv`;
* features that rotate with the picture: `RotatedConv(pooling="max")`, or orientations by attention;
* the cheapest change of a static network: `SqueezeExcite`, or `CBAM`, at the end of a block;
* a discriminator: `SpectralNormConv`.
"""

# Scales channels and then positions, at the end of a block: from x to an x of the same shape.
from dyn.layers.cbam import CBAM

# A weighted sum of expert kernels; a block can share its sigmoid routing.
from dyn.layers.cond_conv import CondConv

# A static kernel and a small dynamic matrix, without per-sample kernels. DCDDense is its classifier.
from dyn.layers.dcd_conv import DCDConv, DCDDense

# A mixture of candidate kernels and biases under softmax attention with a temperature.
from dyn.layers.dynamic_conv import DynamicConv

# Candidate kernels that divide one kernel's spectrum: many kernels for one kernel's parameters.
from dyn.layers.fd_conv import FDConv

# Hard attention: switches kernels, filters or slices of a kernel on and off.
from dyn.layers.gated_conv import GatedConv, density_loss, gate_report, hard_gate, prune_kernels

# A state carried across layers, which gives any of them its context; it is not a convolution.
from dyn.layers.kernel_representation import KernelRepresentation, append_state, beside

# Kernels assembled from cells that several layers can share.
from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv

# Omni-dimensional attention: candidate kernels, kernel positions, input channels, output filters.
from dyn.layers.od_conv import ODConv

# A separate mixture of candidate kernels at each output position.
from dyn.layers.pixel_conv import PixelDynamicConv

# Puts any of them into a network that was written with nn.Conv.
from dyn.layers.replacing import ReplacedLayers, replace_convs

# A bank of rotated kernels, mixed by attention or pooled over orientations. 2-D.
from dyn.layers.rotated_conv import RotatedConv

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
    "Conv",
    "DCDConv",
    "DCDDense",
    "DynamicConv",
    "FDConv",
    "GatedConv",
    "KernelRepresentation",
    "KernelShape",
    "ODConv",
    "PixelDynamicConv",
    "ReplacedLayers",
    "RotatedConv",
    "SpectralNormConv",
    "SpectralNormDense",
    "SqueezeExcite",
    "Warehouse",
    "WarehouseConv",
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
