"""Writes the network of a run as a folder for the Hugging Face hub, and sends it there.

`dyn.from_pretrained` reads the folder with the library alone, without the laboratory.
"""

import importlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dyn import models
from dyn.interop.pretrained import CARD, CONFIG, HUB, WEIGHTS, make_pretrained_files
from experiments.core.console import format_seconds, format_value
from experiments.core.errors import UserError
from experiments.core.escaping import escape_markdown
from experiments.core.files import replace_file, to_json
from experiments.inference.trained import Trained
from experiments.runs.folder import list_versions
from experiments.runs.metrics import select_scalars
from experiments.runs.schema import read_summary
from experiments.tasks import Classification, Tagging, make_task

# Settings with paths of the machine that trained, and accounts: nobody else's business.
PRIVATE = (
    *("init_from", "wandb", "data.source", "data.dir", "data.extra_train"),
    *("audio.annotations", "audio.splits", "audio.noise_folder"),
)
MAX_CLASSES = 50  # that a card lists


def write_folder(trained: Trained, folder: Path, license: str = "") -> None:
    """Writes `config.json`, `model.safetensors` and `README.md`, the model card.

    Args:
        trained: the network of a classification or tagging run.
        folder: where; files of an older network in it are replaced.
        license: of the weights, such as 'apache-2.0'; '' if it is not stated.

    Raises:
        UserError: if the network is of another task, or cannot be described.
    """
    config = hide_private(trained.config)
    if "model" in config and "remat" in config.model:
        config.model.remat = "none"
    task = make_task(config)
    if not isinstance(task, Classification | Tagging):
        raise UserError(
            f"--format=hub: {trained.source} is a run of the task {config.task}, and only classifiers can be "
            "described; --format=safetensors takes any run."
        )
    described = task.describe_model(len(trained.classes), spatial_axes=len(trained.shape) - 1)
    facts = collect_facts(trained, config, license)
    metadata = {**trained.make_metadata(), "config": config.to_dict()}
    try:
        files = make_pretrained_files(
            described,
            trained.variables,
            input_shape=trained.shape,
            preprocessing=make_preprocessing(trained),
            classes=trained.classes,
            task=config.task,
            about=to_json(facts),
            metadata={name: json.dumps(to_json(value)) for name, value in metadata.items()},
        )
    except ValueError as error:
        raise UserError(f"--format=hub: {trained.source}: {error}") from error
    sha256 = json.loads(files[CONFIG])["sha256"][WEIGHTS]
    card = make_card(trained, config, described, facts, sha256)
    for name, content in {**files, CARD: card.encode()}.items():
        with replace_file(folder / name) as temporary:
            temporary.write_bytes(content)


