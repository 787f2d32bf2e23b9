"""torchvision's detectors have a place for each of their arrays here, under their old and new names."""

import re

import jax
import numpy as np
import pytest
from layer_cases import init_shapes, shapes_of
from torchvision_detectors import list_shapes

from dyn.interop import SOURCES, correct_frozen_norms, from_torch
from dyn.interop.torch_weights import detect_source
from dyn.models import FasterRCNN, MaskRCNN
from dyn.models.detection.rcnn import MaskHead

PICTURE = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)


def make_zeros(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def rename_as_in_2019(name):
    name = re.sub(r"((?:inner|layer)_blocks\.\d)\.0", r"\1", name)
    name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
    return re.sub(
        r"mask_head\.(\d)\.0", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}", name
    )


@pytest.mark.parametrize(
    ("net", "masks", "arrays", "parameters"),
    [(FasterRCNN(), False, 295, 41_755_286), (MaskRCNN(), True, 307, 44_401_393)],
)
def test_every_array_of_a_published_detector_has_a_place(net, masks, arrays, parameters):
    shapes = list_shapes(masks=masks)
    assert len(shapes) == arrays and detect_source(shapes) == "faster_rcnn"
    assert detect_source([name for name in shapes if "body" not in name]) == "faster_rcnn"
    old = {rename_as_in_2019(name): shape for name, shape in shapes.items()}
    assert len(old) == arrays and ("roi_heads.mask_head.mask_fcn1.weight" in old) == masks
    variables = init_shapes(net, PICTURE)
    counted = shapes_of(variables["params"])
    norms = [path.removesuffix("scale") for path in counted if path.endswith("/scale")]
    sizes = [np.prod(s) for path, s in counted.items() if not path.startswith(tuple(norms))]
    assert sum(sizes) == parameters
    for names in (shapes, old):
        imported = from_torch(variables, make_zeros(names))
        assert imported.left_out == imported.kept == ()


def test_a_transposed_kernel_keeps_its_taps():
    """y[2i + a, 2j + b, o] = sum_c x[i, j, c] W[c, o, a, b] of a torch array W."""
    rng = np.random.default_rng(0)
    head, x = MaskHead(2, 0, 3), rng.standard_normal((1, 1, 2, 2, 5)).astype(np.float32)
    weights = {
        "roi_heads.mask_predictor.conv5_mask.weight": rng.standard_normal((5, 3, 2, 2)),
        "roi_heads.mask_predictor.conv5_mask.bias": rng.standard_normal(3),
        "roi_heads.mask_predictor.mask_fcn_logits.weight": rng.standard_normal((2, 3, 1, 1)),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": np.zeros(2),
    }
    variables = {"params": {"mask_head": init_shapes(head, x)["params"]}}
    imported = from_torch(variables, weights, SOURCES["faster_rcnn"]).variables
    logits = jax.jit(head.apply)({"params": imported["params"]["mask_head"]}, x)
    kernel, bias, last, _ = weights.values()
    y = np.einsum("ijc,coab->iajbo", x[0, 0], kernel).reshape(4, 4, 3) + bias
    expected = np.einsum("ijo,po->ijp", np.maximum(y, 0), last[..., 0, 0])
    np.testing.assert_allclose(logits[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_norms_without_epsilon_are_corrected():
    weights = {
        "a.bn1.weight": np.float32([2, 3]),
        "a.bn1.running_var": np.float32([1e-5, 2]),
        "a.conv.weight": np.ones(3, np.float32),
    }
    corrected = correct_frozen_norms(weights)
    var = weights["a.bn1.running_var"]
    np.testing.assert_allclose(
        corrected["a.bn1.weight"] / np.sqrt(var + 1e-5), [2, 3] / np.sqrt(var), rtol=1e-6
    )
    assert corrected["a.conv.weight"] is weights["a.conv.weight"]
    assert corrected["a.bn1.weight"].dtype == np.float32
