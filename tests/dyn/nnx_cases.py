"""The catalogue of layers as NNX modules, made from the cases of the Linen layers."""

from functools import partial

from layer_cases import CONVOLUTIONS, DENSE, LAYERS

import dyn.nnx
from dyn.nnx import ConvModule


def find_module(linen):
    """Returns the NNX class of a Linen class; makes one for that of the guide to adding a layer."""
    if hasattr(dyn.nnx, linen.__name__):
        return getattr(dyn.nnx, linen.__name__)

    class Mine(ConvModule, linen=linen):
        """A layer of one's own."""

    return Mine


def make_module(name, *, rngs, **fields):
    """Makes the NNX module of a case of `layer_cases`, for inputs like those of the case."""
    case = LAYERS[name]
    make = case.make if isinstance(case.make, partial) else partial(case.make)
    features = case.shape[-1]
    sizes = (features, *case.args) if name in CONVOLUTIONS or name in DENSE else (features,)
    return find_module(make.func)(*sizes, **{**make.keywords, **fields}, rngs=rngs)
