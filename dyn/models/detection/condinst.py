"""CondInst: instance segmentation with kernels that are generated for each object.

Tian, Shen, Chen: Conditional Convolutions for Instance Segmentation. ECCV 2020.
https://arxiv.org/abs/2003.05664. Its detector is that of Tian, Shen, Chen, He: FCOS. ICCV 2019.
https://arxiv.org/abs/1904.01355
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.fields import CheckedModule
from dyn.layers.norms import GroupNorm
from dyn.models.detection.detections import Detections
from dyn.models.detection.feature_pyramid import FeaturePyramid
from dyn.models.detection.losses import binary_cross_entropy, dice_loss, focal_loss, mean_where
from dyn.models.detection.matching import choose_at_random, gather_chosen, take
from dyn.models.detection.proposals import join_positions
from dyn.models.detection.rcnn import Targets, check_targets, make_full_sizes, make_levels
from dyn.models.detection.settings import CondInstSettings
from dyn.models.resnet import ResNet50
from dyn.models.segmentation import Backbone
from dyn.ops.boxes import box_area, clip_boxes, generalized_box_iou
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.non_max_suppression import non_max_suppression
from dyn.ops.roi_align import roi_align
from dyn.ops.sharding import automate_sharding, map_batch, shard_like

Array = jax.Array

# Stride of the first level of the pyramid, at which the generated layers run.
STRIDE = 8


class CondInst(CheckedModule):
    """A detector that predicts, for each object, the kernels of a small network that draws its mask.

    At every place of every level of a pyramid it predicts classes, the distances to the four edges of a box,
    the centre-ness, and the numbers theta of three 1x1 convolutions. These map the mask features F, which
    all objects share, and the coordinates relative to the place to the logits of the object's mask:

        m = w3 ReLU(W2 ReLU(W1 [(place - pixel) / size, F] + b1) + b2) + b3,    (W1, b1, ...) = theta

    so that the same convolution over the same features draws another object for each theta.

    Inputs, targets and results are those of `MaskRCNN`. Masks are drawn at a quarter of the picture's size
    and cropped to the boxes.

    Deviations from the authors' code: distances have no factor for each level, and start at one stride; the
    branch of the masks has group norms, so that it needs no statistics.

    Parameters: `backbone/...`, `fpn/...`, `head/{class,box}_tower<n>_{conv,norm}`,
    `head/{classes,distances,centerness,controller}`, `mask_branch/...`.

    Attributes:
        num_classes: number of classes, with the background, which is class 0 and has no logit.
        backbone: as in `FasterRCNN`.
        settings: sizes, thresholds and numbers of samples.
        freeze_norms: as in `FasterRCNN`.
        dtype: dtype of the convolutions; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import CondInst, ResNet18, make_small_condinst_settings
        >>> backbone = partial(ResNet18, num_classes=None, conv=partial(ODConv, num_kernels=2))
        >>> net = CondInst(21, backbone, make_small_condinst_settings())
        >>> x = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
        >>> detections, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> detections.masks.shape
        (2, 20, 28, 28)
    """

    num_classes: int = 91
    backbone: Backbone = partial(ResNet50, num_classes=None)
    settings: CondInstSettings = CondInstSettings()
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
        """Returns detections, or the losses if there are targets; the arguments are `FasterRCNN`'s."""
        s = self.settings
        check_targets(x, targets, True)
        levels, strides = make_levels(
            self.backbone,
            x,
            FeaturePyramid(s.features, "conv", self.dtype, name="fpn"),
            train=train and not self.freeze_norms,
            dtype=self.dtype,
            number=3,
        )
        places = list_places([level.shape[1:3] for level in levels], strides, s.interest)
        predicted = DenseHead(
            self.num_classes - 1,
            count_numbers(s.mask_features, s.mask_width, s.mask_layers),
            s,
            self.dtype,
            name="head",
        )(levels, strides)
        features = MaskBranch(s, self.dtype, name="mask_branch")(levels[:3])

        if targets is None:
            if sizes is None:
                sizes = make_full_sizes(x)
            detect = partial(detect_objects, places=places, settings=s)
            return automate_sharding(detect, features, predicted, sizes)

        compute = partial(compute_condinst_losses, places=places, settings=s)
        key = self.make_rng("sampling")
        return automate_sharding(compute, features, predicted, targets, key)


