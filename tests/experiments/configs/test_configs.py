"""The configs of experiments/configs: what they hold, and how their argument is read."""

import importlib
import json
from pathlib import Path

import pytest

import experiments.configs
from experiments.configs import base, common, odconv
from experiments.configs.shared import recipes
from experiments.configs.shared.assemble import (
    KNOWN,
    complete_config,
    drop_unused,
    make_config,
    restore_config,
)
from experiments.configs.shared.settings import Kind, list_paths
from experiments.core.config_file import list_configs
from experiments.core.errors import UserError
from experiments.runs.folder import check_or_write_config, continue_with_former_defaults
from experiments.train.validate import resolve_config

FOLDER = Path(experiments.configs.__file__).parent
NAMES = list_configs(FOLDER)
# Written by a run before configs had only the settings that they use.
OLD_CONFIG = Path(__file__).parent / "hard_config_131_settings.json"


def load(name):
    return importlib.import_module(f"experiments.configs.{name}")


def values(config):
    return dict(list_paths(config))


# ---------------------------------------------------------------- the catalogue


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_valid(name):
    for argument in ((), ("smoke",), ("digits",)):
        if name == "fdy_crnn" and argument == ("digits",):
            with pytest.raises(UserError, match="only recordings"):
                load(name).get_config(*argument)
            continue
        config = load(name).get_config(*argument)
        assert config.name == name
        if config.start.config:
            with pytest.raises(UserError, match=f"starts from a trained {config.start.config}"):
                resolve_config(config)
            config.init_from = "somewhere"
        assert resolve_config(config).to_dict() == config.to_dict()
        if argument == ("smoke",):
            assert config.epochs <= 2 or 0 < config.steps <= 200
            assert config.data.limit <= 64 and config.dataset.endswith("-smoke")
            assert config.data.name != "audio" or config.data.variant == "songs"


def test_a_smoke_run_takes_songs_unless_recordings_are_named():
    smoke = load("birdsong_classifier").get_config("recipe=strong,smoke")
    assert smoke.data.variant == "songs" and smoke.audio.exhaustive
    assert load("birdsong_classifier").get_config("audio,smoke").data.variant == ""


