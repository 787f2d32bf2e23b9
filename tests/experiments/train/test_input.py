"""Whatever people type: it is done as asked, or answered in one line with exit code 2.

Commands run in this process, up to where XLA would compile (`ask`, in conftest.py): by then flags, config,
data and the first example have been read, and the network, its state and a training step have been traced.
"""

import random
from pathlib import Path

import pytest
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


def leaves(config, above=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def everything(name):
    """Every value of every setting of a config, as flags."""
    file = f"--config=experiments/configs/{name}.py:smoke"
    for path, usual in leaves(load_config_file(f"experiments/configs/{name}.py:smoke")):
        for value in VALUES[type(usual)]:
            yield file, path, value


def of_sound(name):
    return load_config_file(f"experiments/configs/{name}.py").data.name == "audio"


def kept(config, path, value):
    """Whether a setting that was accepted is what was asked for."""
    for key in path.split("."):
        config = config[key]
    match config:
        case bool():
            return str(config).lower() == value.lower()
        case str():
            return config == value
        case tuple():
            given = eval(value)
            return config == (tuple(given) if isinstance(given, list | tuple) else (given,))
        case int():
            return config == int(value, 0)
        case _:
            return config == float(value)


def look(ask, cases, deep):
    """Asks for each case; how many were accepted, and how many refused."""
    counts = {"accepted": 0, "refused": 0}
    for file, path, value in cases:
        said = f"{file} --config.{path}={value}"
        try:
            answer = ask(file, f"--config.{path}={value}", deep=deep)
        except Exception as error:
            raise AssertionError(said) from error
        counts["refused" if answer else "accepted"] += 1
        assert answer or kept(ask.seen.config, path, value), said
    return counts


def test_any_value_of_any_setting_is_taken_as_it_is_or_refused_in_one_line(ask):
    cases = [case for name in CONFIGS for case in everything(name)]
    assert len(cases) > 10_000
    counts = look(ask, random.Random(0).sample(cases, 700), deep=False)
    assert min(counts.values()) > 100, counts


def test_what_is_taken_leads_to_a_training_step(ask):
    """Of values that pass validation some are refused later, when there are data and a network."""
    # Recordings are drawn first, and that shows its progress, which is no answer.
    cases = [case for name in CONFIGS if not of_sound(name) for case in everything(name)]
    random.Random(1).shuffle(cases)
    accepted = (case for case in cases if look(ask, [case], deep=False)["accepted"])
    look(ask, [next(accepted) for _ in range(12)], deep=True)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_of_every_setting_is_taken_as_it_is_or_refused_in_one_line(ask, name):
    cases = list(everything(name))
    accepted = [case for case in cases if look(ask, [case], deep=False)["accepted"]]
    assert 100 < len(accepted) < len(cases) / 2
    deep = random.Random(name).sample(accepted, 8)
    print(name, len(cases), len(accepted), look(ask, deep, deep=True))
