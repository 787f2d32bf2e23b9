"""Measures the quality of generated pictures with a classifier that was trained on real ones.

Salimans et al.: Improved Techniques for Training GANs. NeurIPS 2016 (the Inception Score), and Heusel et
al.: GANs Trained by a Two Time-Scale Update Rule. NeurIPS 2017 (the Frechet distance). The network is a
run of this project on the same kind of pictures, not Inception: compare the numbers under one judge, and
not with published ones.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import rel_entr

from experiments.audio.spectrograms import SETTINGS, remove_colours
from experiments.core import files
from experiments.core.console import print_line, print_result
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import Example, pictures
from experiments.data.extra import QUALITY, read_description
from experiments.inference.trained import Trained
from experiments.runs.data_record import reload_data

SPLITS = 10


class Judged(NamedTuple):
    """The outputs of a classifier for N pictures: `[N, C]`, `[N, d]` and int `[N]`."""

    probabilities: np.ndarray
    features: np.ndarray
    labels: np.ndarray


def compute_inception_score(probabilities: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Returns the Inception Score, exp(mean of KL(p(y|x) || p(y))): (mean, std) over splits.

    It is 1 for a classifier that cannot tell the pictures apart, and at most the number of classes. A split
    stays a little below that, because its classes are never equally frequent. Pictures, `[N, C]`
    probabilities of classes, are split at random.

    Example:
        >>> import numpy as np
        >>> from experiments.inference.judge import compute_inception_score
        >>> compute_inception_score(np.eye(4)[np.arange(400) % 4], splits=1)
        (4.0, 0.0)
    """
    p = np.random.default_rng(0).permutation(np.asarray(probabilities, np.float64))
    scores = [
        np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean())
        for part in np.array_split(p, min(splits, len(p)))
    ]
    return float(np.round(np.mean(scores), 12)), float(np.round(np.std(scores), 12))


