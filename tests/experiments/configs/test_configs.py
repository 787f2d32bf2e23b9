import importlib
import re
import shlex
from pathlib import Path

import pytest

import experiments.configs
from experiments.configs import base, common, odconv
from experiments.core.errors import UserError
from experiments.train.validate import refuse_unused, validate

FOLDER = Path(experiments.configs.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("__init__", "common"))


def load(name):
    return importlib.import_module(f"experiments.configs.{name}")


def flat(config):
    """A config as {dotted path: value}, without what belongs to the convolution."""
    found = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            found |= {f"{key}.{below}": item for below, item in flat(value).items()}
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_config_loads_and_can_be_run(name):
    for argument in ((), ("",), ("smoke",), ("digits",)):
        config = load(name).get_config(*argument)
        assert config.name == name
        if config.start.config:
            with pytest.raises(
                UserError, match=f"{name} starts from a trained {config.start.config}"
            ):
                validate(config)
            config.init_from = "somewhere"
        validate(config)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_begins_with_a_sentence_and_gives_the_command_of_its_own_file(name):
    text = load(name).__doc__
    assert re.match(r"[A-Z][^\n]*\.\n\n", text)
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    python -m")]
    own = f"--config=experiments/configs/{name}.py"
    assert any(word.split(":")[0] == own for words in commands for word in words)
    for words in commands:
        flags = [word for word in words if word.startswith("--config=")]
        for flag in flags:
            assert (FOLDER.parents[1] / flag.removeprefix("--config=").split(":")[0]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_variant_is_small(name):
    config, usual = load(name).get_config("smoke"), load(name).get_config()
    assert config.epochs <= 2 or 0 < config.steps <= 200
    assert config.data.limit <= 64 and config.model.width <= 8
    # Of configs for recordings, which a person has or has not, on made-up ones.
    dataset = "songs" if usual.dataset == "audio" else usual.dataset
    assert config.dataset == f"{dataset}-smoke"


@pytest.mark.parametrize("argument", [None, "smoke", "tiny_imagenet", "adiac", "folder"])
def test_odconv_and_its_static_twin_differ_in_the_convolution_alone(argument):
    dynamic, static = flat(odconv.get_config(argument)), flat(base.get_config(argument))
    differing = {key for key in {**dynamic, **static} if dynamic.get(key) != static.get(key)}
    assert {key.split(".")[0] for key in differing} == {"name", "conv"}


def test_a_smoke_run_on_sound_makes_do_with_songs_whatever_else_is_asked_for():
    for argument in ("smoke", "recipe=strong,smoke", "smoke,recipe=strong"):
        assert load("birdsong_classifier").get_config(argument).data.variant == "songs"
    assert load("birdsong_classifier").get_config("audio,smoke").data.variant == ""


@pytest.mark.parametrize(
    ("dataset", "asked", "why"),
    [
        ("songs", {"data.source": "mine"}, "songs are made up"),
        ("audio", {"audio.exhaustive": True}, "labels=multi"),
        ("audio", {"audio.annotations": "a.csv", "audio.label_pattern": "(a)"}, "annotations"),
        ("audio", {"audio.label_pattern": "(a)", "audio.min_overlap": 0.5}, "whole recordings"),
        ("audio", {"audio.labels": "none", "audio.annotations": "a.csv"}, "no labels"),
        ("audio", {"audio.splits": "a.csv", "data.validation": 0.3}, "deals the recordings out"),
        ("audio", {"audio.drop_dc": True}, "picture=linear"),
        ("audio", {"audio.picture": "linear", "audio.bands": 64}, "mel or wavelet"),
        ("audio", {"audio.picture": "wavelet", "audio.n_fft": 512}, "mel or linear"),
    ],
)
def test_what_is_asked_of_sound_and_would_do_nothing_is_refused(dataset, asked, why):
    config = common.get_config(dataset)
    config.update_from_flattened_dict(asked)
    with pytest.raises(UserError, match=f"{list(asked)[-1]} would do nothing: .*{why}"):
        refuse_unused(config, list(asked))


def test_odconv_with_rotations_is_the_rotated_config():
    config = odconv.get_config("digits,rotations=4,smoke")
    assert (
        config.name == "rotated" and config.conv.rotations == 4 and config.dataset[-5:] == "smoke"
    )
    assert odconv.get_config("rotations=8").to_dict() == load("rotated").get_config().to_dict()
    for wrong in ("0", "many", ""):
        with pytest.raises(UserError, match="write a number of orientations, such as 8"):
            odconv.get_config(f"digits,rotations={wrong}")


@pytest.mark.parametrize("dataset", [*common.DATASETS, *common.ALIASES])
def test_every_data_set_has_a_recipe(dataset):
    config = common.get_config(dataset)
    assert config.data.name in common.DATASETS
    validate(config)
    assert common.get_config(f"{dataset},smoke").epochs == 2


@pytest.mark.parametrize(
    ("argument", "dataset", "name", "variant"),
    [
        ("", "digits", "digits", ""),
        ("digits", "digits", "digits", ""),
        ("smoke", "digits-smoke", "digits", ""),
        ("smoke,digits", "digits-smoke", "digits", ""),
        ("adiac", "adiac", "ucr", "Adiac"),
        ("ucr,name=Adiac", "Adiac", "ucr", "Adiac"),
        ("ucr,name=Beef,smoke", "Beef-smoke", "ucr", "Beef"),
        ("ucr", "ucr", "ucr", ""),
        ("tfds,name=mnist", "mnist", "tfds", "mnist"),
        ("tiny_imagenet", "tiny_imagenet", "tiny_imagenet", ""),
    ],
)
def test_the_argument_names_the_data_set(argument, dataset, name, variant):
    config = common.get_config(argument)
    assert (config.dataset, config.data.name, config.data.variant) == (dataset, name, variant)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("digts", "did you mean 'digits'"),
        ("smok", "did you mean 'smoke'"),
        ("ucr,nme=x", "did you mean 'name='"),
        ("tiny_imagnet", "did you mean 'tiny_imagenet'"),
        ("epochs=5", "such as --config.epochs=5"),
        ("digits,folder", "'folder'"),
        (
            "xyzzy",
            "one of digits, tiny_imagenet, ucr, folder, voc2012, mask_folder, tfds, audio, adiac, songs",
        ),
    ],
)
def test_an_argument_that_is_not_understood_is_answered_with_what_is(argument, hint):
    with pytest.raises(UserError) as error:
        common.get_config(argument)
    assert hint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "name", "layer"),
    [
        ("smoke", "birdsong_classifier", "conv"),
        ("conv=dcd,smoke", "birdsong_dcd", "dcd"),
        ("songs,conv=odconv", "birdsong_odconv", "odconv"),
    ],
)
def test_the_classifier_of_birdsong_takes_a_convolution(argument, name, layer):
    config = load("birdsong_classifier").get_config(argument)
    assert (config.name, config.conv.name, config.data.variant) == (name, layer, "songs")
    assert config.baseline == "birdsong_classifier"
    with pytest.raises(UserError, match="did you mean 'odconv'"):
        load("birdsong_classifier").get_config("conv=odcon")
