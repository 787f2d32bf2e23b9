"""Pure functions of arrays: dynamic convolution in several equal lowerings, pooling, boxes of objects.

* convolution: `dynamic_conv` convolves each sample with its own kernel; `explain` prints the lowering
  that it would choose and why; `LOWERINGS` names all of them.
* kernels of positions: `convolve_positions` convolves each channel with a kernel of its own at each one.
* deformable convolution: `deform_conv`, whose kernel positions move; `deform_aggregate`, which sums
  inputs at moved points by weights of each position.
* pooling: `max_pool`; `max_pool_with_argmax`, which also returns the positions of the maxima;
  `max_unpool`, which puts values back there.
* boxes: `box_area`, `box_iou`, `generalized_box_iou`, `encode_boxes` and `decode_boxes` relative to
  anchors, `clip_boxes`, `find_mask_boxes`, `find_covered_share`; `make_anchors` for a pyramid;
  `non_max_suppression`.
* features of boxes: `roi_align`, and `multilevel_roi_align` from the levels that `choose_levels` chooses;
  `paste_masks` puts masks of boxes back into the picture.
"""

from dyn.ops.anchors import make_anchors
from dyn.ops.boxes import (
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    find_covered_share,
    find_mask_boxes,
    generalized_box_iou,
)
from dyn.ops.deform_conv import deform_aggregate, deform_conv
from dyn.ops.dynamic_conv import dynamic_conv, explain
from dyn.ops.lowerings import LOWERINGS
from dyn.ops.max_pool import max_pool, max_pool_with_argmax
from dyn.ops.max_unpool import max_unpool
from dyn.ops.non_max_suppression import non_max_suppression
from dyn.ops.paste_masks import paste_masks
from dyn.ops.positions import convolve_positions
from dyn.ops.roi_align import choose_levels, multilevel_roi_align, roi_align

__all__ = [
    "LOWERINGS",
    "box_area",
    "box_iou",
    "choose_levels",
    "clip_boxes",
    "convolve_positions",
    "decode_boxes",
    "deform_aggregate",
    "deform_conv",
    "dynamic_conv",
    "encode_boxes",
    "explain",
    "find_covered_share",
    "find_mask_boxes",
    "generalized_box_iou",
    "make_anchors",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "multilevel_roi_align",
    "non_max_suppression",
    "paste_masks",
    "roi_align",
]
