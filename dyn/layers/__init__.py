"""Dynamic convolutions, drop-in for `flax.linen.Conv`.

Every layer takes `nn.Conv`'s fields first, with the same names, order and meaning, and one positional
input; the method's own fields follow. What they share:

* **context** `layer(x, context=c)`: what attention looks at. None: the mean of the layer's own input
  over space. `[*batch, D]`: any vector, for instance a block's input, or a label's embedding.
* **temperature** is the variable `temperature` of the collection `attention`, one for each layer;
  `dyn.schedules.set_temperature(variables, t)` sets them all. It may be traced: annealing costs one
  compilation in all. It is 1 where the collection is not given.
* **training or inference** is not passed: norms inside attention use batch statistics exactly when the
  collection `batch_stats` is mutable, unless `use_running_average` says otherwise.
* **what a layer decided** is sown into `intermediates` as `weights`; auxiliary losses into `losses`.

Which one to take:

* a mixture of K kernels for each input: `DynamicConv` (one softmax), `ODConv` (it also weighs positions,
  channels and filters), `CondConv` (a sum that a whole block can route alike);
* about as many parameters as a static network: `ODConv(num_kernels=1)`, `DCDConv`, `WarehouseConv`, `FDConv`;
* another kernel at each place of a picture, for dense prediction: `PixelDynamicConv`, with
  `KernelRepresentation` where layers shall know what the layers before them saw;
* a network whose parts are switched off, to be read or pruned: `GatedConv`;
* features that turn with the picture: `RotatedConv(pooling="max")`, or orientations by attention;
* the cheapest change of a static network: `SqueezeExcite`, or `CBAM`, behind a block;
* a discriminator: `SpectralNormConv`.
"""

# Channels and then places of x, for a block's last norm: from x to an x of the same shape.
from dyn.layers.cbam import CBAM

# A sum of expert kernels under sigmoid routing, which a block can share.
from dyn.layers.cond_conv import CondConv

# A static kernel and a small dynamic matrix: no kernel of a sample's own. DCDDense is its classifier.
from dyn.layers.dcd_conv import DCDConv, DCDDense

# A mixture of candidate kernels and biases under softmax attention with a temperature.
from dyn.layers.dynamic_conv import DynamicConv

# Candidate kernels that share out one kernel's spectrum: many kernels for one kernel's parameters.
from dyn.layers.fd_conv import FDConv

# Hard attention: kernels, filters or slices of a kernel are switched on or off.
from dyn.layers.gated_conv import GatedConv, density_loss, gate_report, hard_gate, prune_kernels

# Not a convolution: a state carried across layers, which gives any of them its context.
from dyn.layers.kernel_representation import KernelRepresentation, beside

# Kernels assembled from cells that several layers share; see warehouse_sharing for whole networks.
from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv

# Omni-dimensional attention: candidate kernels, kernel positions, input channels, output filters.
from dyn.layers.od_conv import ODConv

# A mixture of candidate kernels of its own at each output position.
from dyn.layers.pixel_conv import PixelDynamicConv

# A bank of rotated kernels, mixed by attention or pooled over orientations. 2-D.
from dyn.layers.rotated_conv import RotatedConv

# Kernels of spectral norm one, each candidate by itself: for discriminators, whose head is the Dense.
from dyn.layers.spectral_norm import SpectralNormConv, SpectralNormDense

# Channels of x, for a block's last norm: from x to an x of the same shape.
from dyn.layers.squeeze_excite import SqueezeExcite

# nn.Conv by the same lowerings: what a dynamic network is to be compared with.
from dyn.layers.static_conv import Conv

# share_kernels builds a network of WarehouseConvs in which the layers of a stage share their cells.
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
    "RotatedConv",
    "SpectralNormConv",
    "SpectralNormDense",
    "SqueezeExcite",
    "Warehouse",
    "WarehouseConv",
    "Warehouses",
    "beside",
    "by_stage",
    "density_loss",
    "gate_report",
    "hard_gate",
    "prune_kernels",
    "share_kernels",
]