def compute_frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the squared Frechet distance of vectors `[N, d]` and `[M, d]`, taken as normally distributed.

        |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2

    It means little for fewer than some 2 d vectors: the covariances do not have full rank, and two draws of
    one distribution seem far apart.

    Example:
        >>> import numpy as np
        >>> from experiments.inference.judge import compute_frechet_distance
        >>> x = np.random.default_rng(0).standard_normal((1000, 3))
        >>> round(compute_frechet_distance(x, x + 2), 6)
        12.0
    """
    one, other = (np.asarray(values, np.float64) for values in (one, other))
    m1, m2 = one.mean(axis=0), other.mean(axis=0)
    c1, c2 = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (one, other))
    # Not scipy's `sqrtm`, which is inaccurate for covariances without full rank.
    eigenvalues = np.maximum(np.linalg.eigvals(c1 @ c2).real, 0)
    root_trace = np.sqrt(eigenvalues).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * root_trace)


def check_judge(classifier: Trained) -> None:
    """Raises a UserError if a network is not a classifier."""
    if classifier.config.task != "classification":
        raise UserError(f"--judge={classifier.source} is not a classifier's run: give one.")


def judge(classifier: Trained, folder: Path) -> dict[str, Any]:
    """Compares generated pictures with real ones in the eyes of a classifier, and writes `quality.json`.

    The real pictures are the test split of the classifier's data, restricted to the generated classes.

    Returns:
        The contents of `quality.json`: numbers of pictures, `inception_score`, `frechet_classifier_distance`
        with its floor, and `recognised`.

    Raises:
        UserError: if the run is not a classifier's, or was trained on another kind of pictures.
    """
    check_judge(classifier)
    description = read_description(folder, "counts", "data", "audio", "shape")
    _check_same_kind(classifier, description)
    known, names = list(classifier.classes), list(description["counts"])
    paths = [
        (known.index(name), path)
        for name in names
        for path in sorted((folder / name).glob("*.png"))
    ]
    if not paths:
        raise UserError(f"There are no pictures in {folder}.")
    generated = _judge_pictures(classifier, _prepare_generated(paths, classifier, description))

    wanted = {known.index(name) for name in names}
    real = _judge_pictures(classifier, _prepare_real(wanted, classifier))
    quality = {
        "judge": str(classifier.source),
        "folder": str(folder),
        **_measure_quality(generated, real, len(known)),
    }
    files.write_json(folder / QUALITY, quality)
    print_result(f"judged by {classifier.source}", _summarise(quality, folder))
    return quality


def _check_same_kind(classifier: Trained, description: Mapping[str, Any]) -> None:
    """Raises a UserError unless a classifier knows the classes and the kind of generated pictures."""
    run, config = classifier.source, classifier.config
    for name in description["counts"]:
        if name not in classifier.classes:
            raise UserError(
                f"--judge={run} has no class {name}{suggest_nearest(name, classifier.classes)}"
            )
    dataset = description["data"]["name"]
    if config.data.name != dataset:
        raise UserError(
            f"--judge={run} was trained on {config.data.name}; these pictures are of {dataset}."
        )
    if not classifier.is_audio:
        return
    audio, template = config.audio.to_dict(), "{name} is {new} and not {old}"
    differences = describe_differences(
        description["audio"], audio, template=template, names=SETTINGS
    )
    if differences:
        raise UserError(
            f"--judge={run} was trained on other spectrograms: in its --config.audio {differences}."
        )


def _prepare_generated(
    paths: Sequence[tuple[int, Path]], classifier: Trained, description: Mapping[str, Any]
) -> Iterator[tuple[int, Example]]:
    """Yields the labels of generated pictures and the examples that the classifier sees."""
    channels = description["shape"][-1]
    for label, path in paths:
        picture = pictures.read_picture(path, path.name, channels)
        try:
            if classifier.is_audio:
                levels = remove_colours(picture, description["audio"]["colour"])[..., None]
                yield label, classifier.transform(levels)
            else:
                yield label, classifier.prepare(picture)
        except ValueError as error:
            raise UserError(f"The judge cannot see {path}: it is {error}.") from error


def _prepare_real(labels: set[int], classifier: Trained) -> Iterator[tuple[int, Example]]:
    """Yields the test examples of some classes as the classifier sees them, and their labels."""
    config = classifier.config
    dataset, warning = reload_data(config, classifier.classes, classifier.source, ["test"])
    if warning:
        print_line(f"warning: {warning}", error=True)
    source = dataset.splits["test"]
    number = 0
    for index in range(len(source)):
        example = source[index]
        label = int(example["label"])
        if label in labels:
            number += 1
            yield label, classifier.transform(example["inputs"])
    if number < 4:
        raise UserError(
            f"The test split of --judge={classifier.source} has {number} pictures of these classes: give "
            "one with 4 or more."
        )


def _judge_pictures(classifier: Trained, examples: Iterable[tuple[int, Example]]) -> Judged:
    """Returns the outputs of a classifier for labelled examples."""
    batches = list(classifier.predict_batches(examples, with_features=True))
    return Judged(
        np.concatenate([batch.predictions for batch in batches]),
        np.concatenate([batch.features for batch in batches]),
        np.array([label for batch in batches for label in batch.keys]),
    )


def _measure_quality(generated: Judged, real: Judged, classes: int) -> dict[str, Any]:
    """Returns all measures of generated and of real pictures."""
    scores = {}
    for name, judged in (("generated", generated), ("real", real)):
        mean, std = compute_inception_score(judged.probabilities)
        scores[name] = {"mean": mean, "std": std, "n": len(judged.labels)}
    # Halves of a shuffled order: the split itself may be sorted by class.
    order = np.random.default_rng(0).permutation(len(real.features))
    halves = np.array_split(real.features[order], 2)
    return {
        "generated": len(generated.labels),
        "real": len(real.labels),
        "inception_score": {
            **scores["generated"],
            "splits": min(SPLITS, len(generated.labels)),
            "upper_bound": classes,
            "of_real_pictures": scores["real"],
        },
        "frechet_classifier_distance": {
            **_measure_distance(generated.features, real.features),
            "features": generated.features.shape[1],
            # The distance between real pictures, with half as many of them.
            "floor": _measure_distance(*halves),
        },
        "recognised": {
            "share": _measure_recognition(generated),
            "of_real_pictures": _measure_recognition(real),
            "chance": 1 / classes,
        },
    }


def _measure_distance(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    n = min(len(one), len(other))
    return {
        "value": compute_frechet_distance(one, other) if n > 1 else None,
        "n": n,
        "reliable": n >= 2 * one.shape[1],
    }


def _measure_recognition(judged: Judged) -> float:
    return float((judged.probabilities.argmax(axis=1) == judged.labels).mean())


def _summarise(quality: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    score, distance = quality["inception_score"], quality["frechet_classifier_distance"]
    real_score, recognised = score["of_real_pictures"], quality["recognised"]

    def format_distance(measured: Mapping[str, Any]) -> str:
        value = "-" if measured["value"] is None else f"{measured['value']:.2f}"
        too_few = f", unreliable: n < 2 x {distance['features']} features"
        return f"{value} (n={measured['n']:,}{'' if measured['reliable'] else too_few})"

    return [
        (
            "Inception Score",
            f"{score['mean']:.2f} +- {score['std']:.2f} (n={score['n']:,}, {score['splits']} splits; at "
            f"most {score['upper_bound']}; real pictures {real_score['mean']:.2f}, n={real_score['n']:,})",
        ),
        ("frechet_classifier_distance", format_distance(distance)),
        ("  between real pictures", format_distance(distance["floor"])),
        (
            "recognised",
            f"{recognised['share']:.1%} (real pictures {recognised['of_real_pictures']:.1%}, chance "
            f"{recognised['chance']:.1%})",
        ),
        ("written", str(folder / QUALITY)),
    ]
