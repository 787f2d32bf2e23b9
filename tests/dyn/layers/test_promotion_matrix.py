"""Every layer, form and lowering where JAX may promote neither ranks nor dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import LAYERS, trace_strictly
from sharded_steps import CASES

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_every_layer(name, dtype):
    case, fields = CASES[name]
    trace_strictly(case.layer(**fields), jax.ShapeDtypeStruct(case.shape, dtype))


FORMS = [
    ("ODConv", dict(num_kernels=1)),
    ("ODConv", dict(attention_norm="batch")),
    ("DCDConv", dict(attention_norm="layer")),
    ("WarehouseConv", dict(out_ratio=0.5)),
    ("PixelDynamicConv", dict(attention="image", strides=2)),
    ("GatedConv, kernels", dict(static=True)),
    ("GatedConv, slices", dict(static=True)),
    ("GatedConv, filters", dict(active=2)),
    ("RotatedConv, max", dict(pooling="mean")),
    ("RotatedConv, max", dict(pooling="attention")),
    ("SpectralNormConv", dict(num_kernels=1)),
    ("CBAM", dict(spatial_norm="none")),
]


@pytest.mark.parametrize(("name", "fields"), FORMS)
def test_every_form(name, fields):
    case = LAYERS[name]
    trace_strictly(case.layer(**fields), jax.ShapeDtypeStruct(case.shape, jnp.float32))


LOWERINGS = ("taps", "patches", "outputs", "shared", "samples", "reference")


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["Conv", "ODConv", "WarehouseConv", "FDConv, local"])
def test_every_lowering_and_geometry(name, lowering):
    case = CASES[name][0]
    x = jax.ShapeDtypeStruct((4, 8, 6, 4), jnp.float32)
    for fields in (
        {"strides": 2},
        {"padding": "CIRCULAR", "use_bias": False},
        {"mask": np.ones((3, 3, 4, 6))},
        {"feature_group_count": 2},
    ):
        try:
            layer = case.layer(6, (3, 3), **fields, lowering=lowering)
            trace_strictly(layer, x)
        except TypeError:  # the layer has no lowerings
            assert not hasattr(case.layer(), "lowering")
        except ValueError as error:  # a lowering, a group or a mask that the method cannot do
            assert "promotion" not in str(error) and "broadcast" not in str(error), error
