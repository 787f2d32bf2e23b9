"""The names and shapes of published files of networks of inverted residual blocks, and the networks."""

import jax
import jax.numpy as jnp
import numpy as np
from layer_cases import init_shapes

from dyn.interop import from_torch
from dyn.interop.torch_weights import detect_source, num_classes
from dyn.models import create_model

NORM = ("weight", "bias", "running_mean", "running_var")
# The blocks of the authors' networks: input features, expansion, features, kernel, stride.
MOBILENET_V2 = [
    (inputs if block == 0 else features, expansion, features)
    for expansion, inputs, features, blocks in (
        *((1, 32, 16, 1), (6, 16, 24, 2), (6, 24, 32, 3), (6, 32, 64, 4)),
        *((6, 64, 96, 3), (6, 96, 160, 3), (6, 160, 320, 1)),
    )
    for block in range(blocks)
]
EFFICIENTNET = [
    (stage, block, inputs if block == 0 else features, expansion, features, kernel)
    for stage, (expansion, kernel, inputs, features, blocks) in enumerate(
        (
            *((1, 3, 32, 16, 1), (6, 3, 16, 24, 2), (6, 5, 24, 40, 2), (6, 3, 40, 80, 3)),
            *((6, 5, 80, 112, 3), (6, 5, 112, 192, 4), (6, 3, 192, 320, 1)),
        )
    )
    for block in range(blocks)
]


def norm(name, features):
    return {f"{name}.{leaf}": (features,) for leaf in NORM} | {f"{name}.num_batches_tracked": ()}


def linear(name, outputs, inputs, *kernel):
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def list_lite0():
    """Returns the names and shapes of `efficientnet-lite0-57934424.pth`."""
    shapes = {"_conv_stem.weight": (32, 3, 3, 3), **norm("_bn0", 32)}
    for number, (_, _, inputs, expansion, features, kernel) in enumerate(EFFICIENTNET):
        name, hidden = f"_blocks.{number}.", inputs * expansion
        if expansion > 1:
            shapes[name + "_expand_conv.weight"] = (hidden, inputs, 1, 1)
            shapes |= norm(name + "_bn0", hidden)
        shapes[name + "_depthwise_conv.weight"] = (hidden, 1, kernel, kernel)
        shapes |= norm(name + "_bn1", hidden)
        shapes[name + "_project_conv.weight"] = (features, hidden, 1, 1)
        shapes |= norm(name + "_bn2", features)
    shapes |= {"_conv_head.weight": (1280, 320, 1, 1), **norm("_bn1", 1280)}
    return shapes | linear("_fc", 1000, 1280)


def list_timm(experts=0):
    """Returns the names and shapes of `tf_efficientnet_b0`, or of `tf_efficientnet_cc_b0_4e`."""
    shapes = {"conv_stem.weight": (32, 3, 3, 3), **norm("bn1", 32)}
    for stage, block, inputs, expansion, features, kernel in EFFICIENTNET:
        name, hidden = f"blocks.{stage}.{block}.", inputs * expansion
        convs = [
            ("conv_pw", (hidden, inputs, 1, 1)),
            ("conv_dw", (hidden, 1, kernel, kernel)),
            ("conv_pwl", (features, hidden, 1, 1)),
        ]
        if stage == 0:
            convs = [convs[1], ("conv_pw", convs[2][1])]
        for number, (conv, shape) in enumerate(convs, 1):
            if experts and stage > 3:
                shape = (experts, int(np.prod(shape)))
            shapes[f"{name}{conv}.weight"] = shape
            shapes |= norm(f"{name}bn{number}", features if number == len(convs) else hidden)
        squeezed = inputs // 4
        shapes |= linear(name + "se.conv_reduce", squeezed, hidden, 1, 1)
        shapes |= linear(name + "se.conv_expand", hidden, squeezed, 1, 1)
        if experts and stage > 3:
            shapes |= linear(name + "routing_fn", experts, inputs)
    shapes |= {"conv_head.weight": (1280, 320, 1, 1), **norm("bn2", 1280)}
    return shapes | linear("classifier", 1000, 1280)


