"""Generating pictures with a finished GAN, and judging them."""

import json

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished
from PIL import Image
from small_runs import change

from experiments import generate as command
from experiments.configs import dr_acgan
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference import generate as module
from experiments.inference.generate import generate
from experiments.inference.trained import Trained
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")

DIGITS = [str(label) for label in range(10)]


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """The networks of a GAN of digits that nobody has trained."""
    folder = tmp_path_factory.mktemp("gan") / "run"
    settings = {"gan.widths": (8, 4, 4, 4), "gan.latent": 6, "image_size": 16, "batch_size": 8}
    config = change(dr_acgan.get_config("digits,smoke"), settings)
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config, DIGITS, (16, 16, 1))
        return load(folder, generator=True)


def read_pictures(folder):
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*.png"))
    }


def test_pictures_of_each_class_depend_on_nothing_else(gan, tmp_path):
    words = ["generate", str(gan.source), "--per_class=3", f"--out={tmp_path / 'all'}"]
    assert cli.run(command.main, words, command.__doc__) == 0
    made = read_pictures(tmp_path / "all")
    assert list(made) == [f"{label}/0000{n}.png" for label in range(10) for n in range(3)]
    assert {(picture.shape, picture.dtype.name) for picture in made.values()} == {
        ((16, 16), "uint8")
    }
    assert not np.array_equal(made["3/00000.png"], made["3/00001.png"])
    about = json.loads((tmp_path / "all" / "generated.json").read_text())
    assert about["per_class"] == 3 and about["counts"] == dict.fromkeys(DIGITS, 3)
    assert about["run"] == str(gan.source) and about["audio"] == {}  # of recordings only

    options = {"classes": ["3"]}
    some = read_pictures(generate(gan, tmp_path / "some", per_class=5, batch_size=2, **options))
    assert list(some) == [f"3/0000{n}.png" for n in range(5)]
    for name in ("3/00000.png", "3/00002.png"):
        # Batches of other sizes round differently.
        assert np.abs(made[name].astype(int) - some[name]).max() <= 1
    other = read_pictures(generate(gan, tmp_path / "seed", per_class=1, seed=1, **options))
    assert np.abs(made["3/00000.png"].astype(int) - other["3/00000.png"]).max() > 1


def test_pictures_are_replaced_only_with_overwrite_and_other_files_never(gan, tmp_path):
    folder, options = tmp_path / "gen", {"per_class": 2, "classes": ["1", "4"]}
    generate(gan, folder, **options)
    before = read_pictures(folder)
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        generate(gan, folder, **options)
    generate(gan, folder, **options, reuse=True)
    (folder / "quality.json").write_text("{}")  # as a judge has written
    generate(gan, folder, per_class=1, classes=["4"], overwrite=True)
    assert not (folder / "quality.json").exists()
    assert list(read_pictures(folder)) == ["4/00000.png"]
    np.testing.assert_array_equal(read_pictures(folder)["4/00000.png"], before["4/00000.png"])
    recordings = tmp_path / "recordings"
    (recordings / "1").mkdir(parents=True)
    (recordings / "1" / "a.wav").write_bytes(b"sound")
    with pytest.raises(UserError, match="did not generate"):
        generate(gan, recordings, **options, overwrite=True)
    assert (recordings / "1" / "a.wav").exists()


def test_a_stopped_command_continues_with_the_first_unfinished_class(gan, tmp_path, monkeypatch):
    options = {"per_class": 2, "classes": ["0", "1", "2"]}
    expected = read_pictures(generate(gan, tmp_path / "whole", **options))
    real, calls = module.generate_pictures, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "generate_pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(gan, tmp_path / "gen", **options, batch_size=1)
    assert list(read_pictures(tmp_path / "gen" / "0")) == ["00000.png", "00001.png"]
    assert not (tmp_path / "gen" / "1").exists()
    generate(gan, tmp_path / "gen", **options, batch_size=1)
    assert len(calls) == 3 + 4
    assert list(read_pictures(tmp_path / "gen")) == list(expected)
    assert not list((tmp_path / "gen").glob(".*"))


def test_pictures_that_exist_can_be_judged(gan, tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(module, "judge", lambda *args: judged.append(args))
    classifier = Trained(config_with(), DIGITS, (8, 8, 1), {})
    options = {"per_class": 1, "classes": ["1"], "classifier": classifier}
    for _ in range(2):
        folder = generate(gan, tmp_path / "gen", **options)
    assert judged == [(classifier, folder)] * 2


def test_mistakes_are_explained(gan, tmp_path):
    classifier = Trained(config_with(), "ab", (8, 8, 1), {})
    for trained, options, message in (
        (gan, {"per_class": 0}, "--per_class=0"),
        (gan, {"classes": ["12"]}, "--classes=12"),
        (gan, {"seed": -1}, "negative"),
        (gan, {"classifier": gan}, "not a classifier's run"),
        (classifier, {}, "generates no pictures"),
    ):
        with pytest.raises(UserError, match=message):
            generate(trained, tmp_path / "gen", **options)
    assert not (tmp_path / "gen").exists()


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"..": 1}, "no folder that this command made"),
        ({".": 1}, "no folder that this command made"),
        ({"": 1}, "no folder that this command made"),
        ({"/": 1}, "no folder that this command made"),
        ({"../mine": 1}, "no folder that this command made"),
        ({"link": 1}, "no folder that this command made"),
        ({"mine": 1}, "no picture that this command made"),
        ({"linked": 1}, "no picture that this command made"),
        ({"a": "b"}, "counts.a is"),
        ([], "counts is a list"),
    ],
)
def test_overwriting_deletes_only_what_generate_made(gan, tmp_path, counts, says):
    folder, outside = tmp_path / "out", tmp_path / "mine"
    for place in (outside, folder / "mine", folder / "linked"):
        place.mkdir(parents=True)
    (outside / "00000.png").write_bytes(b"precious")
    (folder / "mine" / "bird.wav").write_bytes(b"precious")
    (folder / "link").symlink_to(outside)
    (folder / "linked" / "00000.png").symlink_to(outside / "00000.png")
    (folder / "generated.json").write_text(json.dumps({"counts": counts, "per_class": 1}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=says):
        generate(gan, folder, per_class=1, classes=["1"], overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_whose_pictures_were_deleted_is_made_again(gan, tmp_path):
    options = {"per_class": 2, "classes": ["1", "4"], "reuse": True}
    folder = generate(gan, tmp_path / "gen", **options)
    before = read_pictures(folder)
    (folder / "4" / "00001.png").unlink()
    generate(gan, folder, **options)
    assert read_pictures(folder).keys() == before.keys()
