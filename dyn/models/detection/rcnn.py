"""Faster R-CNN and Mask R-CNN over any backbone that returns the features of its stages.

The backbone decides which convolutions are dynamic; those of the heads are static.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.fields import CheckedModule
from dyn.models.detection.detections import Detections, select_detections
from dyn.models.detection.feature_pyramid import FeaturePyramid, select_stages
from dyn.models.detection.losses import (
    compute_box_losses,
    compute_mask_loss,
    compute_proposal_losses,
    crop_masks,
    take_class,
)
from dyn.models.detection.matching import (
    IGNORED,
    POSITIVE,
    gather_chosen,
    ignore_uncounted,
    match_boxes,
    sample_kinds,
    take,
)
from dyn.models.detection.proposals import Proposals, RegionProposals, propose_boxes
from dyn.models.detection.settings import RCNNSettings
from dyn.models.resnet import ResNet50
from dyn.models.segmentation import Backbone, compute_stage_features, compute_stride
from dyn.ops.anchors import make_anchors
from dyn.ops.boxes import box_iou, encode_boxes
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.roi_align import choose_levels, multilevel_roi_align
from dyn.ops.sharding import automate_sharding, map_batch

Array = jax.Array
Targets = Mapping[str, Array]


class FasterRCNN(CheckedModule):
    """A detector in two stages: region proposals, then a class and a better box for each of them.

    Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
    NeurIPS 2015. https://arxiv.org/abs/1506.01497; with a feature pyramid, https://arxiv.org/abs/1612.03144

    Sizes and numbers are those of torchvision's `fasterrcnn_resnet50_fpn`, whose weights fit. All arrays
    have fixed sizes: proposals, samples and detections that do not exist fill them up with weight 0.

    Pictures should have sides that are multiples of 32 (of 64 for levels of exact strides); the caller
    normalises them and fills them up to the right and below. Without targets the network returns
    detections, with targets the losses.

    Parameters: `backbone/...`, `fpn/...`, `rpn/{hidden,objectness,deltas}`,
    `box_head/{hidden1,hidden2,classes,deltas}`; no shape depends on the size of the pictures.

    Attributes:
        num_classes: number of classes, with the background, which is class 0.
        backbone: makes the backbone, `partial(ResNet18, num_classes=None, conv=...)` or any callable whose
            module returns the features of its stages at strides 4, 8, 16 and 32.
        settings: sizes, thresholds and numbers of samples; `make_small_settings()` for small pictures.
        freeze_norms: whether the backbone's batch norms keep their statistics in training, as they must for a
            few pictures on each device. If not, `train` decides, and `batch_stats` must be mutable. From
            scratch, frozen norms normalise nothing: give the backbone
            `norm=partial(GroupNorm, num_groups=32)`. Batch norms inside attention follow whether
            `batch_stats` is mutable.
        dtype: dtype of the convolutions; boxes, scores and losses are in float32. None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import FasterRCNN, ResNet18
        >>> backbone = partial(ResNet18, num_classes=None, conv=partial(ODConv, num_kernels=4))
        >>> net = FasterRCNN(num_classes=21, backbone=backbone)
        >>> x = jax.ShapeDtypeStruct((2, 320, 480, 3), jnp.float32)
        >>> detections, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> detections.boxes.shape, detections.labels.shape
        ((2, 100, 4), (2, 100))
    """

    has_masks: ClassVar[bool] = False

    num_classes: int = 91
    backbone: Backbone = partial(ResNet50, num_classes=None)
    settings: RCNNSettings = RCNNSettings()
    freeze_norms: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        targets: Targets | None = None,
        sizes: Array | None = None,
        train: bool = False,
    ) -> Detections | dict[str, Array]:
        """Returns detections, or the losses if there are targets; the loss of the network is their sum.

        Args:
            x: pictures `[B, H, W, C]`.
            targets: `boxes` `[B, G, 4]`, `labels` int `[B, G]` with 0 for a row without an object, and for
                masks `masks` `[B, G, H, W]`; see `make_targets`. Two may be left out: `ignored` bool
                `[B, H, W]`, pixels that do not teach what background is; and `counts` bool `[B]`, False for
                pictures without a part in the losses, such as those that fill up a batch. Samples need the
                rng `sampling`.
            sizes: int `[B, 2]`, height and width of each picture without its filling; None for H and W.
            train: whether norms use (and update) batch statistics, unless they are frozen.

        Raises:
            ValueError: if x is not a batch of pictures, if targets are incomplete, or if the backbone does
                not return the features that are needed.
        """
        s = self.settings
        check_targets(x, targets, self.has_masks)
        levels, strides = make_levels(
            self.backbone,
            x,
            FeaturePyramid(s.features, dtype=self.dtype, name="fpn"),
            train=train and not self.freeze_norms,
            dtype=self.dtype,
        )
        if sizes is None:
            sizes = make_full_sizes(x)
        anchors = make_anchors(
            x.shape[1:3], [f.shape[1:3] for f in levels], s.anchor_sizes, s.anchor_ratios
        )
        logits, codes = RegionProposals(len(s.anchor_ratios), self.dtype, name="rpn")(levels)
        training = targets is not None
        propose = partial(
            propose_boxes,
            anchors=anchors,
            candidates=s.training_candidates if training else s.candidates,
            number=s.training_proposals if training else s.proposals,
            threshold=s.proposal_iou,
            smallest=s.proposal_side,
        )
        proposals = map_batch(propose, logits, codes, sizes)
        align = partial(align_boxes, levels[:-1], strides, settings=s)
        box_head = BoxHead(self.num_classes, s.box_features, self.dtype, name="box_head")
        mask_head = None
        if self.has_masks:
            mask_head = MaskHead(
                self.num_classes, s.mask_layers, s.mask_features, self.dtype, name="mask_head"
            )

        if targets is None:
            class_logits, box_codes = box_head(align(proposals.boxes, s.box_bins))
            scores = jnp.where(proposals.exists[..., None], jax.nn.softmax(class_logits), 0)
            select = partial(
                select_detections,
                code_weights=s.code_weights,
                smallest=s.detection_side,
                threshold=s.score,
                candidates=s.detection_candidates,
                iou=s.detection_iou,
                number=s.detections,
            )
            found = map_batch(select, scores, box_codes, proposals.boxes, sizes)
            if mask_head is None:
                return found
            masks = mask_head(align(found.boxes, s.mask_bins))
            masks = automate_sharding(take_class, masks, found.labels)
            return found._replace(masks=jax.nn.sigmoid(masks))

        anchor_key, box_key = jax.random.split(self.make_rng("sampling"))
        losses = {}
        z, code = (jnp.concatenate(parts, axis=1) for parts in (logits, codes))
        sample = partial(sample_anchors, anchors=np.concatenate(anchors), settings=s)
        samples = automate_sharding(sample, targets, anchor_key)
        losses["objectness"], losses["proposals"] = automate_sharding(
            compute_proposal_losses, z, code, *samples
        )

        sample = partial(sample_proposals, settings=s)
        rois = automate_sharding(sample, proposals, targets, box_key)
        class_logits, box_codes = box_head(align(rois["boxes"], s.box_bins))
        wanted = (rois[name] for name in ("labels", "codes", "exists"))
        losses["classifier"], losses["boxes"] = automate_sharding(
            compute_box_losses, class_logits, box_codes, *wanted
        )
        if mask_head is not None:
            # Positive samples come first; this is the most that there can be.
            most = int(s.box_samples * s.box_share)
            boxes, labels, objects = (rois[k][:, :most] for k in ("boxes", "labels", "objects"))
            mask_logits = mask_head(align(boxes, s.mask_bins))
            size = 2 * s.mask_bins
            wanted = crop_masks(targets["masks"], objects, boxes, size, aligned=s.aligned)
            losses["masks"] = automate_sharding(
                compute_mask_loss, mask_logits, wanted, labels, labels > 0
            )
        return losses


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a mask for each detection.

    He, Gkioxari, Dollár, Girshick: Mask R-CNN. ICCV 2017. https://arxiv.org/abs/1703.06870

    Sizes and numbers are those of torchvision's `maskrcnn_resnet50_fpn`, whose weights fit. Fields, inputs
    and results are those of `FasterRCNN`, with masks. `paste_masks` and `paint_detections` put these into the
    picture.

    Parameters: those of `FasterRCNN`, and `mask_head/{conv<n>,upsample,logits}`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import DynamicConv
        >>> from dyn.models import MaskRCNN, ResNet18, make_small_settings
        >>> backbone = partial(ResNet18, num_classes=None, conv=partial(DynamicConv, num_kernels=2))
        >>> net = MaskRCNN(num_classes=21, backbone=backbone, settings=make_small_settings(128))
        >>> x = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
        >>> detections, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> detections.masks.shape
        (2, 20, 28, 28)
    """

    has_masks: ClassVar[bool] = True


