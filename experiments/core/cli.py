"""Runs the commands: words and flags in, one sentence and an exit code out.

A command is a function `main`, and its usage is the docstring of its file:

    def main(run: str, *files: str, top: int = 5, out: str = "") -> None: ...

    if __name__ == "__main__":
        cli.run_command(main, __doc__)

Parameters by position are the words of the command line, here `RUN FILES...`. Keyword-only parameters are
its flags, here `--top=5` and `--out=PATH`, and have a default. Annotations decide how a flag is read: `bool`
(`--top`, `--notop`), `int`, `float`, `str`, each with `| None` or without; `Sequence[str]` is a flag that may
be given several times; and `config: ConfigDict | None` is `--config=FILE[:ARGUMENT]` with its overrides
`--config.KEY=VALUE`. Every command has `--help` and `--debug`.
"""

import dataclasses
import difflib
import inspect
import itertools
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.core.config_file import (
    CONFIGS,
    describe_configs,
    find_setting,
    load_config_file,
)
from experiments.core.console import print_line, print_lines, print_page
from experiments.core.errors import UserError, describe_kind
from experiments.core.extras import explain_missing_module
from experiments.core.help_pages import format_entries

INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C and SIGTERM
STOPPED = "stopped; the same command continues from the last checkpoint"
_HELP = ("--help", "-h", "-help")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_DEFINITIONS = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    Sequence[str]: flags.DEFINE_multi_string,
}
_EXAMPLES = {"bool": True, "int": 3, "float": 0.5}  # by absl's name, of flags without a default


@dataclasses.dataclass(frozen=True)
class ConfigFlags:
    """Functions of the settings, which this file knows nothing about.

    Attributes:
        prepare: adds settings that flags set and a config does not have yet; called with the config and the
            texts of the flags by dotted path.
        describe: lists the settings of a config, for `--help`.
    """

    prepare: Callable[[ConfigDict, Mapping[str, str]], None]
    describe: Callable[[ConfigDict], str]


def run_command(main: Callable[..., None], usage: str | None, **options: Any) -> NoReturn:
    """Runs a command with the words of the command line, and ends the process; see `run`."""
    # The names in an error may hold characters that a terminal would obey.
    sys.excepthook = lambda *error: print_lines("".join(traceback.format_exception(*error)), True)
    code = run(main, sys.argv, usage, **options)
    # Files are complete or not there. Threads in the middle of a checkpoint, and other processes
    # that never come to the end, could keep this one waiting forever.
    is_distributed = "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
    if code in (INTERRUPTED, TERMINATED) or (code and is_distributed):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(
    main: Callable[..., None],
    argv: Sequence[str],
    usage: str | None,
    *,
    failure: str = "",
    stopped: str = STOPPED,
    settings: ConfigFlags | None = None,
) -> int:
    """Runs a command in this process.

    Args:
        main: the command, see above.
        argv: the name of the program, and everything after it.
        usage: printed for `--help`; its first indented line also after a missing word.
        failure: the beginning of a message about a file that cannot be written, such as "The page cannot be
            written". Without it an OSError is shown with its traceback.
        stopped: the message after Ctrl-C.
        settings: of the configs, if `main` takes one.

    Returns:
        The exit code: 0, 2 after a mistake that the message explains, 130 after Ctrl-C, 143 after SIGTERM.
    """
    usage = (usage or "").strip()
    try:
        if any(word in _HELP for word in argv[1:]):
            more = f"\n\n{_describe_config(argv, settings)}" if settings else ""
            print_page(f"{usage}{more}")
            return 0
        words, options = parse_command_line(main, argv, usage, settings)
        try:
            main(*words, **options)
        except OSError as error:
            if not failure:
                raise
            raise UserError(f"{failure}: {error}.") from error
        except ModuleNotFoundError as error:
            if not (sentence := explain_missing_module(error.name or "")):
                raise
            raise UserError(sentence) from error
        return 0
    except UserError as error:
        if any(word.lstrip("-").lower() in ("debug", "debug=true", "debug=1") for word in argv[1:]):
            print_lines(traceback.format_exc(), error=True)
        print_line(f"error: {join_lines(str(error))}", error=True)
        return 2
    except KeyboardInterrupt as stop:
        print_line(error=True)
        print_line(str(stop) or stopped, error=True)
        return getattr(stop, "exit_code", INTERRUPTED)


