"""Libraries that `pip install dynconv` leaves out, and the command that installs them."""

import importlib.util

LABORATORY = (
    "absl",
    "grain",
    "matplotlib",
    "ml_collections",
    "optax",
    "PIL",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
)
"""Modules that every part of the laboratory needs; the extras `experiments` and `onnx` have them."""

EXTRAS = {
    "experiments": (
        *LABORATORY,
        *("array_record", "flatbuffers", "orbax", "pooch", "pycocotools"),
        *("tensorboardX", "tensorflow_datasets", "tensorstore"),
    ),
    "audio": ("librosa", "maad", "pyarrow", "pywt", "soundfile", "soxr"),
    "onnx": ("jax2onnx", "onnxruntime"),
    "hub": ("huggingface_hub",),
}
"""Modules of each extra of pyproject.toml."""


def format_install(extra: str) -> str:
    """Returns the command that installs an extra.

    Example:
        >>> format_install("audio")
        'pip install "dynconv[audio]", or in a clone pip install -e ".[audio]"'
    """
    return f'pip install "dynconv[{extra}]", or in a clone pip install -e ".[{extra}]"'


def explain_missing_laboratory() -> str:
    """Returns a sentence about the libraries of the laboratory that are not installed, '' if all are."""
    missing = [name for name in LABORATORY if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"the laboratory needs libraries that are not installed ({', '.join(missing)}): "
        f"{format_install('experiments')}"
    )


def explain_missing_module(module: str) -> str:
    """Returns a sentence about a module that cannot be found, '' if it belongs to no extra."""
    library = module.partition(".")[0]
    for extra, libraries in EXTRAS.items():
        if library in libraries:
            return f"{library} is not installed: {format_install(extra)}"
    return ""