def detect_objects(
    features: Array,
    predicted: "Predictions",
    sizes: Array,
    *,
    places: "Places",
    settings: CondInstSettings,
) -> Detections:
    """Returns the best objects with their masks.

    Args:
        features: `[B, h, w, C]`, the mask features.
        predicted: the predictions of all places.
        sizes: `[B, 2]`, height and width of each picture.
        places: the places.
        settings: thresholds and numbers.
    """
    select = partial(select_places, places=places, settings=settings)
    found, index = map_batch(select, predicted, sizes)
    masks = draw_at(features, predicted, places, index, settings)
    return found._replace(masks=crop_drawn(masks, found.boxes, settings.mask_size))


def compute_condinst_losses(
    features: Array,
    predicted: "Predictions",
    targets: Targets,
    key: Array,
    *,
    places: "Places",
    settings: CondInstSettings,
) -> dict[str, Array]:
    """Computes the four losses; the arguments are those of `detect_objects`, targets and a random key."""
    s = settings
    boxes, labels = targets["boxes"].astype(predicted.distances.dtype), targets["labels"]
    objects, positive = assign_places(boxes, labels > 0, places, s.radius)
    counts = jnp.ones_like(positive)
    if "ignored" in targets:
        counts = positive | ~read_places(targets["ignored"], places)
    if "counts" in targets:
        counts &= targets["counts"][:, None]
    positive &= counts
    points = jnp.asarray(places.points, boxes.dtype)
    losses = compute_dense_losses(predicted, points, boxes, labels, objects, positive, counts, s)
    most = min(s.training_places, positive.shape[-1])
    chosen = choose_at_random(jax.random.uniform(key, positive.shape), positive, most, most)
    index, exists = gather_chosen(chosen, jnp.zeros_like(chosen), most)
    masks = draw_at(features, predicted, places, index, s)
    wanted = take(targets["masks"][:, :, 2::4, 2::4], take(objects, index))
    # Sides that are no multiples of 8 leave one row or column more on either side.
    height, width = (min(a, b) for a, b in zip(masks.shape[-2:], wanted.shape[-2:], strict=True))
    masks, wanted = masks[..., :height, :width], wanted[..., :height, :width]
    losses["masks"] = mean_where(dice_loss(masks, wanted.astype(masks.dtype)), exists)
    return losses


def draw_at(
    features: Array,
    predicted: "Predictions",
    places: "Places",
    index: Array,
    settings: CondInstSettings,
) -> Array:
    """Returns the probabilities `[B, K, 2 h, 2 w]` of the masks of places with the numbers `[B, K]`."""
    points, interest = (
        jnp.asarray(a, predicted.theta.dtype)[index] for a in (places.points, places.interest)
    )
    theta = take(predicted.theta, index)
    width, layers = settings.mask_width, settings.mask_layers
    return jax.nn.sigmoid(draw_masks(features, theta, points, interest, width=width, layers=layers))


class Places(NamedTuple):
    """The places of all levels, constants of a program.

    Attributes:
        points: `[N, 2]`, x and y in pixels: the centres of what features cover.
        strides: `[N]`.
        interest: `[N]`, the largest distance of an edge from a place of the level.
        ranges: `[N, 2]`, the smallest and the largest distance of the farthest edge.
    """

    points: np.ndarray
    strides: np.ndarray
    interest: np.ndarray
    ranges: np.ndarray


class Predictions(NamedTuple):
    """The predictions of all places.

    Attributes:
        logits: `[B, N, classes]`, without the background.
        distances: `[B, N, 4]` to the left, upper, right and lower edge, in pixels.
        centerness: `[B, N]`, logits.
        theta: `[B, N, T]`, the numbers of the generated layers.
    """

    logits: Array
    distances: Array
    centerness: Array
    theta: Array


