"""Measures how often a published ImageNet network is right on the validation pictures of Tiny ImageNet.

    python -m experiments.benchmarks.published_weights WEIGHTS TINY_IMAGENET

    --network=efficientnet_lite0   or tf_efficientnet_cc_b0_4e, tf_efficientnet_cc_b0_8e,
                                   tf_efficientnet_cc_b1_8e of timm
    --per_class=0                  pictures of each class, the first ones by name; 0 for all
    --batch=50                     pictures at a time
    --out=PATH                     a CSV for the result

WEIGHTS is a file that `dyn.interop.read_weights` reads, and TINY_IMAGENET the official zip or its folder. All
200 classes of Tiny ImageNet are classes of ImageNet: "of 200" compares their logits alone, "of 1000" all
logits. Pictures of 64 pixels are resized to the network's size, so that the numbers are far below those for
ImageNet itself.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dyn.interop import from_torch, read_weights
from dyn.models import EfficientNetB0, EfficientNetB1, EfficientNetLite0
from dyn.models.efficientnet import TENSORFLOW, make_condconv_fields
from experiments.core import cli
from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.core.files import write_csv
from experiments.data import pictures, tiny_imagenet
from experiments.data.tiny_imagenet import IMAGENET_INDICES

HEADER = ("network", "pictures", "top1_of_200", "top5_of_200", "top1_of_1000")


@dataclasses.dataclass(frozen=True)
class Published:
    """A published network, and what its pictures must be: `(x - mean) / std` for x from 0 to 255."""

    make: Callable[..., nn.Module]
    size: int
    mean: float
    std: float
    resampling: Image.Resampling


def _make_condconv(make: Callable[..., nn.Module], num_kernels: int, size: int) -> Published:
    make = partial(make, **make_condconv_fields(num_kernels), **TENSORFLOW)
    return Published(make, size, 127.5, 127.5, Image.Resampling.BICUBIC)


NETWORKS = {
    "efficientnet_lite0": Published(
        EfficientNetLite0, 224, 127.0, 128.0, Image.Resampling.BILINEAR
    ),
    "tf_efficientnet_cc_b0_4e": _make_condconv(EfficientNetB0, 4, 224),
    "tf_efficientnet_cc_b0_8e": _make_condconv(EfficientNetB0, 8, 224),
    "tf_efficientnet_cc_b1_8e": _make_condconv(EfficientNetB1, 8, 240),
}


def main(
    weights: str,
    tiny: str,
    *,
    network: str = "efficientnet_lite0",
    per_class: int = 0,
    batch: int = 50,
    out: str = "",
) -> None:
    """Prints the accuracies, and writes them to `out`."""
    if network not in NETWORKS:
        raise UserError(f"--network={network} is unknown: write one of {', '.join(NETWORKS)}.")
    published = NETWORKS[network]
    apply = load_network(published, weights)
    right = [
        count_right(np.asarray(apply(inputs)), labels)
        for inputs, labels in read_batches(Path(tiny), published, per_class, batch)
    ]
    count = sum(number for number, _ in right)
    shares = np.sum([counts for _, counts in right], axis=0) / count
    top1, top5, of_all = shares
    print_line(
        f"{network}, {count:,} pictures: {top1:.1%} right of 200 classes ({top5:.1%} in the first five), "
        f"{of_all:.1%} of 1000"
    )
    if out:
        write_csv(Path(out), HEADER, [(network, count, *(f"{share:.4f}" for share in shares))])


def load_network(published: Published, path: str) -> Callable[[np.ndarray], jax.Array]:
    """Returns the network as a compiled function from pictures to 1000 logits.

    Raises:
        UserError: if the file cannot be read, or is of another network.
    """
    net = published.make(num_classes=1000)
    x = jax.ShapeDtypeStruct((1, published.size, published.size, 3), jnp.float32)
    try:
        weights = read_weights(path)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(str(error)) from error
    try:
        imported = from_torch(jax.eval_shape(net.init, jax.random.key(0), x), weights)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return jax.jit(partial(net.apply, imported.variables))


def read_batches(
    source: Path, published: Published, per_class: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pictures and labels of the validation split, class after class."""
    files = tiny_imagenet.open_files(source)
    layout = tiny_imagenet.read_layout(files)
    if len(layout.wnids) != len(IMAGENET_INDICES):
        raise UserError(
            f"{source} has {len(layout.wnids)} classes; those of Tiny ImageNet are {len(IMAGENET_INDICES)}."
        )
    chosen = list(_take_first(layout.members["val"], per_class or math.inf))
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        inputs = np.stack([_read_input(files.read(name), name, published) for name, _ in part])
        yield inputs, np.array([label for _, label in part])


def _take_first(members: Sequence[tuple[str, int]], per_class: float) -> Iterator[tuple[str, int]]:
    """Yields the first pictures of each class, by the number in their names."""
    seen: dict[int, int] = {}
    for name, label in sorted(members, key=lambda member: (len(member[0]), member[0])):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= per_class:
            yield name, label


def _read_input(encoded: bytes, name: str, published: Published) -> np.ndarray:
    image = Image.fromarray(pictures.read_picture(encoded, name))
    resized = image.resize((published.size, published.size), published.resampling)
    return (np.asarray(resized, np.float32) - published.mean) / published.std


def count_right(logits: np.ndarray, labels: np.ndarray) -> tuple[int, np.ndarray]:
    """Counts the pictures, and those right of 200, in the first five of 200, and of 1000.

    Args:
        logits: `[B, 1000]`.
        labels: `[B]`, classes of Tiny ImageNet.
    """
    own = logits[:, IMAGENET_INDICES]
    better = np.sum(own > np.take_along_axis(own, labels[:, None], 1), axis=1)
    of_all = logits.argmax(1) == IMAGENET_INDICES[labels]
    return len(labels), np.array([(better < 1).sum(), (better < 5).sum(), of_all.sum()])


if __name__ == "__main__":
    cli.run_command(main, __doc__)
