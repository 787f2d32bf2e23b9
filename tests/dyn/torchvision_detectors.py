"""Names, shapes and random weights of torchvision's detectors."""

import numpy as np
import torch_numbers

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
