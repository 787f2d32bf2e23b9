"""A GAN that learns to make labelled pictures: both losses, what is counted, what is drawn while it learns.

One step is the base's (Odena et al. 2017, in the order of Fu et al. 2023): the generator learns from what the
discriminator says of its pictures, then the discriminator from real pictures and from those same ones.
Neither gradient looks at the other's update, so that both are taken at once, of

    L_g(generator, stop(discriminator)) + L_d(stop(pictures), discriminator),

and one optimiser, which works number by number, makes both updates. (But --config.optimizer.clip limits
the norm of both together.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn.models import ACGAN
from dyn.ops.dtypes import float32_or_wider
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.figures.gan import MAX_CLASSES, draw_losses, draw_samples
from experiments.runs.log import METRICS_FILE, read_rows
from experiments.tasks.backbone import with_conv
from experiments.tasks.classification import Classification
from experiments.tasks.gan_samples import diversity, labelled, make_pictures, noise_of
from experiments.tasks.task import Array, Batch, Loss, Task, Variables

REAL, GENERATED = 2, 4  # pictures of each class that are shown
COMPARED = 8  # of each class, whose diversity is compared
SURE, SURE_STEPS = 0.99, 500  # a discriminator this good for so long teaches nothing
LEAST_DIVERSITY = 0.05


class Generation(Task):
    """Generates labelled pictures: a generator and a discriminator, of which the latest are the best."""

    metric = None
    augmentations = Classification.augmentations
    sections = ("gan", "conv", "model", "dtype", "batch_size")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns generator and discriminator, with `config.conv` in the generator."""
        if spatial_axes != 2:
            raise UserError("--config.task=acgan makes pictures, and these are series.")
        if self.is_audio and self.config.audio.labels != "class":
            raise UserError(
                f"--config.audio.labels={self.config.audio.labels}: the GAN is told one class of each "
                "picture; write class."
            )
        ends = [set(self.config.normalise[name]) for name in ("mean", "std")]
        if ends != [{0.5}, {0.5}]:
            raise UserError(
                "--config.normalise: the generator makes pictures from -1 to 1, so that the mean and the std "
                "must be (0.5,)."
            )
        gan = self.config.gan
        if len(gan.widths) != 4 or not all(isinstance(w, int) and w > 0 for w in gan.widths):
            raise UserError(
                f"--config.gan.widths={gan.widths}: give 4 numbers of features, such as (128, 64, 32, 16)."
            )

        def build(conv: Callable[..., nn.Module], shortcut: object) -> nn.Module:
            del shortcut  # there is none
            return ACGAN(
                num_classes=num_classes,
                latent=gan.latent,
                widths=gan.widths,
                cbam_reduction=gan.cbam_reduction,
                dropout=gan.discriminator_dropout,
                conv=conv,
                dtype=jnp.dtype(self.config.dtype),
            )

        return with_conv(self.config, build, spatial_axes)

    def compute_loss(
        self,
        model: ACGAN,
        variables: Variables,
        batch: Batch,
        rng: Array,
        head_only: bool = False,
    ) -> Loss:
        """Returns the sum of the generator's and the discriminator's loss.

            g = (bce(fake, 1) + ce(fake, y')) / 2
            d = ((bce(real, 1) + ce(real, y)) / 2 + (bce(fake, 0) + ce(fake, y')) / 2) / 2

        The labels y' are drawn uniformly. The discriminator looks three times, at the generator's pictures
        for g, at the real ones and at the generator's for d, and its power iterations go one step each time.
        """
        del head_only  # `validate` refuses it
        real, gan = batch["inputs"], self.config.gan
        keys = dict(
            zip(("noise", "labels", "g", "real", "fake"), jax.random.split(rng, 5), strict=True)
        )
        noise = jax.random.normal(keys["noise"], (real.shape[0], model.latent), real.dtype)
        wanted = jax.random.randint(keys["labels"], batch["label"].shape, 0, model.num_classes)

        fake, changed = model.apply(
            variables,
            noise,
            wanted,
            real.shape[1:],
            train=True,
            method="generate",
            mutable=["batch_stats", "losses"],
        )
        batch_stats = changed["batch_stats"]

        def look(params: Any, pictures: Array, name: str) -> tuple[Array, Array]:
            nonlocal batch_stats
            cut, drop = jax.random.split(keys[name])
            said, kept = model.apply(
                {**variables, "params": params, "batch_stats": batch_stats},
                distorted(pictures, cut) if gan.diff_augment else pictures,
                train=True,
                method="discriminate",
                mutable=["batch_stats"],
                rngs={"dropout": drop},
            )
            batch_stats = kept["batch_stats"]
            return said

        params = variables["params"]
        of_fake = look(jax.lax.stop_gradient(params), fake, "g")
        fooled = judged(of_fake, wanted, real=True)
        g = (fooled["real"] + fooled["label"]).mean() / 2

        seen = judged(look(params, real, "real"), batch["label"], real=True)
        caught = judged(look(params, jax.lax.stop_gradient(fake), "fake"), wanted, real=False)
        d = discriminator_loss(seen, caught, gan.aux_on_fake).mean()
        measured = {
            "loss": g + d,
            "g": g,
            "d": d,
            "d_real": seen["right"].mean(),
            "d_fake": caught["right"].mean(),
            "aux_real": seen["named"].mean(),
            "aux_fake": caught["named"].mean(),
        }
        return g + d, (measured, {**changed, "batch_stats": batch_stats})

    def sum_metrics(self, model: ACGAN, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns what a batch adds to the metrics: real pictures, and generated ones of their labels."""
        real, labels, mask = batch["inputs"], batch["label"], batch["mask"]
        # Always the same noise: evaluations are compared.
        noise = jax.random.normal(jax.random.key(0), (real.shape[0], model.latent), real.dtype)
        fake = model.apply(variables, noise, labels, real.shape[1:], method="generate")
        seen = judged(model.apply(variables, real, method="discriminate"), labels, real=True)
        said = model.apply(variables, fake, method="discriminate")
        caught, fooled = judged(said, labels, real=False), judged(said, labels, real=True)
        each = {
            "g": (fooled["real"] + fooled["label"]) / 2,
            "d": discriminator_loss(seen, caught, aux_on_fake=True),
            "d_without_aux": discriminator_loss(seen, caught, aux_on_fake=False),
            "d_real": seen["right"],
            "d_fake": caught["right"],
            "aux_real": seen["named"],
            "aux_fake": caught["named"],
            "count": jnp.ones_like(mask),
        }
        return {name: jnp.sum(jnp.where(mask > 0, values, 0.0)) for name, values in each.items()}

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, float]:
        """Returns both losses and the discriminator's accuracies."""
        total: dict[str, float] = {}
        for of_batch in sums:
            total = {name: total.get(name, 0.0) + float(value) for name, value in of_batch.items()}
        count = total.pop("count")
        means = {name: value / count for name, value in total.items()}
        without = means.pop("d_without_aux")
        if not self.config.gan.aux_on_fake:
            means["d"] = without
        return {"loss": means["g"] + means["d"], **means}

    def inspect_batch(self, model: ACGAN, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns the labels alone: no figure shows single examples of the test split."""
        del model, variables
        return {"labels": batch["label"]}

    def draw_progress(
        self,
        model: ACGAN,
        variables: Variables,
        dataset: Dataset,
        workdir: Path,
        step: int,
        seed: int,
    ) -> list[str]:
        """Draws real and generated pictures side by side and returns a warning for what looks wrong."""
        real, fake = self._make_samples(model, variables, dataset, seed)
        name = f"samples_{step:06d}.png"
        _draw(real, fake, dataset, f"Samples at step {step:,}", workdir / "figures" / name)
        rows = [row for row in read_rows(workdir / METRICS_FILE) if row["step"] <= step]
        return warnings(rows, diversity(real), diversity(fake))

    def draw_figures(
        self,
        model: ACGAN,
        variables: Variables,
        inspected: Mapping[str, Any],
        metrics: Mapping[str, Any],
        dataset: Dataset,
        workdir: Path,
        seed: int,
    ) -> None:
        """Draws samples of the trained generator, and both networks' progress over the run."""
        del inspected, metrics
        real, fake = self._make_samples(model, variables, dataset, seed)
        folder = workdir / "figures"
        _draw(real, fake, dataset, "Samples", folder / "samples.png")
        draw_losses(read_rows(workdir / METRICS_FILE), folder / "gan.png")

    def predict(self, model: ACGAN, variables: Variables, inputs: Array) -> Array:
        """Raises a UserError: a GAN makes pictures and predicts nothing."""
        raise UserError(
            "A GAN makes pictures and predicts nothing: use python -m experiments.generate."
        )

    def _make_samples(
        self, model: ACGAN, variables: Variables, dataset: Dataset, seed: int
    ) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """Returns real and generated pictures of the classes that are shown, by the number of the class."""
        real = labelled(
            dataset.splits["train"],
            self.make_transform(train=False),
            range(min(len(dataset.classes), MAX_CLASSES)),
            COMPARED,
            seed,
        )
        shape = next(iter(real.values())).shape[1:]
        labels = np.repeat(np.array(list(real), np.int32), COMPARED)
        noise = noise_of(seed, labels, np.tile(np.arange(COMPARED), len(real)), model.latent)
        # To this host alone: the others are not here.
        variables = jax.device_get(dict(variables))
        made = make_pictures(model, variables, noise, labels, shape, self.config.batch_size)
        return real, dict(zip(real, made.reshape(len(real), COMPARED, *shape), strict=True))


def judged(said: tuple[Array, Array], labels: Array, real: bool) -> dict[str, Array]:
    """What the discriminator's words about some pictures cost, and whether they are right, `[B]` each.

    Args:
        said: logits of being real, `[B]`, and of the labels, `[B, C]`.
        labels: `[B]`.
        real: what the discriminator should say.

    Returns:
        `real` and `label` (cross-entropies), `right` and `named` (1 where it says so).
    """
    logits, classes = (values.astype(float32_or_wider(values)) for values in said)
    target = jnp.full_like(logits, real)
    return {
        "real": optax.losses.sigmoid_binary_cross_entropy(logits, target),
        "label": optax.losses.softmax_cross_entropy_with_integer_labels(classes, labels),
        "right": ((logits > 0) == real).astype(jnp.float32),
        "named": (jnp.argmax(classes, axis=-1) == labels).astype(jnp.float32),
    }


def discriminator_loss(
    seen: Mapping[str, Array], caught: Mapping[str, Array], aux_on_fake: bool
) -> Array:
    """d of each pair of a real and a generated picture, `[B]`, from what `judged` says of them."""
    of_fake = caught["real"] + (caught["label"] if aux_on_fake else 0)
    return ((seen["real"] + seen["label"]) / 2 + of_fake / 2) / 2


def distorted(pictures: Array, rng: Array) -> Array:
    """Rolls each picture in time by up to an eighth, and cuts a rectangle of half its sides out of it.

    Zhao et al.: Differentiable Augmentation for Data-Efficient GAN Training. NeurIPS 2020. A spectrogram
    is rolled along its width alone: what is moved up or down is another sound.
    """
    batch, height, width, _ = pictures.shape
    roll, top, left = jax.random.split(rng, 3)
    shift = jax.random.randint(roll, (batch,), -(width // 8), width // 8 + 1)
    rolled = jax.vmap(lambda x, by: jnp.roll(x, by, axis=1))(pictures, shift)

    def inside(key: Array, size: int) -> Array:
        # The rectangle's middle may lie anywhere, so that a part of it may lie outside.
        middle = jax.random.randint(key, (batch, 1), 0, size)
        return jnp.abs(jnp.arange(size) - middle) <= size // 4

    hole = inside(top, height)[:, :, None] & inside(left, width)[:, None, :]
    return jnp.where(hole[..., None], jnp.zeros_like(rolled), rolled)


def warnings(rows: Sequence[Mapping[str, Any]], real: float, fake: float) -> list[str]:
    """What looks wrong, a sentence each.

    Args:
        rows: of `metrics.jsonl`, up to now.
        real: how different the real pictures of a class are.
        fake: how different the generated ones are.
    """
    said = []
    seen = [row for row in rows if row.get("split") == "train" and row.get("d_real") is not None]
    if seen and seen[-1]["step"] - seen[0]["step"] >= SURE_STEPS:
        late = [row for row in seen if row["step"] >= seen[-1]["step"] - SURE_STEPS]
        if min((row["d_real"] + row["d_fake"]) / 2 for row in late) > SURE:
            said.append(
                f"the discriminator has been right on more than {SURE:.0%} for {SURE_STEPS} steps: the "
                "generator learns little from it. Lower --config.gan.discriminator_rate, or give more data."
            )
    if fake < LEAST_DIVERSITY * real:
        said.append(
            f"the generated pictures of a class differ by {fake / real:.1%} of what real ones do: the "
            "generator makes one picture a class."
        )
    return said


def _draw(
    real: Mapping[int, np.ndarray],
    fake: Mapping[int, np.ndarray],
    dataset: Dataset,
    title: str,
    path: Path,
) -> None:
    rows = {dataset.classes[label]: (real[label][:REAL], fake[label][:GENERATED]) for label in real}
    draw_samples(rows, title, path)
