"""The fused kernel on the shards of a batch, in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batch_meshes import MESHES, make_mesh
from fused_cases import CASES, USUAL, compute_fused, make_arrays
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", MESHES)
def test_the_kernel_computes_shards_where_they_are(name, monkeypatch):
    monkeypatch.setitem(CASES, "four samples", USUAL | dict(batch=4, scales=True))
    x, w, mix, taps, channels, filters = arrays = make_arrays("four samples")
    want = compute_fused("four samples", jnp.float32, arrays)
    shape, types = MESHES[name]
    mesh = make_mesh(shape, types)

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, P(*axes)))

    features = "model" if "model" in name else None
    on_mesh = (
        put(x, "data"),
        put(w, None, None, None, None, features),
        put(mix, "data"),
        put(taps, "data"),
        put(channels, "data"),
        put(filters, "data"),
    )
    with jax.set_mesh(mesh):
        got = compute_fused("four samples", jnp.float32, on_mesh)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
