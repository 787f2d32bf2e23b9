"""Pretrained networks; weights from torch and from static networks; folded norms; networks as StableHLO."""

from dyn.interop.export import to_stablehlo
from dyn.interop.fold_norms import Folded, fold_norms
from dyn.interop.pretrained import Pretrained, from_pretrained, save_pretrained
from dyn.interop.torch_file import read_weights
from dyn.interop.torch_weights import SOURCES, Imported, correct_frozen_norms, from_torch
from dyn.interop.warm_start import candidate_kernels, warm_start

__all__ = [
    "SOURCES",
    "Folded",
    "Imported",
    "Pretrained",
    "candidate_kernels",
    "correct_frozen_norms",
    "fold_norms",
    "from_pretrained",
    "from_torch",
    "read_weights",
    "save_pretrained",
    "to_stablehlo",
    "warm_start",
]
