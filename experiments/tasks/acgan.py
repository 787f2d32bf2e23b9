"""Generation of labelled pictures by a GAN: both losses, metrics, and samples while it learns.

A step is that of Odena et al. (2017), in the order of Fu et al. (2023): the generator learns from the
discriminator's judgement of its pictures, then the discriminator from real pictures and from those same
generated ones. Neither gradient depends on the other's update, so both are taken at once, of

    L_g(generator, stop(discriminator)) + L_d(stop(pictures), discriminator),

and one optimizer, which treats every parameter by itself, makes both updates. (Except that
--config.optimizer.clip limits the norm of both together.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn.models import ACGAN
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.sharding import shard_batch_like
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.figures.gan import MAX_CLASSES, draw_losses, draw_samples
from experiments.runs.log import METRICS_FILE, read_rows
from experiments.tasks.backbone import build_with_conv
from experiments.tasks.classification import Classification
from experiments.tasks.gan_samples import (
    choose_real,
    draw_noise,
    generate_pictures,
    measure_diversity,
)
from experiments.tasks.metrics import add_sums
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Variables

REAL, GENERATED = 2, 4  # pictures of each class that are shown
COMPARED = 8  # pictures of each class whose diversity is compared
# A discriminator with this accuracy over this many steps teaches the generator nothing.
CONFIDENT, CONFIDENT_STEPS = 0.99, 500
LEAST_DIVERSITY = 0.05  # of generated pictures, as a share of the diversity of real ones


class Generation(Task):
    """Generates labelled pictures: a generator and a discriminator, of which the latest are the best."""

    metric = None
    augmentations = Classification.augmentations
    sections = ("gan", "conv", "dtype", "batch_size")

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

        def build(conv: Callable[..., nn.Module]) -> nn.Module:
            return ACGAN(
                num_classes=num_classes,
                latent=gan.latent,
                widths=gan.widths,
                cbam_reduction=gan.cbam_reduction,
                dropout=gan.discriminator_dropout,
                conv=conv,
                dtype=jnp.dtype(self.config.dtype),
            )

        return build_with_conv(self.config, build, spatial_axes)

    def compute_loss(
        self, model: ACGAN, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the sum of the generator's and the discriminator's loss.

            g = (bce(fake, 1) + ce(fake, y')) / 2
            d = ((bce(real, 1) + ce(real, y)) / 2 + (bce(fake, 0) + ce(fake, y')) / 2) / 2

        The labels y' are drawn uniformly. The discriminator is applied three times, to generated pictures for
        g, and to real and to generated ones for d; each time its power iterations go one step.
        """
        del head_only  # `validate` refuses it
        real, gan = batch["inputs"], self.config.gan
        names = ("noise", "labels", "g", "real", "fake")
        keys = dict(zip(names, jax.random.split(rng, 5), strict=True))
        noise = jax.random.normal(keys["noise"], (real.shape[0], model.latent), real.dtype)
        labels = jax.random.randint(keys["labels"], batch["label"].shape, 0, model.num_classes)
        noise, labels = (shard_batch_like(drawn, real) for drawn in (noise, labels))

        fake, changed = model.apply(
            variables,
            noise,
            labels,
            real.shape[1:],
            train=True,
            method="generate",
            mutable=["batch_stats", "losses"],
        )
        batch_stats = changed["batch_stats"]

        def discriminate(params: Any, pictures: Array, key: Array) -> tuple[Array, Array]:
            nonlocal batch_stats
            cut, drop = jax.random.split(key)
            logits, updated = model.apply(
                {**variables, "params": params, "batch_stats": batch_stats},
                roll_and_cut(pictures, cut) if gan.diff_augment else pictures,
                train=True,
                method="discriminate",
                mutable=["batch_stats"],
                rngs={"dropout": drop},
            )
            batch_stats = updated["batch_stats"]
            return logits

        params = variables["params"]
        logits = discriminate(jax.lax.stop_gradient(params), fake, keys["g"])
        fooled = judge_logits(logits, labels, real=True)
        g = (fooled["real"] + fooled["label"]).mean() / 2

        of_real = judge_logits(discriminate(params, real, keys["real"]), batch["label"], real=True)
        logits = discriminate(params, jax.lax.stop_gradient(fake), keys["fake"])
        of_fake = judge_logits(logits, labels, real=False)
        d = compute_discriminator_loss(of_real, of_fake, gan.aux_on_fake).mean()
        metrics = {
            "loss": g + d,
            "g": g,
            "d": d,
            "d_real": of_real["right"].mean(),
            "d_fake": of_fake["right"].mean(),
            "aux_real": of_real["named"].mean(),
            "aux_fake": of_fake["named"].mean(),
        }
        return g + d, (metrics, {**changed, "batch_stats": batch_stats})

    def sum_metrics(self, model: ACGAN, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns what a batch adds to the metrics: real pictures, and generated ones of their labels."""
        real, labels, mask = batch["inputs"], batch["label"], batch["mask"]
        # Always the same noise, so that evaluations can be compared.
        noise = jax.random.normal(jax.random.key(0), (real.shape[0], model.latent), real.dtype)
        noise = shard_batch_like(noise, real)
        fake = model.apply(variables, noise, labels, real.shape[1:], method="generate")
        logits = model.apply(variables, real, method="discriminate")
        of_real = judge_logits(logits, labels, real=True)
        logits = model.apply(variables, fake, method="discriminate")
        of_fake = judge_logits(logits, labels, real=False)
        fooled = judge_logits(logits, labels, real=True)
        each = {
            "g": (fooled["real"] + fooled["label"]) / 2,
            "d": compute_discriminator_loss(of_real, of_fake, aux_on_fake=True),
            "d_without_aux": compute_discriminator_loss(of_real, of_fake, aux_on_fake=False),
            "d_real": of_real["right"],
            "d_fake": of_fake["right"],
            "aux_real": of_real["named"],
            "aux_fake": of_fake["named"],
            "count": jnp.ones_like(mask),
        }
        return {name: jnp.sum(jnp.where(mask > 0, values, 0.0)) for name, values in each.items()}

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, float]:
        """Returns both losses and the discriminator's accuracies."""
        total = add_sums(sums)
        count = total.pop("count")
        means = {name: float(value / count) for name, value in total.items()}
        without = means.pop("d_without_aux")
        if not self.config.gan.aux_on_fake:
            means["d"] = without
        return {"loss": means["g"] + means["d"], **means}

    def inspect_batch(self, model: ACGAN, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns the labels alone: no figure shows single examples of the test split."""
        del model, variables
        return {"labels": batch["label"]}

    def draw_progress(self, results: Results, step: int) -> list[str]:
        """Draws real and generated pictures side by side, and returns warnings."""
        title = f"Samples at step {step:,}"
        real, fake = self._draw_samples(results, title, f"samples_{step:06d}.png")
        rows = [row for row in read_rows(results.workdir / METRICS_FILE) if row["step"] <= step]
        return list_warnings(rows, measure_diversity(real), measure_diversity(fake))

    def draw_figures(self, results: Results) -> None:
        """Draws samples of the trained generator, and both networks' progress over the run."""
        self._draw_samples(results, "Samples", "samples.png")
        figure = results.workdir / "figures" / "gan.png"
        draw_losses(read_rows(results.workdir / METRICS_FILE), figure)

    def predict(self, model: ACGAN, variables: Variables, inputs: Array) -> Array:
        """Raises a UserError: a GAN makes pictures and predicts nothing."""
        raise UserError(
            "A GAN makes pictures and predicts nothing: use python -m experiments.generate."
        )

    def _draw_samples(
        self, results: Results, title: str, name: str
    ) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """Draws samples, and returns more pictures, real and generated, by class number."""
        dataset, model, seed = results.dataset, results.model, results.seed
        classes, transform = dataset.classes[:MAX_CLASSES], self.make_transform(train=False)
        train = dataset.splits["train"]
        real = choose_real(train, transform, range(len(classes)), COMPARED, seed)
        shape = next(iter(real.values())).shape[1:]
        labels = np.repeat(np.array(list(real), np.int32), COMPARED)
        noise = draw_noise(seed, labels, np.tile(np.arange(COMPARED), len(real)), model.latent)
        # On this host alone: the others do not call this.
        variables = jax.device_get(dict(results.variables))
        made = generate_pictures(model, variables, noise, labels, shape, self.config.batch_size)
        fake = dict(zip(real, made.reshape(len(real), COMPARED, *shape), strict=True))
        rows = {classes[label]: (real[label][:REAL], fake[label][:GENERATED]) for label in real}
        draw_samples(rows, title, results.workdir / "figures" / name)
        return real, fake


def judge_logits(logits: tuple[Array, Array], labels: Array, real: bool) -> dict[str, Array]:
    """Returns the discriminator's losses on pictures, and whether it is right, `[B]` each.

    `real` and `label` are cross-entropies, `right` and `named` 1 if reality and class are recognised. The
    logits are of being real, `[B]`, and of the classes, `[B, C]`.
    """
    reality, classes = (values.astype(float32_or_wider(values)) for values in logits)
    target = jnp.full_like(reality, real)
    return {
        "real": optax.losses.sigmoid_binary_cross_entropy(reality, target),
        "label": optax.losses.softmax_cross_entropy_with_integer_labels(classes, labels),
        "right": ((reality > 0) == real).astype(jnp.float32),
        "named": (jnp.argmax(classes, axis=-1) == labels).astype(jnp.float32),
    }


def compute_discriminator_loss(
    real: Mapping[str, Array], fake: Mapping[str, Array], aux_on_fake: bool
) -> Array:
    """Returns d of each pair of a real and a generated picture, `[B]`, from their `judge_logits`."""
    of_fake = fake["real"] + (fake["label"] if aux_on_fake else 0)
    return ((real["real"] + real["label"]) / 2 + of_fake / 2) / 2


def roll_and_cut(pictures: Array, rng: Array) -> Array:
    """Rolls each picture in time by up to an eighth, and cuts out a rectangle of half its sides.

    Zhao et al.: Differentiable Augmentation for Data-Efficient GAN Training. NeurIPS 2020. A spectrogram is
    rolled along its width alone: moved up or down, it is another sound.
    """
    batch, height, width, _ = pictures.shape
    roll, top, left = jax.random.split(rng, 3)
    shift = jax.random.randint(roll, (batch,), -(width // 8), width // 8 + 1)
    shift = shard_batch_like(shift, pictures)
    rolled = jax.vmap(lambda x, by: jnp.roll(x, by, axis=1))(pictures, shift)

    def inside(key: Array, size: int) -> Array:
        # The middle may lie anywhere, so a part of the rectangle may lie outside.
        middle = shard_batch_like(jax.random.randint(key, (batch, 1), 0, size), pictures)
        return jnp.abs(jnp.arange(size) - middle) <= size // 4

    hole = inside(top, height)[:, :, None] & inside(left, width)[:, None, :]
    return jnp.where(hole[..., None], jnp.zeros_like(rolled), rolled)


def list_warnings(rows: Sequence[Mapping[str, Any]], real: float, generated: float) -> list[str]:
    """Returns a sentence for everything wrong with the rows of `metrics.jsonl` and the diversities."""
    warnings = []
    train = [row for row in rows if row.get("split") == "train" and row.get("d_real") is not None]
    if train and train[-1]["step"] - train[0]["step"] >= CONFIDENT_STEPS:
        late = [row for row in train if row["step"] >= train[-1]["step"] - CONFIDENT_STEPS]
        if min((row["d_real"] + row["d_fake"]) / 2 for row in late) > CONFIDENT:
            warnings.append(
                f"the discriminator has been right on more than {CONFIDENT:.0%} for {CONFIDENT_STEPS} "
                "steps, so the generator learns little from it. Lower --config.gan.discriminator_rate, or "
                "add data."
            )
    if generated < LEAST_DIVERSITY * real:
        warnings.append(
            f"the diversity of generated pictures is {generated / real:.1%} of that of real ones: the "
            "generator makes the same picture of a class again and again."
        )
    return warnings
