"""torchvision's detectors: names, shapes, random weights, and the numbers that it computes with them.

The numbers are those of torchvision 0.29.1 in float64, for `maskrcnn_resnet50_fpn` with 91 classes and for
the same network over `resnet_fpn_backbone("resnet18")` with 21, 50 proposals and 24 detections.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch_numbers
from detection_cases import BOXES, LABELS, MASKS
from layer_cases import init_shapes

from dyn.interop import from_torch
from dyn.models import MaskRCNN, RCNNSettings, ResNet18, ResNet50
from dyn.ops import paste_masks

FACTORS = {
    "roi_heads.box_predictor.cls_score.weight": 2,
    "roi_heads.mask_predictor.mask_fcn_logits.weight": 4,
}


def list_shapes(depth=50, classes=91, masks=True):
    """Returns the shape of each array of `maskrcnn_resnet50_fpn`, or of the same with ResNet-18."""
    shapes = {}

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = (shape[0],)

    def add_norm(name, size):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (size,)

    bottleneck = depth == 50
    add("backbone.body.conv1", 64, 3, 7, 7, bias=False)
    add_norm("backbone.body.bn1", 64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)):
        width = 64 << stage
        outputs = 4 * width if bottleneck else width
        for block in range(blocks):
            name = f"backbone.body.layer{stage + 1}.{block}"
            basic = [(width, inputs, 3), (width, width, 3)]
            deep = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)]
            for n, (o, i, size) in enumerate(deep if bottleneck else basic, 1):
                add(f"{name}.conv{n}", o, i, size, size, bias=False)
                add_norm(f"{name}.bn{n}", o)
            if block == 0 and inputs != outputs:
                add(f"{name}.downsample.0", outputs, inputs, 1, 1, bias=False)
                add_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
        add(f"backbone.fpn.inner_blocks.{stage}.0", 256, outputs, 1, 1)
        add(f"backbone.fpn.layer_blocks.{stage}.0", 256, 256, 3, 3)
    add("rpn.head.conv.0.0", 256, 256, 3, 3)
    add("rpn.head.cls_logits", 3, 256, 1, 1)
    add("rpn.head.bbox_pred", 12, 256, 1, 1)
    add("roi_heads.box_head.fc6", 1024, 12544)
    add("roi_heads.box_head.fc7", 1024, 1024)
    add("roi_heads.box_predictor.cls_score", classes, 1024)
    add("roi_heads.box_predictor.bbox_pred", 4 * classes, 1024)
    if masks:
        for n in range(4):
            add(f"roi_heads.mask_head.{n}.0", 256, 256, 3, 3)
        add("roi_heads.mask_predictor.conv5_mask", 256, 256, 2, 2)
        add("roi_heads.mask_predictor.mask_fcn_logits", classes, 256, 1, 1)
    return shapes


def make_weights(shapes):
    """Returns random arrays, each from its name."""
    return {
        name: (FACTORS.get(name, 1) * torch_numbers.weight(name, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def make_picture():
    """Returns a picture of 96 x 128 pixels, normalised, in a batch of one."""
    picture = np.kron(np.random.RandomState(0).uniform(0, 1, (6, 8, 3)), np.ones((16, 16, 1)))
    picture = (picture - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.float32(picture)[None]


def make_network(depth):
    """Returns the network of the comparison, with few proposals and with all samples, and its variables."""
    small = depth == 18
    settings = RCNNSettings(
        canonical_size=56 if small else 224,
        candidates=200,
        proposals=50,
        training_candidates=200,
        training_proposals=50,
        detections=24,
        anchor_samples=100_000,
        box_samples=100_000,
    )
    classes = 21 if small else 91
    backbone = partial(ResNet18 if small else ResNet50, num_classes=None)
    net = MaskRCNN(num_classes=classes, backbone=backbone, settings=settings)
    shapes = init_shapes(net, make_picture())
    weights = make_weights(list_shapes(depth, classes))
    return net, from_torch(shapes, weights).variables


def check_numbers(found, expected, tolerance=1e-3):
    """Checks numbers by name, each within a thousandth or so of itself."""
    for name, numbers in expected.items():
        # Sums of numbers of both signs have the precision of their terms.
        np.testing.assert_allclose(found[name], numbers, rtol=tolerance, atol=2e-3, err_msg=name)


def run_inference(net, variables, picture):
    """Returns the sums of everything between the picture and the detections, by name."""
    parts = ("backbone", "fpn", "rpn", "box_head", "mask_head")

    def apply(variables, x):
        found, state = net.apply(
            variables,
            x,
            capture_intermediates=lambda module, _: module.name in parts,
            mutable=["intermediates"],
        )
        inside = {part: state["intermediates"][part]["__call__"][0] for part in parts}
        pasted = paste_masks(found.masks[0], found.boxes[0], picture.shape[1:3], rounded=True)
        sums = jax.tree.map(jnp.sum, inside)
        return {
            "stages": sums["backbone"],
            "levels": sums["fpn"],
            "objectness": sums["rpn"][0],
            "codes": sums["rpn"][1],
            "class logits": sums["box_head"][0],
            "box codes": sums["box_head"][1],
            "mask logits": sums["mask_head"],
            "scores": found.scores[0, jnp.array([0, 1, 2, 23])],
            "sum of scores": jnp.sum(found.scores),
            "first box": found.boxes[0, 0],
            "boxes": jnp.sum(found.boxes[0], axis=0),
            "labels": found.labels[0],
            "pasted": jnp.sum(pasted),
            "pixels": jnp.sum(pasted >= 0.5),
        }

    return jax.device_get(jax.jit(apply)(variables, picture))


def run_training(net, variables, picture):
    """Returns the losses, and the norms of some gradients by torchvision's names."""
    shape = picture.shape[1:3]
    targets = {
        "boxes": jnp.float32([[*BOXES, [0, 0, 0, 0]]]),
        "labels": jnp.int32([[*LABELS, 0]]),
        "masks": jnp.concatenate([MASKS, np.zeros((1, *shape), bool)])[None],
    }

    def loss(params):
        rngs = {"sampling": jax.random.key(0)}
        variables_ = {**variables, "params": params}
        losses = net.apply(variables_, picture, targets, train=True, rngs=rngs)
        return sum(losses.values()), losses

    gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    norms = {
        name: np.linalg.norm(np.ravel(functools.reduce(dict.get, path.split("/"), gradient)))
        for name, path in GRADIENTS.items()
    }
    return {**losses, **norms}


