"""Pretrained networks in one line: from a folder, from the Hugging Face hub, or from another library's file.

A folder holds the network as text, `config.json`, and its arrays, `model.safetensors`: nothing in it is
executed. `save_pretrained` writes one.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dyn.interop.torch_file import read_weights
from dyn.interop.torch_weights import count_channels, from_torch, num_classes
from dyn.models.catalogue import NETWORKS, create_model, find_preprocessing
from dyn.models.named_parts import find_named, suggest_names
from dyn.models.preprocessing import Preprocessing
from dyn.schedules import set_temperature

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HUB = "hf:"
_FORMAT = 1
_COLLECTIONS = ("params", "batch_stats", "attention")


class Pretrained(NamedTuple):
    """A network with trained variables, and what is needed to use it.

    Attributes:
        network: the Flax module.
        variables: its `params`, `batch_stats` and `attention`.
        preprocessing: makes inputs of pictures; None if the inputs are something else.
        classes: names of the classes, in the order of the logits; empty if they are not known.
        about: the other entries of `config.json`, such as `task`, `input_shape` and `about`.
    """

    network: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    about: dict[str, Any]


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    features_only: bool = False,
    revision: str | None = None,
    key: jax.Array | None = None,
    **fields: Any,
) -> Pretrained:
    """Returns a network with trained variables and the preprocessing of its pictures.

    Nothing is downloaded but for `hf:USER/NAME`, by the library huggingface_hub.

    Args:
        source: a folder that `save_pretrained` or `experiments.export --format=hub` wrote;
            `'hf:USER/NAME'`, such a folder on the Hugging Face hub; or with `weights` a name of
            `dyn.models.list_models()`.
        weights: a file of another library for the network of this name, see `read_weights`. `docs/weights.md`
            lists the files.
        features_only: whether the network returns the features of each stage, see `create_model`.
        revision: branch, tag or commit of the repository on the hub.
        key: random key of what is new; None for `jax.random.key(0)`.
        fields: fields of the network that are to differ. With another `num_classes` than the file's the
            classifier is new; with 0 the network returns the classifier's inputs.

    Raises:
        ValueError: if a name is unknown, or a file is damaged or of another network.
        FileNotFoundError: if the folder lacks a file.
        OSError: if the repository cannot be fetched.
        ImportError: if a library is missing: safetensors or huggingface_hub.

    Example:
        >>> import tempfile
        >>> import jax, numpy as np
        >>> from dyn.interop import from_pretrained, save_pretrained
        >>> from dyn.models import Preprocessing, create_model
        >>> described = {"name": "resnet18_odconv1x", "num_classes": 3, "width": 8, "stage_sizes": [1]}
        >>> variables = create_model(**described).init(jax.random.key(0), np.ones((1, 32, 32, 3), np.float32))
        >>> folder = tempfile.mkdtemp()
        >>> prepare = Preprocessing(size=32)
        >>> save_pretrained(folder, described, variables, input_shape=(32, 32, 3), preprocessing=prepare)
        >>> network, variables, prepare, *_ = from_pretrained(folder)
        >>> picture = np.zeros((50, 40, 3), np.uint8)
        >>> network.apply(variables, prepare([picture])).shape
        (1, 3)
    """
    name = os.fspath(source)
    if features_only:
        fields["num_classes"] = None
    if weights is not None:
        return _load_file(name, weights, fields, key)
    if name.startswith(HUB):
        folder = _fetch_repository(name.removeprefix(HUB), revision)
    elif os.path.isdir(name):
        folder = Path(name)
    elif name in NETWORKS:
        raise ValueError(
            f"{name} is the name of a network, which comes without weights: pass weights=FILE "
            "(docs/weights.md lists the files), a folder of a pretrained network, or 'hf:USER/NAME'."
        )
    else:
        raise ValueError(_explain_source(name))
    return _load_folder(folder, fields, key)


def save_pretrained(
    folder: str | os.PathLike[str],
    network: Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    input_shape: Sequence[int],
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    task: str = "classification",
    about: Mapping[str, Any] | None = None,
    card: str = "",
) -> None:
    """Writes a folder that `from_pretrained` reads: `config.json`, `model.safetensors` and `README.md`.

    Args:
        folder: where; files of an older network in it are replaced.
        network: the arguments of `dyn.models.create_model`, of types that JSON has.
        variables: those of the network.
        input_shape: shape of one input, without B.
        preprocessing: makes inputs of pictures; None if the inputs are something else.
        classes: names of the classes, in the order of the logits.
        task: of the network, such as 'classification', or 'tagging' for several labels.
        about: anything else that JSON can hold.
        card: text of `README.md`.

    Raises:
        ValueError: if the description is of another network than the variables, JSON cannot hold it, or
            there are more or fewer names of classes than outputs.
        ImportError: if the library safetensors is not installed.
    """
    files = make_pretrained_files(
        network,
        variables,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=classes,
        task=task,
        about=about,
    )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {**files, CARD: card.encode()}.items():
        (path / name).write_bytes(content)


def make_pretrained_files(
    network: Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    input_shape: Sequence[int],
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    task: str = "classification",
    about: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """Returns the contents of `model.safetensors` and `config.json`.

    Arguments are those of `save_pretrained`, and `metadata`, texts for the header of `model.safetensors`.

    Raises:
        ValueError: if the description is of another network than the variables, JSON cannot hold it, or
            there are more or fewer names of classes than outputs.
        ImportError: if the library safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(
            "writing a pretrained network needs the library safetensors: pip install safetensors."
        ) from error

    try:
        described = json.loads(json.dumps(dict(network)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"JSON cannot hold the description of the network ({error}): describe layers by their names, "
            'as in {"name": "odconv", "num_kernels": 4}.'
        ) from error
    flat = _flatten(variables)
    # Not `ascontiguousarray`, which makes vectors of scalars.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
    made = _make_network(described, input_shape)
    outputs = getattr(made, "num_classes", None)
    if classes and outputs is not None and len(classes) != outputs:
        raise ValueError(
            f"there are {len(classes)} names of classes for the {outputs} outputs of the network: pass one "
            "for each output, in their order, or none."
        )
    _fit(made, input_shape, arrays, "the variables", None, may_differ=False)
    content = save(arrays, dict(metadata or {}))
    config = {
        "library_name": "dyn",
        "format": _FORMAT,
        "network": described,
        "task": task,
        "input_shape": list(map(int, input_shape)),
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "classes": list(classes),
        "about": dict(about or {}),
        "sha256": {WEIGHTS: hashlib.sha256(content).hexdigest()},
    }
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    # The checksum last: what an interrupted writer leaves is refused.
    return {WEIGHTS: content, CONFIG: f"{text}\n".encode()}


def _explain_source(name: str) -> str:
    """Returns the message for a source that is neither a folder nor the name of a network."""
    if os.path.exists(name):
        return (
            f"{name!r} is a file: pass the folder of a pretrained network, or the name of a network and the "
            "file as weights=FILE."
        )
    hub = "For a repository of the Hugging Face hub, write 'hf:USER/NAME'."
    if len(Path(name).parts) > 1:  # Names of networks have no slash.
        return f"there is no folder {name!r}. {hub}"
    return f"{name!r} is neither a folder nor the name of a network{suggest_names(name, NETWORKS)} {hub}"


def _fetch_repository(repository: str, revision: str | None) -> Path:
    """Returns the folder of the hub's client with the files of a repository."""
    try:
        import huggingface_hub  # pyrefly: ignore [missing-import]
    except ImportError as error:
        raise ImportError(
            f"{HUB}{repository} needs the library huggingface_hub: pip install huggingface_hub. A folder on "
            "this machine needs none: pass its path."
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]
        )
    except (OSError, ValueError) as error:  # no network, no such repository, an invalid name
        raise OSError(f"{HUB}{repository} cannot be fetched: {error}") from error
    return Path(folder)


