"""Values that people may type for a setting, and the answers of the command to them."""

from pathlib import Path

from ml_collections import ConfigDict

import experiments.configs
from experiments.core.config_file import list_configs, load_config_file

CONFIGS = list_configs(Path(experiments.configs.__file__).parent)
INTS = (
    *("", "abc", "1.5", "-1", "0", "1", "3", "7", "nan", "None", "[1,2]", "True", "1e3", "0x10"),
    *("65536", "2147483647", "2147483648", "99999999999999999999", "-99999999999999999999"),
)
NUMBERS = (
    *("", "abc", "-1", "0", "nan", "inf", "-inf", "1e300", "1e-300", "1e39", "1e30", "1e-30"),
    *("None", "(1,2)", "True", "0.5", "1", "100"),
)
TEXTS = ("", "xyzzy", "None", "0", "[1]", "a/b", "..", "x" * 5000, "/nowhere", "ä b", "1,2", "='\"")
TRUTHS = ("", "maybe", "2", "None", "nan", "true", "False")
TUPLES = (
    *("", "()", "(0.,)", "(0.,0.,0.)", "('a',)", "0.5", "(nan,)", "(inf,)", "None", "[0.5]"),
    *("(0.1,0.2)", "(1e300,)", "((1,),)", "(1,2", "(0.5,0.5,0.5)"),
)
VALUES = {int: INTS, float: NUMBERS, str: TEXTS, bool: TRUTHS, tuple: TUPLES}


def list_settings(config, above=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from list_settings(value, f"{above}{name}.")
        else:
            yield above + name, value


def list_cases(*names):
    """Lists every value of every setting of some configs: (flag of the config, path, value)."""
    return [
        (f"--config=experiments/configs/{name}.py:smoke", path, value)
        for name in names
        for path, default in list_settings(load_config_file(f"experiments/configs/{name}.py:smoke"))
        for value in VALUES[type(default)]
    ]


def has_value(config, path, value):
    """Returns whether a setting has the value that was typed."""
    for key in path.split("."):
        config = config[key]
    match config:
        case bool():
            return str(config).lower() == value.lower()
        case str():
            return config == value
        case tuple():
            typed = eval(value)
            return config == (tuple(typed) if isinstance(typed, list | tuple) else (typed,))
        case int():
            return config == int(value, 0)
        case _:
            return config == float(value)


def is_accepted(ask, case, deep=False):
    """Types one case: it is accepted as it is (True), or refused in one line (False)."""
    file, path, value = case
    typed = f"{file} --config.{path}={value}"
    try:
        answer = ask(file, f"--config.{path}={value}", deep=deep)
    except Exception as error:
        raise AssertionError(typed) from error
    assert answer or has_value(ask.seen.config, path, value), typed
    return not answer
