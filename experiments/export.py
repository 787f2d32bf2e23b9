"""Writes the network of a finished run to a file that other programs use.

    python -m experiments.export RUN --format=stablehlo|safetensors|onnx [--out=FILE]

    RUN                  the --workdir of a finished run, or a .safetensors file made of one
    --format=stablehlo   the network with its parameters, for any batch: JAX alone runs it
    --format=safetensors the parameters by name, and the settings; `experiments.load` reads it
    --format=onnx        the network with its parameters, for any batch, compared with onnxruntime's numbers;
                         needs an environment of its own: pip install -e ".[onnx]"
    --out=FILE           where it goes; without it RUN/export/model.FORMAT
    --platforms=cpu,cuda,tpu   of StableHLO: where it is to run
    --overwrite          replaces what is there

Beside model.stablehlo and model.onnx lies a JSON file that says what goes in and what comes out: pictures as
they are, uint8, of one size (they are normalised within), or series, z-normalised; logits. In Python:

    from jax import export

    model = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    logits = model.call(pictures)

which needs jax and flatbuffers, and nothing else.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn.interop import to_stablehlo
from experiments.core import cli, files
from experiments.core.console import print_result
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.files import replace_file
from experiments.inference import onnx as onnx_files
from experiments.inference.trained import Trained
from experiments.load import load
from experiments.runs import weights
from experiments.runs.folder import list_versions

FORMATS = ("stablehlo", "safetensors", "onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    run: str | Path,
    form: str,
    out: str | Path = "",
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    overwrite: bool = False,
) -> Path:
    """Writes the network of a finished run to a file, and returns where.

    Args:
        run: the run's workdir, or a .safetensors file made of one.
        form: one of `FORMATS`.
        out: the file; '' for `export/model.<form>` in the workdir.
        platforms: of StableHLO.
        overwrite: whether what is there may be replaced.

    Raises:
        UserError: if the run is not there, the file is, or the network cannot go out in this form.
    """
    if form not in FORMATS:
        raise UserError(f"--format={form}: choose one of {', '.join(FORMATS)}.")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(
                f"--platforms: there is no {platform!r}{suggest_nearest(platform, PLATFORMS)}"
            )
    if form == "onnx":
        onnx_files.check_installed()
    run = Path(run).expanduser()
    home = run.parent if run.suffix == weights.SUFFIX else run / "export"
    path = Path(out).expanduser() if out else home / f"model.{form}"
    about = path.with_name(f"{path.name}.json")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: choose another --out, or give --overwrite.")
    trained = load(run)
    if form == "safetensors":
        metadata = {
            "config": trained.config.to_dict(),
            "classes": list(trained.classes),
            "shape": list(trained.shape),
            "versions": list_versions(),
        }
        weights.write_weights(path, trained.variables, metadata)
        return path
    if form == "stablehlo":
        try:
            written = to_stablehlo(network(trained), example_of(trained), platforms)
        except ValueError as error:
            raise UserError(f"The network cannot be exported: {error}") from error
    else:
        written = onnx_files.convert(network(trained), example_of(trained))
    with replace_file(path) as temporary:
        temporary.write_bytes(written)
    said = description(trained) | ({"platforms": platforms} if form == "stablehlo" else {})
    files.write_json(about, said)
    return path


def network(trained: Trained) -> Callable[[jax.Array], jax.Array]:
    """The network as it goes out: from pictures as they are, or series, to float32 logits."""
    variables = jax.tree.map(jnp.asarray, dict(trained.variables))
    mean, std = (np.asarray(trained.config.normalise[name], np.float32) for name in ("mean", "std"))

    def logits(inputs: jax.Array) -> jax.Array:
        if len(trained.shape) == 3:
            inputs = (inputs.astype(jnp.float32) / np.float32(255) - mean) / std
        return trained.model.apply(variables, inputs, train=False).astype(jnp.float32)

    return logits


def example_of(trained: Trained) -> jax.ShapeDtypeStruct:
    """What goes in: the shape and dtype of one example."""
    return jax.ShapeDtypeStruct(
        trained.shape, jnp.uint8 if len(trained.shape) == 3 else jnp.float32
    )


def description(trained: Trained) -> dict[str, Any]:
    """What a person who has only the file must know."""
    segments, pictures = trained.config.task == "segmentation", len(trained.shape) == 3
    if trained.hears:
        size = "a spectrogram that is drawn and coloured as `audio` says"
    elif segments:
        size = "scaled down where larger, then padded with the mean colour below and to the right"
    elif pictures:
        size = "the shorter side brought to the size, the middle square cut out"
    else:
        size = "missing values interpolated, zeros behind shorter ones after normalising"
    inputs = {
        "shape": ["batch", *trained.shape],
        "dtype": "uint8" if pictures else "float32",
        "values": "0 to 255; normalised within" if pictures else "each channel z-normalised",
        "size": size,
    }
    if pictures:
        inputs["normalisation"] = {
            "within": True,
            "mean": list(trained.config.normalise.mean),
            "std": list(trained.config.normalise.std),
        }
    if trained.hears:
        inputs["audio"] = trained.config.audio.to_dict()
    return {
        "task": trained.config.task,
        "inputs": inputs,
        "outputs": {"dtype": "float32", **_outputs(trained)},
        "classes": list(trained.classes),
        "config": trained.config.name,
        "dataset": trained.config.dataset,
        "versions": list_versions(),
    }


def _outputs(trained: Trained) -> dict[str, Any]:
    """Shape and meaning of what comes out."""
    places, classes = (), len(trained.classes)
    match trained.config.task:
        case "reconstruction":
            values = "0 to 1: the picture as it comes back"
            return {"shape": ["batch", *trained.shape], "values": values}
        case "tagging":
            values = "logits: a sigmoid of each gives its probability"
        case task:
            values = "logits: a softmax over the last axis gives probabilities"
            places = trained.shape[:2] if task == "segmentation" else ()
    return {"shape": ["batch", *places, classes], "values": values}


def main(
    run: str,
    *,
    format: str = "stablehlo",
    out: str = "",
    platforms: str = "cpu,cuda,tpu",
    overwrite: bool = False,
) -> None:
    """Exports the network of a run, and prints where it is."""
    path = export(run, format, out, platforms=platforms.split(","), overwrite=overwrite)
    print_result("exported", [(format, f"{path}, {path.stat().st_size / 1e6:.1f} MB")])


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The file cannot be written")
