"""From other networks into these: the parameters of trained static ones."""

from dyn.interop.warm_start import candidate_kernels, warm_start

__all__ = ["candidate_kernels", "warm_start"]
