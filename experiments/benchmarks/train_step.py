"""Times one training step of a whole ResNet with each layer of the catalogue, against the static one.

    python -m experiments.benchmarks.train_step [--size=64] [--batch=32] [--depth=18] [--dtype=float32]
        [--layers=odconv,odconv_k1,dyconv] [--runs=5] [--quick] [--out=runs/benchmarks]

A step is forward, backward and Adam's update, at 1000 classes. Each network runs in turn with flax's
own `nn.Conv` network, in one process, and the median of the pairs' ratios counts: trust ratios, not
milliseconds. Writes `train_step-<size>.json` and `.png`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from dyn import layers
from dyn.diagnostics import count_parameters
from dyn.models import ResNet18, ResNet50
from experiments import files, style

SIZE = flags.DEFINE_integer("size", 64, "Pixels of a picture's side.")
BATCH = flags.DEFINE_integer("batch", 32, "Pictures a step.")
DEPTH = flags.DEFINE_enum("depth", "18", ["18", "50"], "The ResNet.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
LAYERS = flags.DEFINE_list("layers", [], "Names of rows; all if left out.")
RUNS = flags.DEFINE_integer("runs", 5, "Timed pairs of steps for each network.")
QUICK = flags.DEFINE_bool("quick", False, "The static rows and ODConv alone, at 64 pixels.")
OUT = flags.DEFINE_string("out", "runs/benchmarks", "Where the table's numbers and plot go.")

FLAX = "nn.Conv"
QUICK_ROWS = ("Conv", "odconv_k1", "odconv")


def networks() -> dict[str, Callable[..., nn.Module]]:
    """A network for each row, without its classes and dtype; the fields are those of the papers."""
    resnet = {"18": ResNet18, "50": ResNet50}[DEPTH.value]

    def warehouse(**fields: Any) -> nn.Module:
        def network(conv: Callable[..., nn.Module]) -> nn.Module:
            return resnet(conv=conv, shortcut=conv, **fields)

        example = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        return layers.share_kernels(network, example)

    def conv(layer: Callable[..., nn.Module], **fields: Any) -> partial:
        return partial(resnet, conv=partial(layer, **fields) if fields else layer)

    four = {"num_kernels": 4}
    return {
        FLAX: conv(nn.Conv),
        "Conv": conv(layers.Conv),
        "odconv_k1": conv(layers.ODConv, num_kernels=1),
        "odconv": conv(layers.ODConv, **four),
        "dyconv": conv(layers.DynamicConv, **four),
        "condconv": partial(conv(layers.CondConv), context="block"),
        "dcd": partial(conv(layers.DCDConv), dense=layers.DCDDense),
        "warehouse": warehouse,
        "fdconv": conv(layers.FDConv),
        "pixel": conv(layers.PixelDynamicConv, **four),
        "gated": conv(layers.GatedConv, **four),
        "rotated": conv(layers.RotatedConv),
        "spectral_norm": conv(layers.SpectralNormConv, **four),
        "squeeze_excite": partial(resnet, attention=layers.SqueezeExcite),
        "cbam": partial(resnet, attention=layers.CBAM),
    }


def main(arguments: list[str]) -> None:
    """Prints a row for each network as it is measured."""
    if arguments[1:]:
        sys.exit(f"error: '{arguments[1]}' is not a flag; flags are written --name=value.")
    rows = networks()
    static_row = rows.pop(FLAX)
    names = LAYERS.value or (QUICK_ROWS if QUICK.value else tuple(rows))
    if unknown := [name for name in names if name not in rows]:
        sys.exit(f"error: there is no row {unknown[0]}: choose among {', '.join(rows)}.")
    static = Step(static_row)
    print(
        f"ResNet-{DEPTH.value}, {SIZE.value} px, batch {BATCH.value}, {DTYPE.value}, "
        f"{len(jax.devices())} x {jax.devices()[0].device_kind}; one Adam step\n\n"
        f"{'':16}{'parameters':>12}{'step, ms':>10}{'x nn.Conv':>11}{'temporary, MB':>15}{'compiling, s':>14}"
    )
    results = {}
    for name in (FLAX, *names):
        step = static if name == FLAX else Step(rows[name])
        mine, theirs = alternate(step, static, RUNS.value)
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        results[name] = {
            "parameters": step.parameters,
            "milliseconds": 1e3 * statistics.median(mine),
            "ratio": 1.0 if name == FLAX else ratio,
            "temporary_bytes": step.temporary_bytes,
            "compile_seconds": step.compile_seconds,
        }
        row = results[name]
        print(
            f"{name:16}{row['parameters']:12,}{row['milliseconds']:10.0f}{row['ratio']:11.2f}"
            f"{row['temporary_bytes'] / 1e6:15,.0f}{row['compile_seconds']:14.1f}",
            flush=True,
        )
        del step
    out = Path(OUT.value) / f"train_step-{SIZE.value}"
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "size": SIZE.value,
        "batch": BATCH.value,
        "depth": DEPTH.value,
        "dtype": DTYPE.value,
    }
    device = jax.devices()[0].device_kind
    files.write_json(
        f"{out}.json", {**settings, "device": device, "jax": jax.__version__, "rows": results}
    )
    plot(results, f"{out}.png")
    print(f"\n{out}.json\n{out}.png")


class Step:
    """A network's compiled training step, with the state that it updates."""

    def __init__(self, network: Callable[..., nn.Module]):
        """Builds, initialises and compiles."""
        model = network(num_classes=1000, dtype=jnp.dtype(DTYPE.value))
        keys = jax.random.split(jax.random.key(0))
        self.x = jax.random.normal(keys[0], (BATCH.value, SIZE.value, SIZE.value, 3))
        labels = jnp.arange(BATCH.value) % 1000
        optimizer = optax.adam(1e-3)

        def create(key: jax.Array) -> tuple[Any, Any, Any]:
            variables = model.init(key, self.x[:2])
            params = variables.pop("params")
            for collection in ("intermediates", "losses"):
                variables.pop(collection, None)
            return params, variables, optimizer.init(params)

        def train(params: Any, rest: Any, moments: Any, x: jax.Array) -> tuple[Any, Any, Any]:
            def loss(params: Any) -> tuple[jax.Array, Any]:
                logits, changed = model.apply(
                    {"params": params, **rest}, x, train=True, mutable=["batch_stats"]
                )
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), changed

            gradients, changed = jax.grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments)
            return optax.apply_updates(params, updates), {**rest, **changed}, moments

        self.state = jax.jit(create)(keys[1])
        self.parameters = count_parameters(self.state[0])
        started = time.perf_counter()
        lowered = jax.jit(train, donate_argnums=(0, 1, 2)).lower(*self.state, self.x)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        memory = self.compiled.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory else 0

    def __call__(self) -> float:
        """Takes one step; the seconds that it took."""
        started = time.perf_counter()
        self.state = jax.block_until_ready(self.compiled(*self.state, self.x))
        return time.perf_counter() - started


def alternate(first: Step, second: Step, runs: int) -> tuple[list[float], list[float]]:
    """The seconds of each, one step of the one and one of the other in turn; the first pair warms up."""
    pairs = [(first(), second()) for _ in range(runs + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def plot(results: dict[str, dict[str, float]], path: str) -> None:
    """Draws how many static steps each network's step takes."""
    names = list(results)[::-1]
    ratios = np.array([results[name]["ratio"] for name in names])
    figure = style.new_figure(
        7,
        0.9 + 0.32 * len(names),
        "Training step against a static network",
        f"ResNet-{DEPTH.value}, {SIZE.value} px, batch {BATCH.value}, {DTYPE.value}, on "
        f"{jax.devices()[0].device_kind}; {FLAX} is flax's own convolution.",
    )
    axes = figure.subplots()
    bars = axes.barh(
        names, ratios, color=[style.BEST if r <= 1 else style.VALIDATION for r in ratios]
    )
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8.5)
    axes.axvline(1, color=style.FAINT, linewidth=0.8)
    style.style_axes(axes, "times the step of a static network")
    style.save(figure, path)


if __name__ == "__main__":
    app.run(main)