@pytest.mark.parametrize("argument", [None, "smoke", "tiny_imagenet", "adiac", "folder"])
def test_odconv_differs_from_its_static_twin_in_the_convolution_alone(argument):
    dynamic, static = values(odconv.get_config(argument)), values(base.get_config(argument))
    differing = {key for key in {**dynamic, **static} if dynamic.get(key) != static.get(key)}
    differing -= {"optimizer.attention_rate"}  # which a static network has no use for
    assert {key.split(".")[0] for key in differing} == {"name", "conv", "temperature", "mixture"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conv": {"name": "odcnv"}}, "did you mean 'odconv'"),
        ({"conv": {"name": "dcd", "latnt": 3}}, "did you mean 'latent'"),
        ({"attention": {"name": "cbm"}}, "did you mean 'cbam'"),
        ({"classifier": {"name": "svm"}}, "there are dense"),
        ({"model": {"context": "block"}}, "looks at no context"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(changes, says):
    config = base.get_config()
    for section, fields in changes.items():
        config[section].update(fields)
    with pytest.raises(UserError, match=says):
        resolve_config(config)


# ---------------------------------------------------------------- sections


@pytest.mark.parametrize(
    ("place", "present", "absent"),
    [
        (
            "base:digits",
            "model.depth attention.name classifier.name image_size mixing.mixup stages.head_epochs",
            "audio spectrogram gan autoencoder tagging series head temperature auxiliary "
            "data.source data.variant model.output_stride",
        ),
        ("odconv:digits", "temperature.start", "auxiliary"),
        ("hard:digits", "temperature.start auxiliary.weight", "gan"),
        ("base:adiac", "model.width data.variant", "image_size normalise data.extra_train"),
        ("net1:adiac", "series.features model.dropout", "model.width attention classifier stages"),
        (
            "odconv:voc2012",
            "head.name model.output_stride mixing.label_smoothing",
            "classifier mixing.mixup model.hidden stages",
        ),
        ("base:songs", "audio.n_fft spectrogram.masks data.variant", "image_size data.fold"),
        ("species_multilabel:songs", "tagging.norm stages.head_epochs", "head gan"),
        ("dr_acgan:digits", "gan.latent conv.name", "model attention classifier mixing stages"),
        (
            "fdy_crnn:songs",
            "events.median spectrogram.masks",
            "model mixing stages spectrogram.shift",
        ),
        ("soundscape_autoencoder:songs", "autoencoder.widths", "model attention mixing gan"),
    ],
)
def test_a_config_has_the_sections_that_it_uses(place, present, absent):
    name, _, argument = place.partition(":")
    config = load(name).get_config(argument)
    paths = {*values(config), *config}
    assert paths >= set(present.split())
    assert not paths & set(absent.split())


def test_recipes_change_settings_that_exist():
    changes = [*recipes.DATASETS.values(), *(more for _, more in recipes.ALIASES.values())]
    for recipe in (*changes, recipes.STRONG, recipes.SMOKE):
        assert {path for path, _ in list_paths(recipe)} <= KNOWN


def test_a_config_file_cannot_set_what_is_not_there():
    config = common.get_config("digits")
    with pytest.raises(AttributeError, match="gan"):
        config.gan = {"latent": 3}


def test_a_flag_that_changes_the_network_or_the_layer_changes_the_settings():
    config = common.get_config("digits")
    config.conv.name = "odconv"
    assert complete_config(config).temperature.schedule == "geometric"  # the recipe of digits
    config.model.network = "vgg16"
    completed = complete_config(config)
    assert completed.model.width == 16 and "depth" not in completed.model
    assert "attention" not in completed


def test_a_network_without_a_place_for_the_method_is_an_error():
    config = load("global_soft").get_config("digits")
    config.model.network = "efficientnet_lite0"
    assert complete_config(config).attention.name == "squeeze_excite"
    config.model.network = "dymn"
    with pytest.raises(UserError, match=r"attention\.name=squeeze_excite, which the network dymn"):
        complete_config(config)
    config.attention.name, config.model.context = "none", "carried"
    with pytest.raises(UserError, match=r"model\.context=carried"):
        complete_config(config)


# ---------------------------------------------------------------- saved configs


def test_the_config_of_an_old_run_is_restored():
    saved = json.loads(OLD_CONFIG.read_text())
    wanted = load("hard").get_config("smoke")
    assert len(values(saved)) > 130 > len(values(wanted))
    assert restore_config(saved).to_dict() == wanted.to_dict()
    known = {path for path in values(drop_unused(saved)) if path.split(".")[0] != "conv"}
    newer = {"model.remat", "optimizer.attention_rate", "start.awake"}  # than that run
    assert known | newer == {path for path in values(wanted) if path.split(".")[0] != "conv"}
    # A setting that is younger than the run.
    del saved["average"], saved["model"]["context"]
    assert restore_config(saved).to_dict() == wanted.to_dict()


def test_an_old_run_that_started_from_another_was_not_awake():
    saved = json.loads(OLD_CONFIG.read_text())
    assert restore_config(saved).start.awake  # it had no start
    started = saved | {"init_from": "runs/base"}
    assert not restore_config(started).start.awake
    started["start"] = saved["start"] | {"awake": True}
    assert restore_config(started).start.awake


def test_an_old_run_continues_with_the_same_settings_alone(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.json").write_text(OLD_CONFIG.read_text())
    config = load("hard").get_config("smoke")
    check_or_write_config(tmp_path, config)
    config.log_every, config.checkpoint_every = 7, 8  # how often it writes is free
    config.start.awake = False  # and nothing was started
    check_or_write_config(tmp_path, config)
    config.temperature.start = 3.0
    with pytest.raises(UserError, match=r"other settings: temperature\.start was 1\.0"):
        check_or_write_config(tmp_path, config)
    with pytest.raises(UserError, match=r"conv\.num_kernels was 4 and is now None"):
        check_or_write_config(tmp_path, base.get_config("smoke"))


def test_a_run_from_before_the_layer_norm_keeps_its_batch_norm(tmp_path):
    """Then the norm of attention was a batch norm by default, and configs did not write it down."""
    config = common.get_config("digits", conv={"name": "odconv", "num_kernels": 2})
    saved = config.to_dict()
    assert "attention_norm" not in saved["conv"]
    assert restore_config(saved).conv.attention_norm == "batch"
    assert drop_unused(saved)["conv"]["attention_norm"] == "batch"
    assert complete_config(config).conv.attention_norm == "layer"  # a new run's

    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert continue_with_former_defaults(tmp_path, config) is config  # nothing to continue
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    continued = complete_config(continue_with_former_defaults(tmp_path, config))
    assert continued.conv.attention_norm == "batch"
    check_or_write_config(tmp_path, continued)
    # Whoever names a norm means it, and a layer without one has none.
    config.conv = {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"}
    with pytest.raises(UserError, match=r"conv\.attention_norm was 'batch' and is now 'layer'"):
        check_or_write_config(
            tmp_path, complete_config(continue_with_former_defaults(tmp_path, config))
        )
    assert "attention_norm" not in complete_config(common.get_config("digits")).conv


def test_a_run_from_before_the_bands_of_fdconv_has_none():
    config = common.get_config("digits", conv={"name": "fdconv", "num_kernels": 8})
    before, now = restore_config(config.to_dict()).conv, complete_config(config).conv
    assert (before.bands, before.min_features) == (False, 0)
    assert (now.bands, now.min_features) == (True, 16)


@pytest.mark.parametrize(
    "task",
    ["classification", "segmentation", "instance_segmentation", "acgan", "reconstruction"],
)
def test_a_saved_config_comes_back(task):
    config = make_config(Kind(task=task, data="folder", conv="odconv"))
    config.conv = {"name": "odconv", "num_kernels": 3}
    config = complete_config(config)
    assert config.conv.attention_norm == "layer"  # written down, although it is the default
    assert restore_config(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


# ---------------------------------------------------------------- the argument


@pytest.mark.parametrize("dataset", [*recipes.DATASETS, *recipes.ALIASES])
def test_every_data_set_has_a_recipe(dataset):
    config = resolve_config(common.get_config(dataset))
    assert config.data.name in recipes.DATASETS
    assert common.get_config(f"{dataset},smoke").epochs == 2
    strong = resolve_config(common.get_config(f"{dataset},recipe=strong"))
    assert strong.optimizer.name == "adamw"
    assert "mixing" not in strong or strong.mixing.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("argument", "dataset", "name", "variant"),
    [
        ("", "digits", "digits", ""),
        ("smoke,digits", "digits-smoke", "digits", ""),
        ("adiac", "adiac", "ucr", "Adiac"),
        ("ucr,name=Beef,smoke", "Beef-smoke", "ucr", "Beef"),
        ("ucr", "ucr", "ucr", ""),
        ("tfds,name=mnist", "mnist", "tfds", "mnist"),
        ("songs", "songs", "audio", "songs"),
    ],
)
def test_the_argument_names_the_data_set(argument, dataset, name, variant):
    config = common.get_config(argument)
    assert (config.dataset, config.data.name) == (dataset, name)
    assert config.data.get("variant", "") == variant


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("digts", "'digits'"),
        ("smok", "'smoke'"),
        ("ucr,nme=x", "'name='"),
        ("recipe=stron", "'recipe='"),
        ("epochs=5", "--config.epochs=5"),
        ("digits,folder", "'folder'"),
        ("xyzzy", "voc2012, mask_folder"),
        ("digits,name=Beef", "only ucr and tfds"),
    ],
)
def test_an_unknown_argument_is_refused(argument, hint):
    with pytest.raises(UserError, match=hint):
        common.get_config(argument)


def test_series_are_for_classification_alone():
    with pytest.raises(UserError, match="acgan is for pictures"):
        load("dr_acgan").get_config("adiac")
