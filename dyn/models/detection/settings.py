"""The numbers of the detectors: sizes, thresholds, samples."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RCNNSettings:
    """The numbers of `FasterRCNN` and `MaskRCNN`; the defaults are torchvision's, for pictures of 800 pixels.

    `dataclasses.replace(settings, detections=20)` changes some of them.

    Attributes:
        anchor_sizes: side of the square anchor of each level of the pyramid, in pixels.
        anchor_ratios: height divided by width of the anchors at each position.
        features: features of the pyramid and of the region proposals' hidden layer.
        anchor_positive: an anchor whose best IoU is at least this is positive.
        anchor_negative: an anchor whose best IoU is below this is negative; those between are left out.
        anchor_samples: number of anchors of a picture in the losses.
        anchor_share: largest share of positive ones among them.
        candidates: number of boxes of each level before non-maximum suppression, with the best scores.
        proposals: number of boxes of a picture after it.
        training_candidates: `candidates` where there are targets.
        training_proposals: `proposals` where there are targets.
        proposal_iou: threshold of that suppression.
        proposal_side: smallest side of a proposal, in pixels.
        box_positive: a proposal is an object's if its best IoU is at least this, and background otherwise.
        box_samples: number of proposals of a picture in the losses.
        box_share: largest share of positive ones among them.
        box_bins: the box head's features are `box_bins` x `box_bins`.
        box_features: size of its two hidden layers.
        code_weights: weights of its codes, see `dyn.ops.encode_boxes`.
        aligned: whether ROIAlign takes values to be at the centres of features and pixels, see
            `dyn.ops.roi_align`. Without it, as in torchvision, masks are learned half a pixel from where they
            are pasted, which counts in small pictures.
        canonical_size: side of a box that belongs to level 4, of stride 16, in pixels.
        score: smallest score of a detection.
        detection_iou: threshold of the suppression among detections of a class.
        detection_candidates: number of boxes of all classes before it, with the best scores.
        detection_side: smallest side of a detection, in pixels.
        detections: number K of detections of a picture.
        mask_bins: the mask head's features are `mask_bins` x `mask_bins`, and masks twice as large.
        mask_layers: number of its hidden 3x3 convolutions.
        mask_features: their features.
    """

    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    features: int = 256
    anchor_positive: float = 0.7
    anchor_negative: float = 0.3
    anchor_samples: int = 256
    anchor_share: float = 0.5
    candidates: int = 1000
    proposals: int = 1000
    training_candidates: int = 2000
    training_proposals: int = 2000
    proposal_iou: float = 0.7
    proposal_side: float = 1e-3
    box_positive: float = 0.5
    box_samples: int = 512
    box_share: float = 0.25
    box_bins: int = 7
    box_features: int = 1024
    code_weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    aligned: bool = False
    canonical_size: float = 224
    score: float = 0.05
    detection_iou: float = 0.5
    detection_candidates: int = 2000
    detection_side: float = 1e-2
    detections: int = 100
    mask_bins: int = 14
    mask_layers: int = 4
    mask_features: int = 256


def make_small_settings(side: int = 128) -> RCNNSettings:
    """Returns settings for pictures of 128 to 192 pixels, for a computer without an accelerator.

    Args:
        side: side of the pictures, to which the levels of the boxes are adapted.
    """
    return RCNNSettings(
        anchor_sizes=(8, 16, 32, 64, 128),
        features=64,
        anchor_samples=128,
        candidates=256,
        proposals=128,
        training_candidates=256,
        training_proposals=128,
        box_samples=64,
        box_features=256,
        aligned=True,
        canonical_size=side / 2.3,
        detection_candidates=256,
        detections=20,
        mask_layers=2,
        mask_features=64,
    )


@dataclasses.dataclass(frozen=True)
class CondInstSettings:
    """The numbers of `CondInst`; the defaults are its authors', for pictures of 800 pixels.

    Attributes:
        features: features of the pyramid and of the towers.
        tower_layers: number of 3x3 convolutions of each tower.
        groups: groups of their norms.
        interest: a level of stride s has the objects whose farthest edge is s interest / 2 to s interest away
            from a place; the first level also nearer ones, the last also farther ones.
        radius: largest distance of a place from the centre of its object, in strides.
        mask_features: features that the generated layers see, without the two coordinates.
        mask_width: features of the hidden generated layers.
        mask_layers: number of generated layers, from two.
        mask_branch: features of the branch that makes the mask features.
        mask_branch_layers: number of its 3x3 convolutions.
        training_places: number of positive places of a picture in the loss of the masks.
        alpha: weight of positives in the focal loss.
        gamma: its exponent.
        score: smallest score of a detection.
        candidates: number of boxes of all classes before suppression, with the best scores.
        detection_iou: threshold of the suppression among detections of a class.
        detections: number K of detections of a picture.
        mask_size: side M of the masks that are returned, which cover a box.
    """

    features: int = 256
    tower_layers: int = 4
    groups: int = 32
    interest: float = 8.0
    radius: float = 1.5
    mask_features: int = 8
    mask_width: int = 8
    mask_layers: int = 3
    mask_branch: int = 128
    mask_branch_layers: int = 4
    training_places: int = 64
    alpha: float = 0.25
    gamma: float = 2.0
    score: float = 0.05
    candidates: int = 1000
    detection_iou: float = 0.6
    detections: int = 100
    mask_size: int = 56


def make_small_condinst_settings() -> CondInstSettings:
    """Returns settings for pictures of 128 to 192 pixels, for a computer without an accelerator."""
    return CondInstSettings(
        features=64,
        tower_layers=2,
        interest=4.0,
        mask_branch=64,
        mask_branch_layers=2,
        training_places=32,
        candidates=256,
        detections=20,
        mask_size=28,
    )