class BoxHead(nn.Module):
    """Two hidden layers, then the logits of the classes and a code of the box for each class."""

    num_classes: int
    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns logits `[B, S, classes]` and codes `[B, S, classes, 4]` of `[B, S, p, p, C]`."""
        # Features first, as torch flattens, so that published weights fit.
        x = jnp.moveaxis(x, -1, 2).reshape(*x.shape[:2], math.prod(x.shape[2:]))
        for n in (1, 2):
            init = nn.initializers.he_normal()
            dense = nn.Dense(self.features, dtype=self.dtype, kernel_init=init, name=f"hidden{n}")
            x = nn.relu(dense(x))
        last = partial(nn.Dense, dtype=self.dtype)
        small, smaller = (nn.initializers.normal(std) for std in (0.01, 0.001))
        logits = last(self.num_classes, kernel_init=small, name="classes")(x)
        codes = last(4 * self.num_classes, kernel_init=smaller, name="deltas")(x)
        wide = float32_or_wider(x)
        codes = codes.reshape(*codes.shape[:-1], self.num_classes, 4)
        return logits.astype(wide), codes.astype(wide)


class MaskHead(nn.Module):
    """Hidden 3x3 convolutions, a transposed one that doubles the size, and logits for each class."""

    num_classes: int
    layers: int
    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits `[B, S, 2 p, 2 p, classes]` of `[B, S, p, p, C]`."""
        init = nn.initializers.he_normal()
        leading = x.shape[:2]
        x = automate_sharding(lambda x: x.reshape(-1, *x.shape[2:]), x)
        for n in range(1, self.layers + 1):
            conv = nn.Conv(
                self.features,
                (3, 3),
                padding=1,
                dtype=self.dtype,
                kernel_init=init,
                name=f"conv{n}",
            )
            x = nn.relu(conv(x))
        # With a transposed kernel the layout is that of torch's, as of all other kernels.
        upsample = nn.ConvTranspose(
            self.features,
            (2, 2),
            (2, 2),
            padding="VALID",
            transpose_kernel=True,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(
                2.0, "fan_in", "normal", in_axis=-1, out_axis=-2
            ),
            name="upsample",
        )
        x = nn.relu(upsample(x))
        logits = nn.Conv(
            self.num_classes, (1, 1), dtype=self.dtype, kernel_init=init, name="logits"
        )
        x = logits(x).astype(float32_or_wider(x))
        return automate_sharding(lambda x: x.reshape(*leading, *x.shape[1:]), x)


