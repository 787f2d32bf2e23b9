"""Faster and Mask R-CNN: parameters, results of fixed size, losses, frozen norms, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_cases import TINY, FourStages, make_batch
from layer_cases import filled, init_shapes, shapes_of

from dyn.layers import ODConv
from dyn.layers.norms import GroupNorm
from dyn.models import FasterRCNN, MaskRCNN, MobileNetV2, RCNNSettings, ResNet18, make_targets
from dyn.models.detection.matching import IGNORED, NEGATIVE, POSITIVE, ignore_uncounted
from dyn.models.detection.proposals import Proposals
from dyn.models.detection.rcnn import sample_anchors, sample_proposals

PICTURE = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
NET = MaskRCNN(num_classes=4, backbone=FourStages, settings=TINY)


def compute_losses(net, variables, x, targets, key=0, **fields):
    rngs = {"sampling": jax.random.key(key)}
    return net.apply(variables, x, targets, rngs=rngs, **fields)


# Parameters


def test_parameters_have_fixed_names():
    backbone = partial(FourStages, conv=partial(ODConv, num_kernels=2))
    params = init_shapes(NET.copy(backbone=backbone), PICTURE)["params"]
    attended = {path.split("/")[0] for path in shapes_of(params) if "/attention/" in path}
    assert attended == {"backbone"}
    del params["backbone"]
    assert {
        path.removesuffix("/kernel") for path in shapes_of(params) if path.endswith("kernel")
    } == {
        *(f"fpn/{part}{n}" for part in ("lateral", "output") for n in (1, 2, 3, 4)),
        *(f"rpn/{part}" for part in ("hidden", "objectness", "deltas")),
        *(f"box_head/{part}" for part in ("hidden1", "hidden2", "classes", "deltas")),
        *(f"mask_head/{part}" for part in ("conv1", "upsample", "logits")),
    }


def test_shapes_do_not_depend_on_the_picture():
    small = init_shapes(NET, PICTURE)
    large = init_shapes(NET, jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32))
    assert shapes_of(small) == shapes_of(large)


# Inference


def test_detections_are_sorted_clipped_and_of_fixed_size():
    x, _ = make_batch()
    variables = filled(NET, PICTURE, scale=0.1)
    sizes = jnp.array([[64, 64], [40, 52]])
    found = jax.jit(NET.apply)(variables, x, sizes=sizes)
    assert found.boxes.shape == (2, 6, 4) and found.masks.shape == (2, 6, 8, 8)
    assert found.labels.dtype == jnp.int32
    for n, (height, width) in enumerate(sizes.tolist()):
        real = np.asarray(found.labels[n] > 0)
        boxes, scores = np.asarray(found.boxes[n]), np.asarray(found.scores[n])
        assert real.any() and (np.diff(scores) <= 0).all()
        assert not scores[~real].any() and not boxes[~real].any()
        assert (boxes >= 0).all() and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
    assert (found.masks >= 0).all() and (found.masks <= 1).all()


# Training


def test_losses_do_not_depend_on_rows_without_an_object_nor_on_the_key():
    """All samples are taken, so that the key decides nothing."""
    variables = filled(NET, PICTURE)
    (x, targets), (_, more) = make_batch(), make_batch(fill=3)
    losses = jax.jit(partial(compute_losses, NET))(variables, x, targets)
    assert set(losses) == {"objectness", "proposals", "classifier", "boxes", "masks"}
    assert all(np.isfinite(value) and value > 1e-4 for value in losses.values())
    other = jax.jit(partial(compute_losses, NET, key=1))(variables, x, more)
    for name, value in losses.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, err_msg=name)


def test_a_picture_that_does_not_count_has_no_samples():
    _, targets = make_batch()
    boxes = targets["boxes"][0]
    kinds = jnp.array([[POSITIVE, NEGATIVE], [POSITIVE, NEGATIVE]])
    both = jnp.stack([boxes, boxes])
    assert (ignore_uncounted(kinds, both, targets) == kinds).all()
    targets["counts"] = jnp.array([True, False])
    found = ignore_uncounted(kinds, both, targets).tolist()
    assert found == [[POSITIVE, NEGATIVE], [IGNORED, IGNORED]]
    key = jax.random.key(0)
    _, positive, negative = sample_anchors(targets, key, anchors=boxes, settings=TINY)
    assert (positive | negative)[0].any() and not (positive | negative)[1].any()
    proposals = Proposals(jnp.stack([boxes, boxes]), jnp.ones((2, 2)), jnp.ones((2, 2), bool))
    exists = sample_proposals(proposals, targets, key, settings=TINY)["exists"]
    assert exists[0].any() and not exists[1].any()


def test_gradients_reach_all_parameters_and_norms_stay_frozen():
    variables = filled(NET, PICTURE)
    x, targets = make_batch()
    # One picture without objects.
    targets["labels"] = targets["labels"].at[1].set(0)

    def loss(params):
        found, state = compute_losses(
            NET, {**variables, "params": params}, x, targets, train=True, mutable=["batch_stats"]
        )
        return sum(found.values()), state

    gradient, state = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("freeze", [True, False])
def test_norms_update_if_they_are_not_frozen(freeze):
    calls = []

    class Stages(FourStages.func):
        def __call__(self, x, train=False):
            calls.append(train)
            return super().__call__(x, train=train)

    backbone = partial(Stages, **FourStages.keywords)
    net = FasterRCNN(num_classes=4, backbone=backbone, settings=TINY, freeze_norms=freeze)
    jax.eval_shape(
        partial(net.apply, train=True, mutable=["batch_stats"]), init_shapes(net, PICTURE), PICTURE
    )
    assert calls[-1] is not freeze


def test_a_backbone_with_group_norms_has_no_statistics():
    backbone = partial(FourStages, norm=partial(GroupNorm, num_groups=2))
    shapes = init_shapes(FasterRCNN(num_classes=4, backbone=backbone, settings=TINY), PICTURE)
    assert set(shapes) == {"params"}


def test_mobile_networks_are_backbones():
    backbone = partial(MobileNetV2, num_classes=None, width=0.25)
    net = FasterRCNN(num_classes=4, backbone=backbone, settings=TINY)
    shapes = init_shapes(net, PICTURE)
    # The last features of each stride: 24, 32, 96 and 1280 of full width.
    laterals = [shapes["params"]["fpn"][f"lateral{n}"]["kernel"].shape[2] for n in (1, 2, 3, 4)]
    assert laterals == [8, 8, 24, 1280]
    found = jax.eval_shape(net.apply, shapes, PICTURE)
    assert found.boxes.shape == (2, 6, 4) and found.masks is None


def test_computes_in_bfloat16_and_returns_float32():
    net = NET.copy(dtype=jnp.bfloat16)
    shapes = init_shapes(net, PICTURE)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    found = jax.eval_shape(net.apply, shapes, PICTURE)
    assert found.boxes.dtype == found.scores.dtype == found.masks.dtype == jnp.float32
    _, targets = make_batch()
    losses = jax.eval_shape(partial(compute_losses, net), shapes, PICTURE, targets)
    assert {value.dtype for value in losses.values()} == {jnp.dtype(jnp.float32)}


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"labels \[B, G\]"),
        ({"masks": None}, r"masks of shape \(2, 2, 64, 64\).*got None"),
        ({"boxes": jnp.zeros((2, 3, 4))}, r"boxes of shape \(2, 2, 4\).*got \(2, 3, 4\)"),
    ],
)
def test_incomplete_targets_are_named(change, message):
    x, targets = make_batch()
    targets = {k: v for k, v in {**targets, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(compute_losses, NET), init_shapes(NET, PICTURE), x, targets)


def test_a_backbone_with_too_few_sizes_is_refused():
    net = FasterRCNN(4, partial(ResNet18, num_classes=None, output_stride=16), RCNNSettings())
    with pytest.raises(ValueError, match=r"4 sizes.*output_stride=None"):
        init_shapes(net, PICTURE)


def test_ignored_pixels_teach_no_background():
    """Two objects, of which the second has 255: its anchors and proposals are left out of the losses."""
    first, second, empty = ([4.0, 4, 20, 20], [32.0, 32, 48, 48], [32.0, 4, 48, 20])
    ids = np.zeros((1, 64, 64), np.uint8)
    ids[0, 4:20, 4:20], ids[0, 32:48, 32:48] = 1, 255
    targets, key = make_targets(ids, jnp.array([[2]])), jax.random.key(0)
    boxes = jnp.array([first, second, empty])
    _, positive, negative = sample_anchors(targets, key, anchors=boxes, settings=TINY)
    assert positive.tolist() == [[True, False, False]]
    assert negative.tolist() == [[False, False, True]]
    proposals = Proposals(boxes[None], jnp.ones((1, 3)), jnp.ones((1, 3), bool))
    rois = sample_proposals(proposals, targets, key, settings=TINY)
    sampled = np.asarray(rois["boxes"][rois["exists"]]).tolist()
    assert first in sampled and empty in sampled and second not in sampled