def list_odconv(kernels):
    """Returns the names and shapes of the MobileNetV2 of ODConv's authors."""
    shapes = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}

    def add(name, outputs, inputs, size, groups=1):
        shapes[name + ".weight"] = (kernels, outputs, inputs // groups, size, size)
        squeezed, attention = max(inputs // 16, 16), name + ".attention."
        shapes[attention + "fc.weight"] = (squeezed, inputs, 1, 1)
        shapes.update(norm(attention + "bn", squeezed))
        heads = {"channel": inputs, "filter": outputs, "spatial": size * size, "kernel": kernels}
        absent = ["filter"] * (groups > 1) + ["spatial"] * (size == 1) + ["kernel"] * (kernels == 1)
        for head in heads.keys() - set(absent):
            shapes.update(linear(f"{attention}{head}_fc", heads[head], squeezed, 1, 1))

    for number, (inputs, expansion, features) in enumerate(MOBILENET_V2, 1):
        name, hidden, place = f"features.{number}.conv.", inputs * expansion, 0
        if expansion > 1:
            add(f"{name}0.0", hidden, inputs, 1)
            shapes |= norm(f"{name}0.1", hidden)
            place = 1
        add(f"{name}{place}.0", hidden, hidden, 3, groups=hidden)
        shapes |= norm(f"{name}{place}.1", hidden)
        add(f"{name}{place + 1}", features, hidden, 1)
        shapes |= norm(f"{name}{place + 2}", features)
    add("features.18.0", 1280, 320, 1)
    shapes |= norm("features.18.1", 1280)
    return shapes | linear("classifier.1", 1000, 1280)


def list_dcd():
    """Returns the names and shapes of the published MobileNetV2 of DCD's authors."""
    shapes = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}

    def add(name, static, outputs, inputs, seen, latent, squeezed, *kernel):
        prefix = "cls_" if static == "cls" else "conv_"
        shapes[f"{name}.{static}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.{prefix}q.weight"] = (latent, inputs, *kernel)
        shapes[f"{name}.{prefix}p.weight"] = (outputs, latent, *kernel)
        shapes[name + ".fc.0.weight"] = (squeezed, seen)
        shapes[name + ".fc.1.fc.0.weight"] = (squeezed, squeezed)
        shapes[name + ".fc_phi.weight"] = (latent**2, squeezed)
        shapes[name + ".fc_scale.weight"] = (outputs, squeezed)
        shapes.update(norm(name + ".bn1", latent) | norm(name + ".bn2", latent))

    def add_pointwise(name, outputs, inputs):
        bins, divisor = (4, 8) if inputs < outputs else (1, 2)
        while (
            latent := min(bins * inputs // divisor, outputs // divisor)
        ) ** 2 > 2 * bins * inputs:
            divisor *= 2
        latent = max(latent, 4)
        squeezed = max(max(bins * inputs, latent**2) // 16, 4)
        add(name, "conv", outputs, inputs, bins * inputs, latent, squeezed, 1, 1)

    for number, (inputs, expansion, features) in enumerate(MOBILENET_V2, 1):
        name, hidden = f"features.{number}.conv.", inputs * expansion
        if expansion == 1:
            shapes[f"{name}0.weight"] = (hidden, 1, 3, 3)
            shapes[f"{name}3.weight"] = (features, hidden, 1, 1)
            shapes |= norm(f"{name}1", hidden) | norm(f"{name}4", features)
            continue
        add_pointwise(f"{name}0", hidden, inputs)
        shapes[f"{name}3.weight"] = (hidden, 1, 3, 3)
        add_pointwise(f"{name}6", features, hidden)
        shapes |= norm(f"{name}1", hidden) | norm(f"{name}4", hidden) | norm(f"{name}7", features)
    shapes |= {"conv.0.weight": (1280, 320, 1, 1), **norm("conv.1", 1280)}
    add("classifier.1", "cls", 1000, 1280, 1280, 32, 32)
    return shapes | {"classifier.1.cls.bias": (1000,)}


# For each block its kernel, expanded and output features, and whether it has squeeze-and-excitation.
MOBILENET_V3 = [
    *(
        (3, 16, 16, 0),
        (3, 64, 24, 0),
        (3, 72, 24, 0),
        (5, 72, 40, 1),
        (5, 120, 40, 1),
        (5, 120, 40, 1),
    ),
    *((3, 240, 80, 0), (3, 200, 80, 0), (3, 184, 80, 0), (3, 184, 80, 0), (3, 480, 112, 1)),
    *((3, 672, 112, 1), (5, 672, 160, 1), (5, 960, 160, 1), (5, 960, 160, 1)),
]


def list_mobilenet_v3():
    """Returns the names and shapes of torchvision's `mobilenet_v3_large`."""
    shapes, inputs = {"features.0.0.weight": (16, 3, 3, 3), **norm("features.0.1", 16)}, 16
    for number, (kernel, hidden, features, squeezes) in enumerate(MOBILENET_V3, 1):
        name = f"features.{number}.block."
        convs = [(hidden, inputs, 1, 1), (hidden, 1, kernel, kernel), (features, hidden, 1, 1)]
        convs = convs[1:] if number == 1 else convs
        for place, shape in enumerate(convs):
            if squeezes and place == 2:
                squeezed = {72: 24, 120: 32, 480: 120, 672: 168, 960: 240}[hidden]
                shapes |= linear(f"{name}2.fc1", squeezed, hidden, 1, 1)
                shapes |= linear(f"{name}2.fc2", hidden, squeezed, 1, 1)
                place = 3
            shapes[f"{name}{place}.0.weight"] = shape
            shapes |= norm(f"{name}{place}.1", shape[0])
        inputs = features
    shapes |= {"features.16.0.weight": (960, 160, 1, 1), **norm("features.16.1", 960)}
    return shapes | linear("classifier.0", 1280, 960) | linear("classifier.3", 1000, 1280)


def list_dymn(replaces_se=False):
    """Returns the names and shapes of `dymn10_as`, or of the network with dynamic blocks instead of SE."""
    shapes, inputs = {"in_c.0.weight": (16, 1, 3, 3), **norm("in_c.1", 16)}, 16
    contexts = [32] * 6 + [64, 48, 48, 48, 120] + [128] * 4
    for number, (block, size) in enumerate(zip(MOBILENET_V3, contexts, strict=True)):
        (kernel, hidden, features, squeezes), name = block, f"layers.{number}."
        convs = [
            ("exp", (hidden, inputs, 1, 1)),
            ("depth", (hidden, 1, kernel, kernel)),
            ("proj", (features, hidden, 1, 1)),
        ]
        convs, inputs = convs if number else convs[1:], features
        if replaces_se and not squeezes:
            for place, (_, shape) in enumerate(convs):
                shapes[f"{name}block.{place}.0.weight"] = shape
                shapes |= norm(f"{name}block.{place}.1", shape[0])
            continue
        for conv, shape in convs:
            shapes[f"{name}{conv}_conv.weight"] = (1, 1, 4, int(np.prod(shape)))
            shapes |= linear(f"{name}{conv}_conv.residuals.0", 4, size)
            shapes |= norm(f"{name}{conv}_norm", shape[0])
        shapes |= {f"{name}depth_act.lambdas": (4,), f"{name}depth_act.init_v": (4,)}
        shapes |= linear(f"{name}depth_act.coef_net.0", 4 * hidden, size)
        context, seen = f"{name}context_gen.", block_input(number)
        shapes |= {f"{context}joint_conv.weight": (size, seen, 1, 1)}
        shapes |= norm(f"{context}joint_norm", size)
        for axis in ("conv_f", "conv_t"):
            shapes |= linear(context + axis, hidden, size, 1, 1)
    shapes |= {"out_c.0.weight": (960, 160, 1, 1), **norm("out_c.1", 960)}
    return shapes | linear("classifier.2", 1280, 960) | linear("classifier.5", 527, 1280)


def block_input(number):
    """Returns the input features of a block of MobileNetV3, from 0."""
    return MOBILENET_V3[number - 1][2] if number else 16


FILES = {
    "efficientnet_lite0": (list_lite0(), "efficientnet_lite0", 296),
    "efficientnet": (list_timm(), "efficientnet_b0", None),
    "efficientnet, 4 experts": (list_timm(4), "tf_efficientnet_cc_b0_4e", None),
    "odconv_mobilenet_v2, K = 1": (list_odconv(1), "mobilenet_v2_odconv1x", 824),
    "odconv_mobilenet_v2, K = 4": (list_odconv(4), "mobilenet_v2_odconv4x", 926),
    "mobilenet_v3": (list_mobilenet_v3(), "mobilenet_v3_large", None),
    "dymn": (list_dymn(), "dymn10_as", 578),
    "dymn, replace_se": (list_dymn(True), "dymn10_replace_se_as", None),
    "dcd_mobilenet_v2": (list_dcd(), "mobilenet_v2_dcd", None),
}


def assert_every_name_has_its_place(name):
    """Asserts that weights with the names and shapes of a published file fill the network."""
    shapes, network, number = FILES[name]
    net = create_model(network)
    assert number in (None, len(shapes))
    constants = {"lambdas": (1, 1, 0.5, 0.5), "init_v": (1, 0, 0, 0)}
    weights = {
        key: np.array(constants.get(key.rpartition(".")[2], np.zeros(shape)), np.float32)
        for key, shape in shapes.items()
    }
    source = detect_source(weights)
    assert name.partition(",")[0] == source
    assert num_classes(weights) == (527 if source == "dymn" else 1000)
    channels = 1 if source == "dymn" else 3
    variables = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32))
    variables = {part: variables[part] for part in ("params", "batch_stats")}
    _, left_out, kept = from_torch(variables, weights)
    assert kept == ()
    assert {key.rpartition(".")[2] for key in left_out} <= {"num_batches_tracked", *constants}