class DenseHead(nn.Module):
    """Two towers of convolutions, shared by all levels, and the four predictions."""

    classes: int
    numbers: int
    settings: CondInstSettings
    dtype: Any = None

    @nn.compact
    def __call__(self, levels: Sequence[Array], strides: Sequence[int]) -> Predictions:
        """Returns the predictions at all places, level by level, row by row."""
        s = self.settings
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
        )
        norm = partial(GroupNorm, num_groups=s.groups, dtype=self.dtype)
        towers = [
            [
                (
                    conv(s.features, name=f"{name}_tower{n}_conv"),
                    norm(name=f"{name}_tower{n}_norm"),
                )
                for n in range(1, s.tower_layers + 1)
            ]
            for name in ("class", "box")
        ]
        rare = nn.initializers.constant(-math.log(99))  # a probability of 1 %
        classes = conv(self.classes, bias_init=rare, name="classes")
        distances = conv(4, bias_init=nn.initializers.ones, name="distances")
        centerness = conv(1, name="centerness")
        controller = conv(self.numbers, name="controller")
        found = []
        for level, stride in zip(levels, strides, strict=True):
            of_class, of_box = (run_tower(tower, level) for tower in towers)
            predictions = (
                classes(of_class),
                nn.relu(distances(of_box)) * stride,
                centerness(of_box),
                controller(of_box),
            )
            wide = float32_or_wider(level)
            found.append([join_positions(a.astype(wide), a.shape[-1]) for a in predictions])
        logits, edges, centre, theta = (
            jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True)
        )
        return Predictions(logits, edges, centre[..., 0], theta)


class MaskBranch(nn.Module):
    """The features of the three finest levels, added up at the finest, and convolutions."""

    settings: CondInstSettings
    dtype: Any = None

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> Array:
        """Returns `[B, h, w, mask_features]` of the levels `[B, h, w, C]`, from fine to coarse."""
        s = self.settings
        conv = partial(
            nn.Conv,
            s.mask_branch,
            (3, 3),
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
        )
        norm = partial(GroupNorm, num_groups=s.groups, dtype=self.dtype)
        total = None
        for n, level in enumerate(levels, 1):
            y = nn.relu(norm(name=f"level{n}_norm")(conv(name=f"level{n}_conv")(level)))
            if total is None:
                total = y
                continue
            y = jax.image.resize(y, (*total.shape[:3], y.shape[-1]), "bilinear")
            total += shard_like(y.astype(total.dtype), total)
        for n in range(1, s.mask_branch_layers + 1):
            total = nn.relu(norm(name=f"norm{n}")(conv(name=f"conv{n}")(total)))
        return nn.Conv(s.mask_features, (1, 1), dtype=self.dtype, name="features")(total)


def run_tower(tower: Sequence[tuple[nn.Module, nn.Module]], x: Array) -> Array:
    """Returns ReLU(norm(conv(x))), for each pair in turn."""
    for conv, norm in tower:
        x = nn.relu(norm(conv(x)))
    return x


def list_places(sizes: Sequence[Sequence[int]], strides: Sequence[int], interest: float) -> Places:
    """Returns the places of levels with these sizes `(h, w)` and strides."""
    points, of_level, ranges = [], [], []
    for n, ((h, w), stride) in enumerate(zip(sizes, strides, strict=True)):
        x, y = np.meshgrid(np.arange(w) * stride + stride / 2, np.arange(h) * stride + stride / 2)
        points.append(np.stack([x.ravel(), y.ravel()], axis=-1))
        of_level.append(np.full(h * w, stride))
        low = 0 if n == 0 else stride * interest / 2
        high = np.inf if n == len(sizes) - 1 else stride * interest
        ranges.append(np.tile([low, high], (h * w, 1)))
    stride = np.concatenate(of_level)
    return Places(np.concatenate(points), stride, stride * interest, np.concatenate(ranges))


def read_places(mask: Array, places: Places) -> Array:
    """Returns the values `[B, N]` of a mask `[B, H, W]` at places, and its last ones for those beyond it."""
    columns, rows = places.points.astype(int).T
    height, width = mask.shape[1:]
    return mask[:, np.minimum(rows, height - 1), np.minimum(columns, width - 1)]


