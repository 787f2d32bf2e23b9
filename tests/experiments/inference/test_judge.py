"""The quality of generated pictures in the eyes of a classifier."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from finished_runs import config_with
from PIL import Image

from experiments.core.errors import UserError
from experiments.inference.judge import compute_frechet_distance, compute_inception_score, judge
from experiments.inference.trained import Trained

DIGITS = [str(label) for label in range(10)]


class Linear(nn.Module):
    """A head over the means of columns: quick to compile."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10, name="head")(x.mean(axis=(1, 3)))


@pytest.fixture(scope="module")
def classifier():
    """A classifier of digits with 8 features that nobody has trained."""
    config = config_with("digits,smoke", **{"data.limit": 32})
    head = {"kernel": np.random.default_rng(0).normal(size=(8, 10)), "bias": np.zeros(10)}
    variables = {"params": {"head": jax.tree.map(np.float32, head)}}
    trained = Trained(config, DIGITS, (8, 8, 1), variables, Path("judge"))
    trained.task.make_model = lambda num_classes, spatial_axes: Linear()
    return trained


@pytest.fixture
def folder(tmp_path, rng):
    """A folder as `experiments.generate` writes it: four pictures of each digit."""
    for name in DIGITS:
        (tmp_path / name).mkdir()
        for number in range(4):
            picture = rng.integers(0, 256, (16, 16)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"0000{number}.png")
    description = {
        "counts": dict.fromkeys(DIGITS, 4),
        "shape": [16, 16, 1],
        "data": {"name": "digits"},
        "audio": {"colour": "grey"},
    }
    (tmp_path / "generated.json").write_text(json.dumps(description))
    return tmp_path


def test_the_inception_score_lies_between_one_and_the_number_of_classes():
    rng = np.random.default_rng(0)
    perfect = np.eye(17)[rng.integers(0, 17, 1700)]
    mean, std = compute_inception_score(perfect)
    assert abs(mean - 16.2) < 0.15 and 0 < std < 0.3
    assert compute_inception_score(np.full((100, 17), 1 / 17)) == (1.0, 0.0)
    one_class = np.eye(17)[np.zeros(100, int)]
    assert compute_inception_score(one_class) == (1.0, 0.0)


def test_the_frechet_distance_is_that_of_the_formula_and_large_for_few_vectors():
    rng = np.random.default_rng(0)
    few = compute_frechet_distance(rng.standard_normal((50, 256)), rng.standard_normal((50, 256)))
    assert few == pytest.approx(331.31256, abs=1e-4)  # by eigenvalues of the symmetric form
    # For normal distributions with covariances that commute, the sum of (s1 - s2)^2.
    x = rng.standard_normal((500, 4))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    want = 3.0**2 + (1 + 4 + 9 + 16)
    assert (
        abs(compute_frechet_distance(x, x * np.array([2, 3, 4, 5.0]) + [3, 0, 0, 0]) - want) < 1e-8
    )
    assert abs(compute_frechet_distance(x, x)) < 1e-8


def test_generated_and_real_pictures_are_compared(classifier, folder, capsys):
    quality = judge(classifier, folder)
    out = " ".join(capsys.readouterr().out.split())
    assert "Inception Score" in out and "at most 10" in out
    assert "between real pictures" in out and "unreliable" not in out
    assert json.loads((folder / "quality.json").read_text()) == quality
    assert quality["judge"] == "judge" and quality["generated"] == 40 and quality["real"] == 32
    score, distance = quality["inception_score"], quality["frechet_classifier_distance"]
    assert 1 <= score["mean"] <= score["upper_bound"] == 10
    assert distance["n"] == 32 and distance["floor"]["n"] == 16
    assert distance["features"] == 8 and distance["reliable"] and distance["floor"]["reliable"]
    assert distance["value"] > distance["floor"]["value"] > 0
    recognised = quality["recognised"]
    assert 0 <= recognised["share"] <= 1 and recognised["chance"] == 0.1
    for path in folder.glob("*/0000[1-3].png"):
        path.unlink()
    judge(classifier, folder)
    assert "unreliable: n < 2 x 8 features" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {"owl": 1}}, "no class owl"),
        ({"data": {"name": "audio"}}, "trained on digits.*of audio"),
        ({"counts": {}}, "no pictures"),
    ],
)
def test_pictures_of_another_kind_are_refused(classifier, folder, change, message):
    file = folder / "generated.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        judge(classifier, folder)


def test_a_folder_that_was_not_generated_is_refused(classifier, tmp_path):
    with pytest.raises(UserError, match=r"generated\.json cannot be read"):
        judge(classifier, tmp_path)


def test_other_networks_cannot_judge(folder):
    config = config_with("digits,smoke", task="tagging")
    with pytest.raises(UserError, match="not a classifier's run"):
        judge(Trained(config, DIGITS, (8, 8, 1), {}), folder)
