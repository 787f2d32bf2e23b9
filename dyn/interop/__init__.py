"""From other networks into these: torch's weights, and the parameters of trained static networks."""

from dyn.interop.torch_file import read_weights
from dyn.interop.torch_weights import SOURCES, Imported, from_torch
from dyn.interop.warm_start import candidate_kernels, warm_start

__all__ = [
    "SOURCES",
    "Imported",
    "candidate_kernels",
    "from_torch",
    "read_weights",
    "warm_start",
]