def make_levels(
    backbone: Backbone,
    x: Array,
    pyramid: FeaturePyramid,
    *,
    train: bool,
    dtype: Any,
    number: int = 4,
) -> tuple[tuple[Array, ...], list[int]]:
    """Applies a backbone and a pyramid; call it inside a compact method.

    Returns:
        The levels `[B, h, w, C]`, and their strides.
    """
    stages = compute_stage_features(backbone, x, train=train, dtype=dtype)
    levels = pyramid(select_stages(stages, number))
    return levels, [compute_stride(x.shape[1:3], level.shape[1:3]) for level in levels]


def make_full_sizes(x: Array) -> Array:
    """Returns the sizes `[B, 2]` of pictures `[B, H, W, C]` without filling: H and W."""
    return jnp.broadcast_to(jnp.asarray(x.shape[1:3], jnp.int32), (x.shape[0], 2))


def align_boxes(
    levels: tuple[Array, ...],
    strides: list[int],
    boxes: Array,
    size: int,
    *,
    settings: RCNNSettings,
) -> Array:
    """Returns the features `[B, T, size, size, C]` of boxes, each from the level that fits its size."""
    first = round(math.log2(strides[0]))
    chosen = choose_levels(
        boxes, len(levels), canonical_size=settings.canonical_size, lowest_level=first
    )
    scales = [1 / stride for stride in strides[: len(levels)]]
    return multilevel_roi_align(
        levels, boxes, size, scales=scales, levels=chosen, aligned=settings.aligned
    )