def _load_folder(folder: Path, fields: Mapping[str, Any], key: jax.Array | None) -> Pretrained:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: a pretrained network is a folder with {CONFIG} and {WEIGHTS}, as "
                "save_pretrained and experiments.export --format=hub write it."
            )
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != config["sha256"][WEIGHTS]:
        raise ValueError(
            f"{path} is not the file that {CONFIG} describes: its SHA-256 is {found}, and not "
            f"{config['sha256'][WEIGHTS]}. It is damaged, or of another version: fetch the folder again."
        )
    described = {**config["network"], **fields}
    shape = config["input_shape"]
    network = _make_network(described, shape, folder / CONFIG)
    # A network without the entry has its own number of classes, and None is that of one without classifier.
    own = config["network"].get("num_classes", "its own")
    differs = described.get("num_classes", "its own") != own
    variables = _fit(network, shape, read_weights(path), path, key, may_differ=differs)
    return Pretrained(
        network,
        variables,
        config["preprocessing"],
        tuple(config["classes"]) if not differs else (),
        {name: config[name] for name in ("task", "input_shape", "about")},
    )


def _load_file(
    name: str, path: str | os.PathLike[str], fields: Mapping[str, Any], key: jax.Array | None
) -> Pretrained:
    """Fills a network of the catalogue with the weights of another library."""
    find_named(NETWORKS, name, "the network")
    weights = read_weights(path)
    shape = (64, 64, count_channels(weights) or 3)
    found = num_classes(weights)
    described = {"name": name} if found is None else {"name": name, "num_classes": found}
    # The whole network takes all weights; another end then takes what it has.
    others = {field: value for field, value in fields.items() if field != "num_classes"}
    whole = _make_network({**described, **others}, shape)
    try:
        imported = from_torch(_list_shapes(whole, shape), weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    filled = _flatten(imported.variables)
    arrays = {name: leaf for name, leaf in filled.items() if not name.startswith("attention/")}
    differs = "num_classes" in fields and fields["num_classes"] != found
    network = _make_network({**described, **fields}, shape) if differs else whole
    variables = _fit(network, shape, arrays, path, key, may_differ=differs)
    if name.startswith("dymn") and name.endswith("_im"):
        variables = set_temperature(variables, 30.0)  # as in the authors' training on ImageNet
    preprocessing = find_preprocessing(name)
    about: dict[str, Any] = {"task": "classification", "about": {"weights": str(path)}}
    if preprocessing and preprocessing.size:
        about["input_shape"] = [preprocessing.size, preprocessing.size, shape[-1]]
    return Pretrained(network, variables, preprocessing, (), about)


def _make_network(
    described: Mapping[str, Any], shape: Sequence[int], path: Path | None = None
) -> nn.Module:
    """Makes a described network; errors of a file at `path` name it."""
    try:
        fields: dict[str, Any] = {"channels": shape[-1], **described}
        return create_model(**fields)
    except Exception as error:  # Layers raise errors of many types.
        if path is None:
            raise
        raise ValueError(f"{path}: the network cannot be made: {error}") from error


def _list_shapes(network: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the shapes of a network's variables; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), x)
    return {name: variables[name] for name in _COLLECTIONS if name in variables}


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: dict(variables[name]) for name in _COLLECTIONS if name in variables}
    return traverse_util.flatten_dict(kept, sep="/")


def _fit(
    network: nn.Module,
    shape: Sequence[int],
    arrays: Mapping[str, Any],
    source: object,
    key: jax.Array | None,
    *,
    may_differ: bool,
) -> dict[str, Any]:
    """Returns the variables of a network from arrays by path.

    Args:
        network: the network.
        shape: of one of its inputs.
        arrays: by path, `params/head/bias`.
        source: their origin, for errors.
        key: of what is new: the classifier, if it may differ, and temperatures that the arrays lack.
        may_differ: whether the network may have another end than the arrays, or none.

    Raises:
        ValueError: if arrays are missing, too many, or of other shapes; it names the first ones.
    """
    try:
        expected = _flatten(_list_shapes(network, shape))
    except Exception as error:  # Layers raise errors of many types.
        raise ValueError(
            f"{source}: the network that is described cannot take inputs of the shape {list(shape)}: {error}"
        ) from error
    new, problems = [], []
    for name, leaf in expected.items():
        found = tuple(np.shape(arrays[name])) if name in arrays else None
        if found == leaf.shape:
            if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
                problems.append(f"{name} has the dtype {arrays[name].dtype}")
            continue
        is_end = may_differ and "head" in name.split("/")
        if is_end or (found is None and name.startswith("attention/")):
            new.append(name)
        elif found is None:
            problems.append(f"{name} {leaf.shape} is missing")
        else:
            problems.append(f"{name} is {found} and not {leaf.shape}")
    if not may_differ:
        problems += [f"{name} has no place" for name in arrays if name not in expected]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{source}: the arrays are not those of the network: {', '.join(problems[:5])}{more}."
        )
    filled = {name: jnp.asarray(arrays[name]) for name in expected if name not in new}
    if new:
        filled |= _initialise(network, shape, jax.random.key(0) if key is None else key, new)
    return {"params": {}, **traverse_util.unflatten_dict(filled, sep="/")}


