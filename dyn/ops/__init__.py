"""Pure functions of arrays: the dynamic convolution and how it is computed, and pooling there and back.

* convolution: `dynamic_conv`, the kernels of each sample in one call; `explain` says how it would be
  computed, `LOWERINGS` are the ways there are.
* pooling: `max_pool`; `max_pool_with_argmax`, which also says where the largest inputs were; `max_unpool`,
  which puts values back there.
"""

from dyn.ops.dynamic_conv import dynamic_conv, explain
from dyn.ops.lowerings import LOWERINGS
from dyn.ops.max_pool import max_pool, max_pool_with_argmax
from dyn.ops.max_unpool import max_unpool

__all__ = [
    "LOWERINGS",
    "dynamic_conv",
    "explain",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
]
