"""Settings that do not fit each other or the data, damaged files, and studies that cannot be run."""

from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import main as command
from experiments import study
from experiments.core import cli
from experiments.train import program

ROOT = Path(command.__file__).parents[1]
ODCONV = "--config=experiments/configs/odconv.py:smoke"
# Words and a part of the answer; these are found before the data are read.
RELATIONS = [
    ([ODCONV, "--config.adapt_gates=True"], "with gates"),
    ([ODCONV, "--config.data.name=folder"], "two data sets"),
    ([ODCONV, "--config.dataset=tiny_imagenet"], "two data sets"),
    ([ODCONV, "--config.task=segmentation"], "digits is for classification"),
    ([ODCONV, "--config.accumulate=3"], "multiple of 12"),
    ([ODCONV, "--config.data.classes=3,3"], "twice"),
    (["--config=experiments/configs/base.py", "--config.model.context=block"], "no context"),
    (["--config=experiments/configs/base.py:audio", "--config.audio.labels=multi"], "takes class"),
]
DATA = [
    ([ODCONV, "--config.augment=series"], "not for pictures"),
    (["--config=experiments/configs/net1.py:digits,smoke"], "net1 is for series"),
    ([ODCONV, "--config.batch_size=128"], "more than the 64"),
    ([ODCONV, "--config.data.fold=10"], "fold"),
    ([ODCONV, "--config.data.fold=0", "--config.data.folds=100000"], "folds"),
    ([ODCONV, "--config.data.validation=0.6", "--config.data.test=0.5"], "leave nothing"),
    ([ODCONV, "--config.model.width=65536"], "GB on each device"),
    ([ODCONV, "--config.epochs=2000000000"], "an epoch has"),
    ([ODCONV, "--config.init_from=/nowhere"], "/nowhere holds no run"),
    ([ODCONV, "--workdir=" + "x" * 400], "too long"),
    (
        [
            *("--config=experiments/configs/rotated.py:adiac,smoke", "--config.data.source={ucr}"),
            "--config.augment=none",
        ],
        "square 2-D kernel",
    ),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of the UCR archive: 40 series of two classes."""
    folder = tmp_path_factory.mktemp("ucr") / "Adiac"
    folder.mkdir()
    table = np.random.default_rng(0).normal(size=(40, 25))
    table[:, 0] = np.arange(40) % 2 + 1
    for part in ("TRAIN", "TEST"):
        np.savetxt(folder / f"Adiac_{part}.tsv", table, delimiter="\t", fmt="%.4f")
    return folder


@pytest.mark.parametrize(("words", "says"), RELATIONS)
def test_settings_that_do_not_fit_are_refused(ask, words, says):
    assert says in (ask(*words, deep=False) or "")


@pytest.mark.parametrize(("words", "says"), DATA)
def test_settings_that_do_not_fit_the_data_are_refused(ask, words, says, toy):
    assert says in (ask(*(word.replace("{ucr}", str(toy)) for word in words)) or "")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


FILES = {
    "a summary that is cut off": (
        lambda tmp: write(tmp / "run/summary.json", b'{"te'),
        "workdir",
        "summary.json",
    ),
    "a summary of nothing": (
        lambda tmp: write(tmp / "run/summary.json", b"[]"),
        "workdir",
        "summary.json",
    ),
    "a summary that is a folder": (
        lambda tmp: (tmp / "run/summary.json").mkdir(parents=True),
        "workdir",
        "summary.json",
    ),
    "settings that are no settings": (
        lambda tmp: (write(tmp / "run/config.json", b"5"), write(tmp / "run/checkpoints/4/x", b"")),
        "workdir",
        "config.json",
    ),
    "settings that are a folder": (
        lambda tmp: (
            (tmp / "run/config.json").mkdir(parents=True),
            write(tmp / "run/checkpoints/4/x", b""),
        ),
        "workdir",
        "config.json",
    ),
    "a file for a workdir": (lambda tmp: write(tmp / "run", b""), "workdir", "cannot be used"),
    "a file in the way of a workdir": (
        lambda tmp: write(tmp / "run", b""),
        "below",
        "cannot be used",
    ),
    "a file for a folder of pictures": (lambda tmp: write(tmp / "data", b"x"), "folder", "data"),
    "an empty folder of pictures": (lambda tmp: (tmp / "data").mkdir(), "folder", "data"),
    "folders of no pictures": (lambda tmp: write(tmp / "data/a/b.txt", b"x"), "folder", "data"),
    "bytes for series": (lambda tmp: write(tmp / "data", b"\xff\x00"), "ucr", "data"),
    "an empty folder of series": (lambda tmp: (tmp / "data").mkdir(), "ucr", "data"),
    "bytes for an archive": (lambda tmp: write(tmp / "data", b"\xff\x00"), "tiny_imagenet", "data"),
    "an empty folder of VOC": (lambda tmp: (tmp / "data").mkdir(), "voc2012", "data"),
    "bytes for VOC": (lambda tmp: write(tmp / "data", b"\xff\x00"), "voc2012", "data"),
    "an empty folder of masks": (lambda tmp: (tmp / "data").mkdir(), "mask_folder", "data"),
    "an empty folder of records": (lambda tmp: (tmp / "data").mkdir(), "tfds,name=mnist", "data"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_not_what_they_should_be_are_named(ask, case, tmp_path):
    prepare, kind, says = FILES[case]
    prepare(tmp_path)
    match kind:
        case "workdir":
            answer = ask(ODCONV)
        case "below":
            answer = ask(ODCONV, f"--workdir={tmp_path / 'run' / 'below'}")
        case _:
            answer = ask(
                f"--config=experiments/configs/base.py:{kind}",
                f"--config.data.source={tmp_path / 'data'}",
                f"--config.data.dir={tmp_path / 'prepared'}",
            )
    assert answer and says in answer


STUDY = [
    (["--override=epochs"], "KEY=VALUE"),
    (["--override=epochs=1.5"], "not a whole number"),
    (["--override=epochs=None"], "not a whole number"),
    (["--override=epochs=" + "9" * 5000], "epochs"),
    (["--override=epochs=" + "(" * 5000], "epochs"),
    (["--override=optimizer.learning_rate=" + "9" * 400], "learning_rate=inf"),
    (["--override=optimizer=adam"], "group of settings"),
    (["--override=optimizer.lerning_rate=1"], "'learning_rate'"),
    (["--override=epochs.x=1"], "one setting"),
    (["--override==1"], "no setting"),
    (["--override=head.name=fcn"], "no setting 'head'"),
    (["--override=conv.num_kernels=0", "--configs=odconv"], "num_kernels=0"),
    (["--source=/nowhere"], "no setting 'source'"),
    (["--configs="], "name one or more"),
    (["--configs=base,base"], "each of them once"),
    (["--configs=../main"], "no config"),
    (["--configs=net1_dynamic"], "add net1 to --configs"),
    (["--configs=net1"], "net1 is for series"),
    (["--dataset=digts"], "'digits'"),
    (["--dataset=folder", "--source=/nowhere"], "/nowhere"),
    (["--seeds=0"], "seeds"),
    (["--folds=-1"], "folds"),
    (["--folds=1"], "folds"),
    (["--control=perhaps"], "control"),
    (["--seed=3"], "'--seeds'"),
    (["stray"], "'stray' is not a flag"),
    (["--workdir={tmp}/file/below"], "cannot be used"),
]


@pytest.mark.parametrize(("words", "says"), STUDY)
def test_a_study_that_cannot_be_run_is_answered(
    words, says, tmp_path, capsys, monkeypatch, the_line
):
    write(tmp_path / "file", b"")
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    usual = {"--configs": "base", "--workdir": str(tmp_path / "study"), "--control": "False"}
    given = {word.partition("=")[0] for word in words}
    words = ["study.py", *words, *(f"{k}={v}" for k, v in usual.items() if k not in given)]
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(program, "compile_program", lambda *_: pytest.fail("it would be trained"))
    try:
        with flagsaver.flagsaver(), jax.numpy_dtype_promotion("standard"):
            assert cli.run(study.main, words, study.__doc__) == 2
    finally:
        flags.FLAGS.mark_as_parsed()
        jax.config.update("jax_compilation_cache_dir", cache)
    assert says in the_line(capsys.readouterr().err)


def test_classes_of_a_study_are_a_text_though_they_look_like_numbers():
    config = study.load_config("base", "digits", "", {"data.classes": "0,1", "epochs": "3"})
    assert config.data.classes == "0,1" and config.epochs == 3
    wide = study.load_config("base", "digits", "", {"normalise.mean": "[0.1]", "average": "1"})
    assert wide.normalise.mean == (0.1,) and wide.average == 1.0
