"""Settings that do not go together, files that are not what they should be, studies, real processes."""

import subprocess
import sys
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
MIXED_UP = {
    "a recipe for series on pictures": ([ODCONV, "--config.augment=series"], "not for pictures"),
    "gates of a network without gates": ([ODCONV, "--config.adapt_gates=True"], "with gates"),
    "a network for series on pictures": (
        ["--config=experiments/configs/net1.py:digits,smoke", "--config.augment=none"],
        "net1 is for series",
    ),
    "kernels to rotate in series": (
        ["--config=experiments/configs/rotated.py:adiac,smoke", "--config.data.source={ucr}"],
        "square 2-D kernel",
    ),
    "mixed pictures of a segmentation": (
        ["--config=experiments/configs/base.py:voc2012", "--config.mixing.cutmix=1"],
        "--config.mixing.cutmix would do nothing: it is for classification.",
    ),
    "a head of a classification": (
        [ODCONV, "--config.head.name=deeplabv3plus"],
        "--config.head.name would do nothing: it is for segmentation.",
    ),
    "a plateau of a cosine": ([ODCONV, "--config.plateau.patience=3"], "schedule=plateau"),
    "kernels of a network that takes others": (
        ["--config=experiments/configs/net1.py:adiac", "--config.model.width=3"],
        "net1 takes --config.series",
    ),
    "a temperature of nothing": (
        ["--config=experiments/configs/base.py", "--config.temperature.start=3"],
        "--config.conv.name=conv has no temperature",
    ),
    "a context of a static convolution": (
        ["--config=experiments/configs/base.py", "--config.model.context=block"],
        "looks at no context",
    ),
    "data for which the config is not": ([ODCONV, "--config.data.name=folder"], "two data sets"),
    "a label of other data": ([ODCONV, "--config.dataset=tiny_imagenet"], "two data sets"),
    "a set of one set": (["--config=experiments/configs/base.py:digits,name=Beef"], "one digits"),
    "another task": ([ODCONV, "--config.task=segmentation"], "digits is for classification"),
    "a batch of more than all examples": (
        [ODCONV, "--config.batch_size=128"],
        "--config.batch_size=128 is more than the 64 examples",
    ),
    "a fold that is not there": ([ODCONV, "--config.data.fold=10"], "fold"),
    "more folds than examples": (
        [ODCONV, "--config.data.fold=0", "--config.data.folds=100000"],
        "folds",
    ),
    "microbatches that do not divide": ([ODCONV, "--config.accumulate=3"], "multiple of 12"),
    "one class": ([ODCONV, "--config.data.classes=3,3"], "twice"),
    "nothing left to train on": (
        [ODCONV, "--config.data.validation=0.6", "--config.data.test=0.5"],
        "leave nothing to train on",
    ),
    "a network larger than memory": ([ODCONV, "--config.model.width=65536"], "GB on each device"),
    "more steps than can be counted": ([ODCONV, "--config.epochs=2000000000"], "an epoch has"),
    "a start from no run": (
        [ODCONV, "--config.init_from=/nowhere"],
        "--config.init_from=/nowhere holds no run that has come to a checkpoint",
    ),
    "a folder for a config": (["--config=experiments/configs"], "There is no config"),
    "a name that no file system takes": ([ODCONV, "--workdir=" + "x" * 400], "too long"),
    "a config with too long a name": (["--config=" + "x" * 400 + ".py"], "There is no config"),
    "two configs": ([ODCONV, "--config=experiments/configs/base.py"], "--config is given twice"),
    "a file of flags that is not there": ([ODCONV, "--flagfile=/nowhere"], "/nowhere"),
    "a flag twice": ([ODCONV, "--config.epochs=1", "--config.epochs=x"], "not a whole number"),
    "a flag without a value": ([ODCONV, "--config.epochs"], "epochs"),
    "a config without a name": ([ODCONV, "--config.name="], "name"),
}


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


@pytest.mark.parametrize("case", MIXED_UP)
def test_settings_that_do_not_go_together_are_answered(ask, case, toy):
    words, says = MIXED_UP[case]
    answer = ask(*(word.replace("{ucr}", str(toy)) for word in words))
    assert answer is None if says is None else says in answer


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


