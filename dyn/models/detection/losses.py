"""Losses of detectors, over the samples of a whole batch.

Sums and numbers of samples are those of the batch, on all devices of a compiled step.
"""

import jax
import jax.numpy as jnp

from dyn.ops.roi_align import Grid, interpolate, place_points
from dyn.ops.sharding import automate_sharding

Array = jax.Array

# Numbers of the pictures' masks that are gathered at once, for one picture.
CHUNK = 2**22


def smooth_l1(difference: Array, beta: float = 1 / 9) -> Array:
    """Returns d^2 / (2 beta) where |d| < beta, and |d| - beta / 2 elsewhere."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, difference**2 / (2 * beta), size - beta / 2)


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Returns -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z))."""
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def focal_loss(logits: Array, targets: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    """Returns the cross-entropy, weighted by how wrong each prediction is.

        alpha_t (1 - p_t)^gamma (-log p_t)

    with p_t the probability of the target and alpha_t = alpha for targets of 1, 1 - alpha for 0.

    Source:
        Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection. ICCV 2017.
        https://arxiv.org/abs/1708.02002
    """
    probability = jax.nn.sigmoid(logits)
    wrong = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * binary_cross_entropy(logits, targets)


def dice_loss(probabilities: Array, targets: Array) -> Array:
    """Returns 1 - 2 sum(p t) / (sum p^2 + sum t^2 + 1e-5) over the last two axes.

    Source:
        Milletari, Navab, Ahmadi: V-Net. 3DV 2016. https://arxiv.org/abs/1606.04797
    """
    axes = (-2, -1)
    both = jnp.sum(probabilities * targets, axes)
    return 1 - 2 * both / (jnp.sum(probabilities**2, axes) + jnp.sum(targets**2, axes) + 1e-5)


def mean_where(values: Array, weights: Array) -> Array:
    """Returns sum(values * weights) / sum(weights), or 0 if no weight is left."""
    weights = weights.astype(values.dtype)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)


def compute_proposal_losses(
    logits: Array, codes: Array, targets: Array, positive: Array, negative: Array
) -> tuple[Array, Array]:
    """Computes the losses of the region proposals.

    Args:
        logits: `[B, N]`, that an anchor has an object.
        codes: `[B, N, 4]`.
        targets: `[B, N, 4]`, the codes of the anchors' objects.
        positive, negative: the sampled anchors, bool `[B, N]`.

    Returns:
        objectness: the mean of the cross-entropy over the samples.
        boxes: the sum of the smooth L1 loss over the positive ones, divided by the number of all samples.
    """
    sampled = positive | negative
    cross_entropy = binary_cross_entropy(logits, positive.astype(logits.dtype))
    boxes = jnp.sum(smooth_l1(codes - targets), axis=-1)
    count = jnp.maximum(jnp.sum(sampled), 1).astype(logits.dtype)
    boxes = jnp.sum(jnp.where(positive, boxes, 0)) / count
    return mean_where(cross_entropy, sampled), boxes


def compute_box_losses(
    logits: Array, codes: Array, labels: Array, targets: Array, exists: Array
) -> tuple[Array, Array]:
    """Computes the losses of the box head.

    Args:
        logits: `[B, S, classes]`.
        codes: `[B, S, classes, 4]`.
        labels: int `[B, S]`, 0 for the background.
        targets: `[B, S, 4]`, codes.
        exists: bool `[B, S]`, whether there is such a sample.

    Returns:
        classifier: the mean of the cross-entropy over the samples.
        boxes: the sum of the smooth L1 loss of the true class over the positive ones, divided by the
            number of all samples.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    index = labels[..., None]
    classifier = -jnp.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    of_class = jnp.take_along_axis(codes, index[..., None], axis=-2)[..., 0, :]
    boxes = jnp.sum(smooth_l1(of_class - targets), axis=-1)
    count = jnp.maximum(jnp.sum(exists), 1).astype(logits.dtype)
    boxes = jnp.sum(jnp.where(exists & (labels > 0), boxes, 0)) / count
    return mean_where(classifier, exists), boxes


def compute_mask_loss(logits: Array, targets: Array, labels: Array, positive: Array) -> Array:
    """Computes the mean cross-entropy of masks of the true class, over positive samples and pixels.

    Args:
        logits: `[B, S, M, M, classes]`.
        targets: `[B, S, M, M]`, from 0 to 1.
        labels: int `[B, S]`.
        positive: bool `[B, S]`.
    """
    of_class = take_class(logits, labels)
    loss = jnp.mean(binary_cross_entropy(of_class, targets), axis=(-2, -1))
    return mean_where(loss, positive)


def take_class(masks: Array, labels: Array) -> Array:
    """Returns the masks of one class each, `[B, S, M, M]` of `[B, S, M, M, classes]`."""
    index = labels[..., None, None, None]
    return jnp.take_along_axis(masks, index, axis=-1)[..., 0]


def crop_masks(
    masks: Array, objects: Array, boxes: Array, size: int, *, aligned: bool = False
) -> Array:
    """Returns the part of an object's mask in each box: ROIAlign with as many points as pixels.

    Args:
        masks: `[B, G, H, W]`, true or not zero where the object is.
        objects: int `[B, S]`, the number of each box's object.
        boxes: `[B, S, 4]`, within the picture.
        size: M.
        aligned: whether the value of a pixel is at its centre.

    Returns:
        float32 `[B, S, M, M]`, from 0 to 1.
    """
    height, width = masks.shape[-2:]
    grid = Grid((size, size), 0, aligned)
    # One more than fit into the picture, for a box that rounding has made a little wider.
    most = [-(-length // size) + 1 for length in (height, width)]

    def crop(masks: Array, objects: Array, boxes: Array) -> Array:
        def crop_one(one: tuple[Array, Array]) -> Array:
            index, box = one
            rows = place_points(box[1], box[3], 1, height, size, grid, most[0])
            columns = place_points(box[0], box[2], 1, width, size, grid, most[1])
            mask = masks[index].astype(box.dtype)
            y = interpolate(rows, height) @ mask
            return y @ interpolate(columns, width).T

        chunk = max(1, CHUNK // (height * width))
        return jax.lax.map(crop_one, (objects, boxes), batch_size=min(chunk, boxes.shape[0]))

    def crop_all(masks: Array, objects: Array, boxes: Array) -> Array:
        boxes = jax.lax.stop_gradient(boxes)
        return jax.vmap(crop)(masks, objects, boxes)

    return automate_sharding(crop_all, masks, objects, boxes)