def hide_private(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config without the paths and accounts of whoever trained."""
    copy = config.copy_and_resolve_references()
    for path in PRIVATE:
        *sections, name = path.split(".")
        target = copy
        for section in sections:
            target = target.get(section, {})
        if name in target:
            target[name] = ""
    return copy


def make_preprocessing(trained: Trained) -> models.Preprocessing | None:
    """Returns what makes inputs of pictures, with the numbers of the run's evaluation; None for series.

    Spectrograms and pictures that are no squares are normalised only.
    """
    if not trained.is_picture:
        return None
    height, width = trained.shape[:2]
    size = height if height == width and not trained.is_audio else None
    normalise = trained.config.normalise
    return models.Preprocessing(tuple(normalise.mean), tuple(normalise.std), size=size)


def collect_facts(trained: Trained, config: ConfigDict, license: str) -> dict[str, Any]:
    """Returns what the card and `config.json` say of a run, as far as it is known."""
    summary = {}
    if trained.source.is_dir():
        summary = read_summary(trained.source) or {}
    facts = {
        "data": config.dataset,
        "examples": summary.get("examples"),
        "data_digest": summary.get("data"),
        "recipe": config.name,
        "seed": config.seed,
        "metric": summary.get("metric"),
        "test": select_scalars(summary.get("test", {}), len(trained.classes)),
        **{name: summary.get(name) for name in ("steps", "parameters", "macs", "seconds")},
        "devices": summary.get("devices"),
        "license": license or None,
        "versions": summary.get("versions") or list_versions(),
    }
    if trained.is_audio:
        facts["audio"] = config.audio.to_dict()
    return {name: value for name, value in facts.items() if value not in (None, {}, [])}


def make_card(
    trained: Trained,
    config: ConfigDict,
    described: Mapping[str, Any],
    facts: Mapping[str, Any],
    sha256: str,
) -> str:
    """Returns the model card, Markdown with a header of YAML."""
    tags = ["jax", "flax", "dynamic-convolution"]
    header = {"library_name": "dyn", "tags": tags}
    if "license" in facts:
        header["license"] = facts["license"]
    if trained.is_picture:
        kind = "audio" if trained.is_audio else "image"
        header["pipeline_tag"] = f"{kind}-classification"
    # JSON is YAML.
    entries = [f"{name}: {json.dumps(value)}" for name, value in header.items()]
    lines = ["---", *entries, "---", ""]
    lines += [f"# {escape_markdown(config.name)} on {escape_markdown(facts['data'])}", ""]
    lines += [
        f"A network of the library `dyn` for {config.task}, with {len(trained.classes)} classes.",
        "",
        "```python",
        "from dyn import from_pretrained",
        "",
        'network, variables, preprocessing, classes, about = from_pretrained("FOLDER or hf:USER/NAME")',
        f"logits = network.apply(variables, {'preprocessing(pictures)' if trained.is_picture else 'inputs'})",
        "```",
        "",
        _describe_inputs(trained),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {escape_markdown(value)} |" for name, value in _list_rows(facts)),
        f"| SHA-256 of `{WEIGHTS}` | `{sha256}` |",
        "",
    ]
    if len(trained.classes) <= MAX_CLASSES:
        lines += [f"Classes: {escape_markdown(', '.join(trained.classes))}.", ""]
    for title, content in (("Network", described), ("Recipe", config.to_dict())):
        text = json.dumps(to_json(content), indent=2, ensure_ascii=False)
        lines += [f"## {title}", "", "```json", text, "```", ""]
    return "\n".join(lines)


def _describe_inputs(trained: Trained) -> str:
    if trained.is_audio:
        return (
            "The inputs are spectrograms, drawn and coloured as `about.audio` in `config.json` says; "
            "`preprocessing` normalises them."
        )
    if trained.is_picture:
        return (
            "Pictures are uint8; `preprocessing` resizes, crops and normalises them as in the evaluation of "
            "the run."
        )
    return "The inputs are series, z-normalised, padded with zeros to one length."


def _list_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of the card's table; what is not known is said."""
    unknown = "not recorded"
    test = ", ".join(
        f"{name} {format_value(value)}" for name, value in facts.get("test", {}).items()
    )
    counts = ", ".join(f"{name} {count:,}" for name, count in facts.get("examples", {}).items())
    numbers = {
        name: f"{facts[name]:,}" if name in facts else unknown
        for name in ("parameters", "macs", "steps")
    }
    seconds = format_seconds(facts["seconds"]) if "seconds" in facts else unknown
    devices = ", ".join(sorted(set(facts.get("devices", [])))) or unknown
    return [
        ("data", facts["data"] + (f" ({counts})" if counts else "")),
        ("recipe", f"{facts['recipe']}, below"),
        ("seed", str(facts["seed"])),
        ("test", test or unknown),
        ("parameters", numbers["parameters"]),
        ("multiply-adds per input", numbers["macs"]),
        ("training", f"{numbers['steps']} steps, {seconds}, on {devices}"),
        ("licence", facts.get("license", "not stated: ask whoever trained it")),
        ("versions", ", ".join(f"{name} {v}" for name, v in facts["versions"].items())),
    ]


def check_push(repository: str, file_format: str) -> None:
    """Checks that a folder can be sent to a repository, before anything is written.

    Raises:
        UserError: if huggingface_hub is not installed, the name is not USER/NAME, or the format another one.
    """
    if file_format != "hub":
        raise UserError(f"--push={repository}: write --format=hub, the only one for the hub.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--push={repository}: write USER/NAME, a repository of the hub.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            "--push needs huggingface_hub, which is not installed: pip install huggingface_hub."
        )


def push_folder(folder: Path, repository: str) -> str:
    """Sends a folder to a repository of the hub, which is made if there is none, and returns its address.

    The client huggingface_hub knows the account: `hf auth login`.

    Raises:
        UserError: if the hub refuses it.
    """
    client: Any = importlib.import_module("huggingface_hub")
    try:
        client.create_repo(repository, exist_ok=True)
        client.upload_folder(
            repo_id=repository, folder_path=str(folder), allow_patterns=[CONFIG, WEIGHTS, CARD]
        )
    except (OSError, ValueError) as error:  # no network, no such account, an invalid name
        raise UserError(
            f"{repository} could not be sent: {error} The folder is complete: {folder}."
        ) from error
    return f"{HUB}{repository}"
