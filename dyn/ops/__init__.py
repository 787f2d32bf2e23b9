"""Pure functions of arrays: the dynamic convolution in several equal lowerings, and max pooling.

* convolution: `dynamic_conv` convolves each sample with its own kernel; `explain` prints the lowering
  that it would choose and why; `LOWERINGS` names all of them.
* kernels of positions: `convolve_positions` convolves each channel with a kernel of its own at each one.
* deformable convolution: `deform_conv`, whose kernel positions move; `deform_aggregate`, which sums
  inputs at moved points by weights of each position.
* pooling: `max_pool`; `max_pool_with_argmax`, which also returns the positions of the maxima;
  `max_unpool`, which puts values back there.
"""

from dyn.ops.deform_conv import deform_aggregate, deform_conv
from dyn.ops.dynamic_conv import dynamic_conv, explain
from dyn.ops.lowerings import LOWERINGS
from dyn.ops.max_pool import max_pool, max_pool_with_argmax
from dyn.ops.max_unpool import max_unpool
from dyn.ops.positions import convolve_positions

__all__ = [
    "LOWERINGS",
    "convolve_positions",
    "deform_aggregate",
    "deform_conv",
    "dynamic_conv",
    "explain",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
]