def measure_distances(points: Array, boxes: Array) -> Array:
    """Returns the distances from points `[..., 2]` to the left, upper, right and lower edge, `[..., 4]`."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def assign_places(
    boxes: Array, exists: Array, places: Places, radius: float
) -> tuple[Array, Array]:
    """Returns the object of each place.

    A place is an object's if it lies in its box, within `radius` strides of the box's centre on both axes,
    and if the farthest edge is at a distance that belongs to the level. Of several objects the smallest wins.

    Args:
        boxes: `[B, G, 4]`.
        exists: bool `[B, G]`.
        places: the places.
        radius: in strides.

    Returns:
        The number of the object, int32 `[B, N]`, and whether there is one, bool `[B, N]`.
    """
    dtype = boxes.dtype
    points = jnp.asarray(places.points, dtype)
    ranges = jnp.asarray(places.ranges, dtype)
    distances = measure_distances(points, boxes[:, :, None])
    centres = (boxes[:, :, None, :2] + boxes[:, :, None, 2:]) / 2
    offsets = jnp.max(jnp.abs(points - centres), axis=-1)
    farthest = jnp.max(distances, axis=-1)
    fits = (jnp.min(distances, axis=-1) > 0) & exists[..., None]
    fits &= offsets < radius * jnp.asarray(places.strides, dtype)
    fits &= (farthest > ranges[:, 0]) & (farthest < ranges[:, 1])
    areas = jnp.where(fits, box_area(boxes)[..., None], jnp.inf)
    return jnp.argmin(areas, axis=1).astype(jnp.int32), jnp.any(fits, axis=1)


def compute_dense_losses(
    predicted: Predictions,
    points: Array,
    boxes: Array,
    labels: Array,
    objects: Array,
    positive: Array,
    counts: Array,
    settings: CondInstSettings,
) -> dict[str, Array]:
    """Computes the losses of classes, boxes and centre-ness, each a sum divided by the positive places.

    Args:
        predicted: the predictions.
        points: `[N, 2]`.
        boxes: `[B, G, 4]` of the objects.
        labels: int `[B, G]`.
        objects: `[B, N]`, the object of each place.
        positive: bool `[B, N]`, whether there is one.
        counts: bool `[B, N]`, whether a place has a part in the loss of classes.
        settings: those of the focal loss.
    """
    dtype = predicted.logits.dtype
    count = jnp.maximum(jnp.sum(positive), 1).astype(dtype)
    label = jnp.where(positive, take(labels, objects), 0)
    one_hot = jax.nn.one_hot(label - 1, predicted.logits.shape[-1], dtype=dtype)
    focal = focal_loss(predicted.logits, one_hot, settings.alpha, settings.gamma)
    focal = jnp.where(counts[..., None], focal, 0)

    # A box around its point, where there is no object: nothing is divided by zero.
    unit = jnp.concatenate([points - 1, points + 1], axis=-1)
    wanted = jnp.where(positive[..., None], take(boxes, objects), unit)
    overlap = generalized_box_iou(place_boxes(points, predicted.distances), wanted)
    distances = measure_distances(points, wanted)
    sides = distances.reshape(*distances.shape[:-1], 2, 2)
    ratios = jnp.min(sides, axis=-2) / jnp.max(sides, axis=-2)
    centerness = jnp.sqrt(jnp.prod(ratios, axis=-1))
    of_centre = binary_cross_entropy(predicted.centerness, centerness)

    def average(loss: Array) -> Array:
        return jnp.sum(jnp.where(positive, loss, 0)) / count

    return {
        "classifier": jnp.sum(focal) / count,
        "boxes": average(1 - overlap),
        "centerness": average(of_centre),
    }


def place_boxes(points: Array, distances: Array) -> Array:
    """Returns the boxes whose edges are at these distances from points."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def select_places(
    predicted: Predictions, sizes: Array, *, places: Places, settings: CondInstSettings
) -> tuple[Detections, Array]:
    """Returns the best boxes of all classes, without masks, and the place of each, int `[B, K]`."""
    s = settings
    batch, _, classes = predicted.logits.shape
    scores = jax.nn.sigmoid(predicted.logits) * jax.nn.sigmoid(predicted.centerness)[..., None]
    flat = jnp.sqrt(scores).reshape(batch, -1)
    score, index = lax.top_k(flat, min(s.candidates, flat.shape[-1]))
    place, label = index // classes, index % classes + 1
    points = jnp.asarray(places.points, predicted.distances.dtype)
    boxes = clip_boxes(place_boxes(points[place], take(predicted.distances, place)), sizes)
    exists = (score > s.score) & (box_area(boxes) > 0)
    kept, valid = non_max_suppression(
        boxes, score, s.detection_iou, s.detections, groups=label, valid=exists
    )
    found = Detections(
        jnp.where(valid[..., None], take(boxes, kept), 0),
        jnp.where(valid, take(score, kept), 0),
        jnp.where(valid, take(label, kept), 0).astype(jnp.int32),
    )
    return found, take(place, kept)


