"""Rows of tables of names for the layers that several published networks have."""

from collections.abc import Sequence

Table = Sequence[tuple[str, str]]
"""Rows of a regular expression for the name of a torch module, and the path of the same layer here.

A path may contain `{group}` for a named group of the expression, and `{next_group}` for its number plus one
(torch counts blocks from 0). The group `layer` is the name of another torch module, in whose place its path
stands. `*` is for all layers that match, or for those among them that have an array of the same shape.
"""


def make_odconv_rows(module: str, path: str) -> Table:
    """Returns the rows of the attention of a layer of ODConv's authors."""
    attention = rf"{module}\.attention\."
    return (
        (attention + "fc", f"{path}/attention/squeeze"),
        (attention + "bn", f"{path}/attention/norm"),
        (
            attention + "(?P<head>channel|filter|spatial|kernel)_fc",
            f"{path}/attention/{{head}}",
        ),
    )


def make_dcd_rows(module: str, path: str, static: str, prefix: str = "") -> Table:
    """Returns the rows of a layer that DCD's authors have made dynamic."""
    return (
        (module + static, path),
        (rf"{module}{prefix}q", f"{path}/compress"),
        (rf"{module}{prefix}p", f"{path}/expand"),
        (rf"{module}bn1", f"{path}/compress_norm"),
        (rf"{module}bn2", f"{path}/latent_norm"),
        (rf"{module}fc\.0", f"{path}/attention/squeeze"),
        (rf"{module}fc\.1\.fc\.0", f"{path}/attention/excite"),
        (rf"{module}fc_phi", f"{path}/attention/latent"),
        (rf"{module}fc_scale", f"{path}/attention/filter"),
    )
