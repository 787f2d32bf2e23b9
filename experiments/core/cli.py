"""What all commands share: flags in, one sentence and an exit code out."""

import contextlib
import difflib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.core.errors import UserError, kind, nearest

FLAGS = flags.FLAGS
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run, or the study, lives.")
DEBUG = flags.DEFINE_bool("debug", False, "Whether errors show their traceback.")

LONGEST_WORD = 160


def run(main: Callable[[], None], argv: list[str], usage: str) -> int:
    """Parses the flags and calls `main`; a mistake of the user's becomes one message.

    Returns:
        The exit code: 0, 2 for a mistake that the message explains, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        print(usage.strip())
        return 0
    try:
        _parse(argv)
        main()
        return 0
    except UserError as error:
        if any(word.lstrip("-").lower() in ("debug", "debug=true", "debug=1") for word in argv[1:]):
            traceback.print_exc()
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        words = str(stop) or "stopped; the same command continues from the last checkpoint"
        print(f"\n{words}", file=sys.stderr)
        return getattr(stop, "exit_code", 130)


def one_line(text: str) -> str:
    """A message in one line; of words that nobody would read to their end the middle is left out."""
    half = LONGEST_WORD // 2
    words = (w if len(w) <= LONGEST_WORD else f"{w[:half]}...{w[-half:]}" for w in text.split())
    return " ".join(words)


def leave(code: int, at_once: bool = False) -> None:
    """Ends the process with an exit code.

    After Ctrl-C and SIGTERM, and where it is asked for, at once: what is written is whole or not there,
    and threads that are in the middle of a checkpoint could keep the process waiting for good.
    """
    if at_once or code in (130, 143):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def without_words(argv: list[str]) -> tuple[list[str], list[str]]:
    """A command's name with its flags, and the words between them, such as the runs that it is about."""
    name, *rest = argv
    given = [word for word in rest if not word.startswith("-")]
    return [name, *(word for word in rest if word.startswith("-"))], given


def keep_compiled() -> None:
    """Keeps compiled programs in `~/.cache/dyn/xla`, unless another place was chosen."""
    import jax  # mistakes in the flags are answered without it

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/dyn/xla").expanduser()))


def overridden(argv: list[str]) -> list[str]:
    """The dotted names of the config's fields that flags set."""
    found = (re.match(r"--?(?:no)?config\.([^=]*)", word) for word in argv[1:])
    return [match[1] for match in found if match]


def _parse(argv: list[str]) -> None:
    """Parses the flags, in terms of UserError."""
    # ml_collections finds these mistakes too, but its messages are for the config's author.
    config = _load_config(argv)
    if config is not None:
        for path in overridden(argv):
            _field(config, path)
    try:
        rest = FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(FLAGS), n=1)
        hint = f"did you mean '--{near[0]}'?" if near else "--help lists the flags."
        raise UserError(f"There is no flag --{error.flagname}; {hint}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(config, argv, str(error))) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest:
        raise UserError(f"'{rest[0]}' is not a flag; flags are written --name=value.")


def _load_config(argv: list[str]) -> ConfigDict | None:
    """The config as its file has it, before any override; None where no file is named."""
    flag = re.compile(r"--?config(=|$)")
    positions = [i for i, word in enumerate(argv) if i and flag.match(word)]
    if not positions:
        return None
    if len(positions) > 1:
        raise UserError("--config is given twice: one run has one config.")
    position = positions[0]
    _, equals, value = argv[position].partition("=")
    if not equals:
        value = "".join(argv[position + 1 : position + 2])
    file, colon, argument = value.partition(":")
    path = Path(file)
    if path.suffix != ".py" or not os.path.isfile(path):
        folder = path if os.path.isdir(path) else path.parent
        known = [name for name in _config_names(folder) if name != "common"]
        hint = nearest(path.stem, known) if known else "; no configs are in that folder."
        raise UserError(f"There is no config {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with _explained(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        names = ", ".join(name for name in _config_names(path.parent) if name != path.stem)
        raise UserError(f"{path} is no config: it has no get_config. Beside it there are {names}.")
    with _explained(path):
        config = module.get_config(*([argument] if colon else []))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path} is no config: its get_config returns {config!r}, and no ConfigDict."
        )
    return config


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """People write configs themselves: whatever goes wrong in one is told in a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The config {path} fails: {type(error).__name__}: {error} (--debug shows where)."
        ) from error


def _config_names(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.py") if file.stem[0] != "_")


def _field(config: ConfigDict, path: str) -> object:
    """The value at a dotted path.

    Raises:
        UserError: if there is none, or a group of settings.
    """
    value, above = config, "config"
    for key in path.split("."):
        if not isinstance(value, ConfigDict):
            raise UserError(f"--config.{path}: --{above} is one setting and holds no others.")
        if key not in value:
            raise UserError(f"--{above} has no setting '{key}'{nearest(key, value)}")
        value, above = value[key], f"{above}.{key}"
    if isinstance(value, ConfigDict):
        raise UserError(f"--{above} is a group of settings: {', '.join(value)}.")
    return value


def _wrong_value(config: ConfigDict | None, argv: list[str], message: str) -> str:
    """What kind of value a field of the config wants; absl's message for another flag."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    if config is None or found is None:
        return " ".join(message.split())
    return f"--config.{found[1]}={found[2]} is not {kind(_field(config, found[1]))}"