def count_numbers(features: int, width: int, layers: int) -> int:
    """Returns how many numbers the generated layers have: 169 for 8 features, width 8 and three layers."""
    return sum(i * o + o for i, o in list_layers(features, width, layers))


def list_layers(features: int, width: int, layers: int) -> list[tuple[int, int]]:
    """Returns the input and output features of each generated layer; the first also has two coordinates."""
    widths = [features + 2, *[width] * (layers - 1), 1]
    return list(itertools.pairwise(widths))


def draw_masks(
    features: Array, theta: Array, points: Array, sizes: Array, *, width: int, layers: int
) -> Array:
    """Returns the mask of each object, by convolutions that are its own.

    Args:
        features: `[B, h, w, C]` at stride 8.
        theta: `[B, K, T]`: the matrices of all layers, each output by output, then all biases.
        points: `[B, K, 2]`, x and y of the objects' places in pixels.
        sizes: `[B, K]`, by which relative coordinates are divided.
        width: features of the hidden layers.
        layers: number of layers.

    Returns:
        Logits `[B, K, 2 h, 2 w]`, at stride 4, in float32 or wider.
    """
    dtype = float32_or_wider(features, theta)
    features = features.astype(dtype)
    h, w, channels = features.shape[1:]
    x, y = (STRIDE * jnp.arange(n, dtype=dtype) + STRIDE / 2 for n in (w, h))
    matrices, biases = split_numbers(theta.astype(dtype), list_layers(channels, width, layers))
    # The first layer is linear in the coordinates, which need not be made for every object and pixel.
    first, scale = matrices[0], 1 / sizes[..., None]
    along_x = (points[..., :1] - x) * scale
    along_y = (points[..., 1:] - y) * scale
    z = jnp.einsum("bkoc,bhwc->bkhwo", first[..., 2:], features)
    z += jnp.einsum("bko,bkw->bkwo", first[..., 0], along_x)[:, :, None]
    z += jnp.einsum("bko,bkh->bkho", first[..., 1], along_y)[:, :, :, None]
    z += biases[0][:, :, None, None]
    for matrix, bias in zip(matrices[1:], biases[1:], strict=True):
        z = jnp.einsum("bkoi,bkhwi->bkhwo", matrix, nn.relu(z)) + bias[:, :, None, None]
    return double_size(z[..., 0])


def split_numbers(
    theta: Array, layers: Sequence[tuple[int, int]]
) -> tuple[list[Array], list[Array]]:
    """Returns the matrices `[..., O, I]` and the biases `[..., O]` of the generated layers."""
    sizes = [i * o for i, o in layers] + [o for _, o in layers]
    parts = jnp.split(theta, np.cumsum(sizes)[:-1], axis=-1)
    matrices = [
        part.reshape(*part.shape[:-1], o, i)
        for part, (i, o) in zip(parts[: len(layers)], layers, strict=True)
    ]
    return matrices, parts[len(layers) :]


def double_size(x: Array) -> Array:
    """Returns `[..., 2 h, 2 w]` by linear interpolation: y[i] = x(max(i - 1, 0) / 2)."""
    for axis in (-2, -1):
        n = x.shape[axis]
        t = np.minimum(np.maximum(np.arange(2 * n) - 1, 0) / 2, n - 1)
        weights = np.maximum(1 - np.abs(t[:, None] - np.arange(n)), 0)
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(weights.T, x.dtype), (axis, 0)), -1, axis)
    return x


def crop_drawn(masks: Array, boxes: Array, size: int) -> Array:
    """Returns the part `[B, K, size, size]` of masks `[B, K, h, w]`, at stride 4, that lies in boxes."""
    batch, number, *spatial = masks.shape
    maps = masks.reshape(batch * number, *spatial, 1)
    boxes = boxes.reshape(batch * number, 1, 4)
    align = partial(roi_align, scale=2 / STRIDE, aligned=True, method="matmul")
    return align(maps, boxes, size).reshape(batch, number, size, size)