GRADIENTS = {
    "conv1": "backbone/stem_conv/kernel",
    "inner_blocks.0.0": "fpn/lateral1/kernel",
    "cls_logits": "rpn/objectness/kernel",
    "rpn bbox_pred": "rpn/deltas/kernel",
    "fc6": "box_head/hidden1/kernel",
    "cls_score": "box_head/classes/kernel",
    "bbox_pred": "box_head/deltas/kernel",
    "conv5_mask": "mask_head/upsample/kernel",
    "mask_fcn_logits": "mask_head/logits/kernel",
}
INFERENCE = {
    18: {
        "stages": [31197.894328, 12882.406128, 5009.409259, 2352.635488],
        "levels": [39427.440367, -2940.533830, 589.806312, -48.372928, -8.874613],
        "objectness": [-2563.134923, -752.728262, -39.047260, -12.219605, -4.321739],
        "codes": [2212.629805, -499.207146, 2.140091, 7.057890, 3.043380],
        "class logits": 145.456210,
        "box codes": -170.239233,
        "mask logits": 11539.053141,
        "scores": [0.64316607, 0.52754548, 0.48955087, 0.25464828],
        "sum of scores": 9.284743,
        "first box": [21.266672, 30.432751, 40.686373, 56.873953],
        "boxes": [1053.157386, 610.928810, 1589.642273, 1499.187550],
        "pasted": 9323.728255,
        "pixels": 9973,
    },
    50: {
        "stages": [84810.165306, 50012.446987, 33711.463362, 11340.997128],
        "levels": [-14414.052716, -2879.786557, 586.792173, -132.673615, -22.124873],
        "objectness": [-2661.857809, -645.666943, 23.913023, -18.910695, -4.649053],
        "codes": [-1051.287508, 140.108544, 181.395420, 5.533408, 4.429910],
        "class logits": -799.003227,
        "box codes": 37.152864,
        "mask logits": -26223.535798,
        "scores": [0.16176324, 0.15443377, 0.15342301, 0.09238169],
        "sum of scores": 2.961142,
        "first box": [0, 0.309655, 79.962757, 5.390359],
        "boxes": [320.173634, 421.413822, 1647.699504, 865.855449],
        "pasted": 8361.037089,
        "pixels": 3106,
    },
}
TRAINING = {
    18: {
        "classifier": 3.6640197256,
        "boxes": 0.1515595332,
        "masks": 0.5361921403,
        "proposals": 0.0164303004,
        "objectness": 0.51084934,
        "conv1": 2.23022271,
        "inner_blocks.0.0": 4.06057383,
        "cls_logits": 3.21028996,
        "rpn bbox_pred": 0.14022454,
        "fc6": 109.08000579,
        "cls_score": 22.7578895,
        "bbox_pred": 1.4790091,
        "conv5_mask": 0.56489458,
        "mask_fcn_logits": 0.22122375,
    },
    50: {
        "classifier": 4.5042302360,
        "boxes": 0.1141967246,
        "masks": 0.5181290622,
        "proposals": 0.0208554365,
        "objectness": 0.4803514,
        "conv1": 0.83517701,
        "inner_blocks.0.0": 9.02331487,
        "cls_logits": 2.93083562,
        "rpn bbox_pred": 0.17305905,
        "fc6": 157.16183571,
        "cls_score": 23.13013042,
        "bbox_pred": 1.3819415,
        "conv5_mask": 0.77296306,
        "mask_fcn_logits": 0.20586708,
    },
}
