"""The GAN: what it learns from, and what it warns of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import small

from experiments.configs import dr_acgan
from experiments.core.errors import UserError
from experiments.tasks import acgan, make_task
from experiments.train.loop import train
from experiments.train.validate import resolve_config

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = {
    "gan.widths": (8, 4, 4, 4),
    "gan.latent": 6,
    "image_size": 16,
    "steps": 8,
    "evaluate_every": 1,
    # In so few steps pictures would stay grey.
    "optimizer.learning_rate": 1e-2,
}


def tiny(**changes):
    return small(dr_acgan, **{**TINY, **changes})


def test_the_class_of_generated_pictures_can_be_left_out():
    real, fake = {"real": 1.0, "label": 2.0}, {"real": 3.0, "label": 4.0}
    assert acgan.compute_discriminator_loss(real, fake, aux_on_fake=True) == (3 + 7) / 4
    assert acgan.compute_discriminator_loss(real, fake, aux_on_fake=False) == (3 + 3) / 4


def test_pictures_are_rolled_and_cut():
    pictures = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (64, 16, 24, 1)), jnp.float32)
    seen = np.asarray(jax.jit(acgan.roll_and_cut)(pictures, jax.random.key(0)))
    shifts = []
    for before, after in zip(np.asarray(pictures), seen, strict=True):
        hole = after == 0
        rolled = {by: np.roll(before, by, axis=1) for by in range(-3, 4)}
        found = [by for by, x in rolled.items() if np.array_equal(np.where(hole, 0, x), after)]
        assert len(found) == 1
        shifts += found
        inside = hole[..., 0]
        assert 0 < inside.sum() <= 9 * 13
        assert inside.sum() == inside.any(1).sum() * inside.any(0).sum()  # a rectangle
    assert set(shifts) == set(range(-3, 4))


def test_evaluation_counts_the_loss_that_is_learned():
    sums = {"g": 4.0, "d": 3.0, "d_without_aux": 2.0, "aux_fake": 1.0, "count": 2.0}
    for aux, d in ((True, 1.5), (False, 1.0)):
        found = make_task(tiny(**{"gan.aux_on_fake": aux})).compute_metrics([sums], None, "test")
        assert found == {"loss": 2 + d, "g": 2.0, "d": d, "aux_fake": 0.5}


def test_warnings():
    def rows(right, until):
        return [
            {"step": step, "split": "train", "d_real": 1.0, "d_fake": right}
            for step in range(10, until + 1, 10)
        ]

    assert acgan.list_warnings(rows(1.0, 500), 1.0, 0.5) == []
    (said,) = acgan.list_warnings(rows(1.0, 510), 1.0, 0.5)
    assert "99% for 500" in said
    assert acgan.list_warnings([*rows(1.0, 510), *rows(0.9, 10)], 1.0, 0.5) == []
    late = [{**row, "d_fake": 0.5} if row["step"] == 300 else row for row in rows(1.0, 800)]
    assert acgan.list_warnings(late, 1.0, 0.5) == []
    (said,) = acgan.list_warnings([], 2.0, 0.08)
    assert "4.0%" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalise.mean": (0.4,)}, "must be \\(0.5,\\)"),
        ({"data.name": "voc2012", "dataset": "voc2012"}, "voc2012 is for segmentation"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        resolve_config(tiny(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 20}, "multiples of 8"),
        ({"gan.widths": (8, 4)}, "give 4 value"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(**change), tmp_path / "run")
