"""The pyramid by hand, and sizes that are not twice as large."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.models import FeaturePyramid
from dyn.models.detection.feature_pyramid import resize_to_nearest, select_stages


def convolve(x, layer):
    kernel = np.asarray(layer["kernel"], np.float64)
    return (
        numpy_oracle.convolve(np.float64(x), kernel[None], padding=len(kernel) // 2) + layer["bias"]
    )


@pytest.mark.parametrize("sizes", [[(8, 6), (4, 3)], [(5, 7), (3, 4)]])
def test_levels_by_hand(sizes):
    stages = [random_input(2, *size, n + 2, seed=n) for n, size in enumerate(sizes)]
    net = FeaturePyramid(3)
    variables = filled(net, stages)
    params = variables["params"]
    coarse = convolve(stages[1], params["lateral2"])
    (h, w), (low, narrow) = sizes
    rows, columns = np.arange(h) * low // h, np.arange(w) * narrow // w
    fine = convolve(stages[0], params["lateral1"]) + coarse[:, rows][:, :, columns]
    last = convolve(coarse, params["output2"])
    expected = [convolve(fine, params["output1"]), last, last[:, ::2, ::2]]
    levels = jax.jit(net.apply)(variables, stages)
    for level, y in zip(levels, expected, strict=True):
        np.testing.assert_allclose(level, y, rtol=1e-4, atol=1e-5)


def test_coarser_levels_are_convolved():
    stages = [jax.ShapeDtypeStruct((1, n, n, 4), jnp.float32) for n in (16, 8, 4)]
    net = FeaturePyramid(6, extra="conv")
    variables = init_shapes(net, stages)
    assert shapes_of(variables["params"])["extra2/kernel"] == (3, 3, 6, 6)
    levels = jax.eval_shape(net.apply, variables, stages)
    assert [level.shape[1] for level in levels] == [16, 8, 4, 2, 1]
    with pytest.raises(ValueError, match="'pool', 'conv' or 'none'"):
        init_shapes(net.copy(extra="both"), stages)


def test_the_last_features_of_each_size_are_selected():
    stages = [np.zeros((1, n, n, c)) for n, c in ((32, 1), (16, 2), (8, 3), (8, 4), (4, 5))]
    assert [s.shape[-1] for s in select_stages(stages, 3)] == [2, 4, 5]
    with pytest.raises(ValueError, match="features of 5 sizes"):
        select_stages(stages, 5)


def test_nearest_features():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    assert resize_to_nearest(x, (5, 1)).ravel().tolist() == [0, 0, 1, 1, 2]
    assert resize_to_nearest(x, (6, 2))[0, :, 1, 0].tolist() == [0, 0, 1, 1, 2, 2]