def sample_anchors(
    targets: Targets, key: Array, *, anchors: Any, settings: RCNNSettings
) -> tuple[Array, Array, Array]:
    """Returns the codes that anchors should have, and the samples of the loss.

    Args:
        targets: those of the network.
        key: a random key.
        anchors: `[N, 4]`.
        settings: thresholds and numbers of samples.

    Returns:
        Codes `[B, N, 4]`, and the positive and the negative samples, bool `[B, N]` each.
    """
    s = settings
    boxes, exists = targets["boxes"], targets["labels"] > 0
    boxes = boxes.astype(float32_or_wider(boxes))
    anchors = jnp.asarray(anchors, boxes.dtype)
    matches = match_boxes(
        box_iou(boxes, anchors), exists, s.anchor_positive, s.anchor_negative, restore=True
    )
    everywhere = jnp.broadcast_to(anchors, (len(boxes), *anchors.shape))
    kinds = ignore_uncounted(matches.kinds, everywhere, targets)
    positive, negative = sample_kinds(key, kinds, s.anchor_samples, s.anchor_share)
    return encode_matches(boxes, matches.objects, anchors, positive), positive, negative


def sample_proposals(
    proposals: Proposals, targets: Targets, key: Array, *, settings: RCNNSettings
) -> dict[str, Array]:
    """Returns the proposals that the heads are trained with, the positive ones first.

    The objects themselves are proposals too, so that there is always something to learn.

    Args:
        proposals: the proposals.
        targets: those of the network.
        key: a random key.
        settings: thresholds and numbers of samples.

    Returns:
        `boxes` `[B, S, 4]`, `labels` int32 `[B, S]` (0 for the background), `objects` int32 `[B, S]`,
        `codes` `[B, S, 4]`, `exists` bool `[B, S]`.
    """
    s = settings
    boxes = targets["boxes"].astype(proposals.boxes.dtype)
    exists = targets["labels"] > 0
    candidates = jnp.concatenate([proposals.boxes, boxes], axis=1)
    usable = jnp.concatenate([proposals.exists, exists], axis=1)
    matches = match_boxes(box_iou(boxes, candidates), exists, s.box_positive, s.box_positive)
    kinds = jnp.where(usable, matches.kinds, IGNORED)
    kinds = ignore_uncounted(kinds, candidates, targets)
    chosen = sample_kinds(key, kinds, s.box_samples, s.box_share)
    index, sampled = gather_chosen(*chosen, s.box_samples)
    rois, objects = take(candidates, index), take(matches.objects, index)
    positive = sampled & (take(kinds, index) == POSITIVE)
    labels = jnp.where(positive, take(targets["labels"], objects), 0).astype(jnp.int32)
    codes = encode_matches(boxes, objects, rois, positive, s.code_weights)
    return {
        "boxes": rois,
        "labels": labels,
        "objects": objects,
        "codes": codes,
        "exists": sampled,
    }


def encode_matches(
    boxes: Array,
    objects: Array,
    anchors: Array,
    positive: Array,
    weights: tuple[float, ...] = (1, 1, 1, 1),
) -> Array:
    """Returns the codes `[B, N, 4]` of the objects of anchors, and zeros for anchors without one."""
    anchors = jnp.broadcast_to(anchors, (*objects.shape, 4))
    # The logarithm of a box without area would be minus infinity, and its gradient not a number.
    unit = jnp.asarray([0, 0, 1, 1], boxes.dtype)
    own = jnp.where(positive[..., None], take(boxes, objects), unit)
    anchors = jnp.where(positive[..., None], anchors, unit)
    return encode_boxes(own, anchors, weights)


def check_targets(x: Array, targets: Targets | None, with_masks: bool) -> None:
    """Checks names and shapes of targets.

    Raises:
        ValueError: for the first that is missing or does not fit.
    """
    if targets is None or x.ndim != 4:
        return
    labels = targets.get("labels")
    if labels is None or labels.ndim != 2:
        shape = None if labels is None else labels.shape
        raise ValueError(f"targets need labels [B, G]; got shape {shape}.")
    wanted: dict[str, tuple[int, ...]] = {"boxes": (*labels.shape, 4)}
    if with_masks:
        wanted["masks"] = (*labels.shape, *x.shape[1:3])
    for name, shape in wanted.items():
        got = targets[name].shape if name in targets else None
        if got != shape or shape[0] != x.shape[0]:
            raise ValueError(
                f"targets need {name} of shape {shape} for labels of shape {labels.shape} and pictures of "
                f"shape {x.shape}; got {got}."
            )