FILES = {
    "a config that is no Python": (
        lambda tmp: write(tmp / "c.py", b"def get_config(:"),
        "config",
        "c.py",
    ),
    "a config of bytes": (lambda tmp: write(tmp / "c.py", b"\xff\x00"), "config", "c.py"),
    "a config that imports nothing there is": (
        lambda tmp: write(tmp / "c.py", b"import nowhere_to_be_found"),
        "config",
        "nowhere_to_be_found",
    ),
    "a config that fails": (
        lambda tmp: write(tmp / "c.py", b"def get_config(argument=''):\n    return 1 / 0"),
        "config",
        "division by zero",
    ),
    "a config that is none": (
        lambda tmp: write(tmp / "c.py", b"def get_config(argument=''):\n    return 1"),
        "config",
        "get_config",
    ),
    "a folder for a config": (lambda tmp: (tmp / "c.py").mkdir(), "config", "There is no config"),
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
        case "config":
            answer = ask(f"--config={tmp_path / 'c.py'}")
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
    (["--override=epochs"], "write KEY=VALUE"),
    (["--override=epochs=True"], "--override=epochs=True: it is not a whole number, such as"),
    (["--override=epochs=1.5"], "--override=epochs=1.5: it is not a whole number"),
    (["--override=epochs=[1]"], "--override=epochs=[1]: it is not a whole number"),
    (["--override=epochs=None"], "--override=epochs=None: it is not a whole number"),
    (["--override=epochs="], "--override=epochs=: it is not a whole number"),
    (["--override=epochs=" + "9" * 5000], "epochs"),
    (["--override=epochs=" + "(" * 5000], "epochs"),
    (["--override=optimizer.learning_rate=" + "9" * 400], "learning_rate=inf"),
    (["--override=optimizer=adam"], "--override=optimizer: it is a group of fields: betas, clip, "),
    (["--override=optimizer.lerning_rate=1"], "did you mean 'learning_rate'?"),
    (["--override=epochs.x=1"], "has no such field"),
    (["--override==1"], "has no such field"),
    (["--override=head.name=fcn"], "would do nothing: it is for segmentation"),
    (["--override=conv.num_kernels=0", "--configs=odconv"], "num_kernels=0"),
    (["--source=/nowhere"], "digits come with scikit-learn"),
    (["--configs="], "name one or more configs"),
    (["--configs=base,base"], "each of them once"),
    (["--configs=bas"], "did you mean 'base'?"),
    (["--configs=../main"], "there is no config"),
    (["--configs=net1_dynamic"], "add net1 to --configs"),
    (["--configs=net1"], "net1 is for series"),
    (["--dataset=digts"], "did you mean 'digits'?"),
    (["--dataset=folder", "--source=/nowhere"], "/nowhere"),
    (["--seeds=0"], "seeds"),
    (["--seeds=1000000000"], "seeds"),
    (["--folds=-1"], "folds"),
    (["--folds=1"], "folds"),
    (["--folds=100000"], "folds"),
    (["--control=perhaps"], "control"),
    (["--seed=3"], "did you mean '--seeds'?"),
    (["stray"], "'stray' is not a flag"),
    (["--workdir={tmp}/file"], "cannot be used"),
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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["main", ODCONV, "--config.epochs=None", "--debug"], "whole number"),
        (["study", "--configs=bas"], "did you mean 'base'?"),
        (["report", "/nowhere"], "There is no folder /nowhere"),
        (["report", "{runs}", "--out={runs}/file"], "cannot be written"),
        (["report", "{runs}", "--out"], "out"),
        (["benchmarks.train_step", "--layers=odcnv"], "did you mean 'odconv'?"),
    ],
)
def test_a_real_process_ends_with_2_and_says_what_is_wrong(words, says, tmp_path, the_line):
    write(tmp_path / "file", b"")
    write(tmp_path / "run" / "error.txt", b"out of luck")
    module, *words = (word.replace("{runs}", str(tmp_path)) for word in words)
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    *trace, line = done.stderr.splitlines(keepends=True)
    assert says in the_line(line)
    assert bool(trace) == ("--debug" in words)
