"""Pure functions of arrays: the dynamic convolution and how it is computed."""

from dyn.ops.dynamic_conv import dynamic_conv, explain
from dyn.ops.lowerings import LOWERINGS

__all__ = ["LOWERINGS", "dynamic_conv", "explain"]
