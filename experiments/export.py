"""Exports the network of a finished run to a file for other programs.

    python -m experiments.export RUN --format=stablehlo|safetensors|hub|onnx [--out=FILE]

    RUN                  the --workdir of a finished run, or a .safetensors file made of one
    --format=stablehlo   the network with its parameters, for any batch; it needs only JAX
    --format=safetensors the parameters by name, and the settings; `experiments.load` reads it
    --format=hub         a folder of a classifier, with a model card; `dyn.from_pretrained` reads it
    --format=onnx        the network with its parameters, for any batch, compared with onnxruntime's numbers;
                         needs an environment of its own: pip install "dynconv[onnx]"
    --out=FILE           where it goes; without it RUN/export/model.FORMAT, or RUN/export/hub
    --push=USER/NAME     of the hub's folder: sends it to this repository of the Hugging Face hub
    --license=NAME       of the hub's card: of the weights, such as apache-2.0
    --platforms=cpu,cuda,tpu   of StableHLO: where it is to run
    --batch=N            of ONNX: a file for batches of N alone, which onnxruntime may run faster
    --fold_norms         folds norms into the convolutions before them: the same numbers up to rounding
    --overwrite          replaces an existing file, or the files of the hub's folder

A JSON file beside model.stablehlo and model.onnx describes the inputs and outputs: pictures as they are,
uint8, of one size (they are normalised within), or z-normalised series; logits, or of a detector a dictionary
of boxes, scores, labels and masks. In Python:

    from jax import export

    model = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    logits = model.call(pictures)

which needs jax and flatbuffers, and nothing else.
"""

from experiments.core import cli
from experiments.core.console import print_result
from experiments.inference import export, hub
from experiments.load import load


def main(
    run: str,
    *,
    format: str = "stablehlo",
    out: str = "",
    platforms: str = "",
    batch: int = 0,
    fold_norms: bool = False,
    overwrite: bool = False,
    push: str = "",
    license: str = "",
) -> None:
    """Exports a network, and prints where it is."""
    if push:
        hub.check_push(push, format)
    chosen = [platform.strip() for platform in platforms.split(",")] if platforms else ()
    path = export.export(
        load(run),
        format,
        out,
        platforms=chosen,
        batch=batch,
        fold_norms=fold_norms,
        overwrite=overwrite,
        license=license,
    )
    files = path.iterdir() if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    print_result("exported", [(format, f"{path}, {size / 1e6:.1f} MB")])
    if push:
        print_result("sent", [("repository", hub.push_folder(path, push))])


if __name__ == "__main__":
    cli.run_command(
        main, __doc__, failure="The file cannot be written", stopped="stopped; nothing is written"
    )