def parse_command_line(
    main: Callable[..., None], argv: Sequence[str], usage: str, settings: ConfigFlags | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Returns the words and the flags of a command line, as `main` takes them; see `run`."""
    parameters = inspect.signature(main, eval_str=True).parameters
    known = flags.FlagValues()
    known.set_gnu_getopt(True)  # words and flags in any order
    flags.DEFINE_bool("debug", False, "", flag_values=known)
    # A `config: str` is a flag like any other.
    takes_config = "config" in parameters and parameters["config"].annotation is not str
    names = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in names:
        if name != "config" or not takes_config:
            _define_flag(name, parameters[name], known)
    for name in flags.FLAGS:  # of libraries, and of commands that define their own
        flag = flags.FLAGS[name]
        if name == flag.name and name not in known:  # another name is the flag's short one
            known[name] = flag
    config = None
    try:
        argv = known.read_flags_from_files(list(argv), force_gnu=True)
        if takes_config:
            argv, config = _define_config(argv, known, settings)
        words = known(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(known), n=1)
        hint = f"did you mean '--{near[0]}'?" if near else "--help lists the flags."
        raise UserError(f"There is no flag --{error.flagname}; {hint}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_explain_value(config, known, str(error))) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    flags.FLAGS.mark_as_parsed()
    _check_words(parameters, words, usage)
    options = {name: known[name].value for name in names if name in known}
    return words, options | ({"config": config} if takes_config else {})


def list_overrides(argv: Sequence[str]) -> list[str]:
    """Returns the dotted names of the config's settings that flags set."""
    matches = (re.match(r"--?(?:no)?config\.([^=]*)", word) for word in argv[1:])
    return [match[1] for match in matches if match]


def keep_compiled() -> None:
    """Keeps compiled programs in `~/.cache/dyn/xla`, unless another place was chosen."""
    import jax  # mistakes in the flags are answered without it

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/dyn/xla").expanduser()))


def join_lines(text: str) -> str:
    """Returns a message in one line, with the middle of very long words left out."""
    return " ".join(w if len(w) <= 160 else f"{w[:80]}...{w[-80:]}" for w in text.split())


def _define_flag(name: str, parameter: inspect.Parameter, known: flags.FlagValues) -> None:
    """Defines the flag of a keyword-only parameter."""
    kind = parameter.annotation
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    default = parameter.default if kind != Sequence[str] else list(parameter.default)
    _DEFINITIONS[kind](name, default, "", flag_values=known)


def list_override_texts(argv: Sequence[str]) -> dict[str, str]:
    """Returns the text of each setting that flags set, by dotted path.

    `--config.epochs=5` and `--config.epochs 5` are the same; a flag alone, such as `--config.static`, has ''.
    """
    texts = {}
    for word, after in itertools.pairwise([*argv[1:], "--"]):
        if match := re.match(r"--?(?:no)?config\.([^=]*)(=?)(.*)", word, re.DOTALL):
            alone = after.startswith("--") or word.lstrip("-").startswith("no")
            texts[match[1]] = match[3] if match[2] or alone else after
    return texts


def _describe_config(argv: Sequence[str], settings: ConfigFlags) -> str:
    """Returns the settings of the config that a command line names, or the list of configs."""
    place, _ = _take_config([word for word in argv if word not in _HELP])
    if place is None:
        return (
            f"The configs:\n\n{format_entries(describe_configs(CONFIGS))}\n\n"
            "--help together with --config=NAME lists the settings of that config."
        )
    return settings.describe(load_config_file(place))


def _define_config(
    argv: Sequence[str], known: flags.FlagValues, settings: ConfigFlags | None
) -> tuple[list[str], ConfigDict | None]:
    """Loads the file of `--config`, if there is one, and defines a flag for each overridden setting.

    Returns the command line without `--config`, and the config, which parsing the command line changes.
    """
    place, rest = _take_config(argv)
    if place is None:
        return rest, None
    config = load_config_file(place)
    if settings:
        settings.prepare(config, list_override_texts(rest))
    # ml_collections finds these mistakes too, but its messages are for the config's author.
    for path in list_overrides(rest):
        find_setting(config, path)
    config_flags.DEFINE_config_dict("config", config, flag_values=known, sys_argv=rest)
    return rest, known["config"].value


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of `--config`, None without the flag, and the other words of a command line."""
    places = [i for i, word in enumerate(argv) if i and re.match(r"--?config(=|$)", word)]
    if not places:
        return None, list(argv)
    if len(places) > 1:
        raise UserError("--config is given twice: one run has one config.")
    start = places[0]
    _, equals, place = argv[start].partition("=")
    end = start + 1
    if not equals:
        place, end = "".join(argv[end : end + 1]), end + 1
    return place, [*argv[:start], *argv[end:]]


def _check_words(
    parameters: Mapping[str, inspect.Parameter], words: Sequence[str], usage: str
) -> None:
    """Raises UserError if `main` takes more words than there are, or fewer."""
    names = [name for name, parameter in parameters.items() if parameter.kind in _POSITIONAL]
    several = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
    if len(words) < len(names):
        example = next((line.strip() for line in usage.splitlines() if line[:1] == " "), "")
        raise UserError(f"{names[len(words)].upper()} is missing: {example}")
    if len(words) > len(names) and not several:
        stray = words[len(names)]
        raise UserError(f"'{stray}' is not a flag; flags are written --name=value.")


def _explain_value(config: ConfigDict | None, known: flags.FlagValues, message: str) -> str:
    """Says what kind of value a flag takes, instead of absl's message about another one."""
    example = None
    if match := re.match(r"flag --([\w.]+)=(.*?): ", message, re.DOTALL):
        name, value = match.groups()
        if config is not None and name.startswith("config."):
            example = find_setting(config, name.removeprefix("config."))
        else:
            example = known[name].default
            if example is None:
                example = _EXAMPLES.get(known[name].flag_type())
    if example is None:
        return message
    return f"--{name}={value} is not {describe_kind(example)}"
