import pytest

from experiments import augmentation
from experiments.core import cli


@pytest.fixture
def trained(monkeypatch, write_run):
    """The arguments of `train_augmentations`, which leaves a finished run."""
    calls = []

    def train_augmentations(*arguments):
        calls.append(arguments)
        return [write_run("none")]

    monkeypatch.setattr(augmentation, "train_augmentations", train_augmentations)
    monkeypatch.setattr(cli, "keep_compiled", lambda: None)
    return calls


def run_command(*words):
    return cli.run(augmentation.main, ["augmentation", *words], augmentation.__doc__)


def test_augmentation(trained, tmp_path, capsys):
    words = ["--seeds=2", "--override=epochs=5", "--gan_override=audio.height=64"]
    assert run_command(*words, f"--workdir={tmp_path}") == 0
    ((classifier, gan, workdir, seeds, _),) = trained
    assert classifier.name == "birdsong_classifier" and classifier.epochs == 5
    assert gan.task == "acgan" and gan.audio.height == 64
    assert (workdir, seeds) == (tmp_path, 2)
    assert "| none |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("--override=audio.height=64", "--gan_override"),
        ("--gan_override=audio.heigth=64", "height"),
        ("--per_class=0", "--per_class"),
        ("--seeds=0", "--seeds"),
    ],
)
def test_mistakes(trained, capsys, word, fragment):
    assert run_command(word) == 2
    assert fragment in capsys.readouterr().err and trained == []