def _initialise(
    network: nn.Module, shape: Sequence[int], key: jax.Array, names: Sequence[str]
) -> dict[str, jax.Array]:
    """Returns new values of some of a network's variables; the others are not computed."""

    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        flat = _flatten(network.init(key, jnp.zeros((1, *shape))))
        return {name: flat[name] for name in names}

    return draw(key)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_shape(value: Any) -> bool:
    sizes = isinstance(value, list) and all(type(n) is int and 0 < n < 2**24 for n in value)
    return sizes and len(value) in (2, 3)


def _has_checksum(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get(WEIGHTS), str)


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


# Each entry of the file: a check, and what it must be.
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_network, "the description of a network, with its name"),
    "task": (lambda value: isinstance(value, str), "a text"),
    "input_shape": (_is_shape, "two or three sizes"),
    "preprocessing": (lambda value: value is None or isinstance(value, dict), "null or an object"),
    "classes": (_is_texts, "a list of names"),
    "about": (lambda value: isinstance(value, dict), "an object"),
    "sha256": (_has_checksum, f"an object with the checksum of {WEIGHTS}"),
}


def _read_config(path: Path) -> dict[str, Any]:
    """Reads the description of a pretrained network, with its preprocessing made.

    Raises:
        ValueError: if it has another form; the message names the file and the entry.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("library_name") != "dyn":
        raise ValueError(f"{path} does not describe a network of this library, dyn.")
    if config.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has the format {config.get('format')!r}, and this version reads {_FORMAT}: install a "
            "newer version of the library."
        )
    for name, (is_valid, wanted) in _ENTRIES.items():
        if name not in config or not is_valid(config[name]):
            raise ValueError(f"{path}: {name} must be {wanted}.")
    if config["preprocessing"] is not None:
        try:
            config["preprocessing"] = Preprocessing(**config["preprocessing"])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: preprocessing: {error}") from error
    return config
