"""Imports weights from torch and from static networks; exports networks as StableHLO."""

from dyn.interop.export import to_stablehlo
from dyn.interop.torch_file import read_weights
from dyn.interop.torch_weights import SOURCES, Imported, from_torch
from dyn.interop.warm_start import candidate_kernels, warm_start

__all__ = [
    "SOURCES",
    "Imported",
    "candidate_kernels",
    "from_torch",
    "read_weights",
    "to_stablehlo",
    "warm_start",
]
