"""How good generated pictures are, in the eyes of a classifier that was trained on real ones.

Salimans et al.: Improved Techniques for Training GANs. NeurIPS 2016 (the Inception Score), and Heusel et
al.: GANs Trained by a Two Time-Scale Update Rule. NeurIPS 2017 (the Frechet distance). The network is one
of our own, trained on the same kind of pictures, and not Inception: the numbers compare with each other
under one judge and with no published ones.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data
from experiments.audio.spectrograms import SETTINGS, remove_colours
from experiments.core import files
from experiments.core.console import print_result
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import Example, pictures
from experiments.data.extra import DESCRIPTION
from experiments.inference.trained import Trained
from experiments.load import load

SPLITS = 10


def inception_score(
    probabilities: np.ndarray, splits: int = SPLITS, seed: int = 0
) -> tuple[float, float]:
    """The Inception Score, exp(mean of KL(p(y|x) || p(y))): (mean, std) over parts of the pictures.

    It is 1 for a classifier that sees no difference, and at most the number of classes, which so many
    pictures as a part has cannot quite reach: their classes are never equally frequent.

    Args:
        probabilities: what a classifier says of each picture, `[N, C]`.
        splits: number of parts.
        seed: of the order in which they are dealt out.

    Example:
        >>> import numpy as np
        >>> from experiments.quality import inception_score
        >>> inception_score(np.eye(4)[np.arange(400) % 4], splits=1)
        (4.0, 0.0)
    """
    p = np.asarray(probabilities, np.float64)
    p = np.random.default_rng(seed).permutation(p)
    scores = []
    for part in np.array_split(p, min(splits, len(p))):
        mean = part.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * np.log(part / mean), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.round(np.mean(scores), 12)), float(np.round(np.std(scores), 12))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The squared distance of two normal distributions that have the means and covariances of two sets.

        |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2

    Of fewer than some 2 d vectors it says nothing: the covariances are not of full rank, and two draws of
    one distribution seem far apart.

    Args:
        one: `[N, d]`.
        other: `[M, d]`.

    Example:
        >>> import numpy as np
        >>> from experiments.quality import frechet_distance
        >>> x = np.random.default_rng(0).standard_normal((1000, 3))
        >>> round(frechet_distance(x, x + 2), 6)
        12.0
    """
    sets = [np.asarray(values, np.float64) for values in (one, other)]
    (m1, m2) = (values.mean(axis=0) for values in sets)
    (c1, c2) = (np.atleast_2d(np.cov(values, rowvar=False)) for values in sets)
    eigenvalues, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
    product = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c2 @ root), 0)).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * product)


def load_judge(run: str | Path) -> Trained:
    """The classifier of a finished run.

    Raises:
        UserError: if the run is no classifier's.
    """
    classifier = load(run)
    if classifier.config.task != "classification":
        raise UserError(f"--judge={run} is no classifier's run: give one.")
    return classifier


def judge(run: str | Path, folder: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Lets a classifier look at generated pictures and at real ones, and writes `quality.json`.

    The real ones are the test split of the classifier's data, as far as its classes were generated.

    Args:
        run: the workdir of a finished classification run.
        folder: what `experiments.generate` has written; `quality.json` goes there.
        quiet: whether nothing is printed.

    Returns:
        What was written: numbers of pictures, `inception_score`, `frechet_classifier_distance` with its
        floor, and `recognised`.

    Raises:
        UserError: if the run is no classifier's, or one for another kind of pictures.
    """
    folder, classifier = Path(folder), load_judge(run)
    description = _read(folder)
    _same_kind(str(run), classifier, description)
    known, names = list(classifier.classes), list(description["counts"])
    made = [
        (known.index(name), path)
        for name in names
        for path in sorted((folder / name).glob("*.png"))
    ]
    if not made:
        raise UserError(f"There are no pictures in {folder}.")
    labels = np.array([label for label, _ in made])
    said, features = _look(
        classifier, _generated([path for _, path in made], classifier, description)
    )

    config = classifier.config
    source = data.load(config.data, config.seed, config.audio).splits["test"]
    wanted = {known.index(name) for name in names}
    real_labels, examples = [], []
    for index in range(len(source)):
        example = source[index]
        if int(example["label"]) in wanted:
            real_labels.append(int(example["label"]))
            examples.append(example["inputs"])
    if len(examples) < 4:
        raise UserError(f"The test split of --judge={run} has {len(examples)} pictures: too few.")
    real_said, real_features = _look(
        classifier, (classifier.prepared(picture) for picture in examples)
    )
    found = _compared(
        (said, features, labels), (real_said, real_features, np.array(real_labels)), len(known)
    )
    found = {"judge": str(run), "folder": str(folder), **found}
    files.write_json(folder / "quality.json", found)
    print_result(f"as {run} sees them", _rows(found, folder), quiet=quiet)
    return found


def _compared(
    made: tuple[np.ndarray, np.ndarray, np.ndarray],
    real: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: int,
) -> dict[str, Any]:
    """All numbers, from probabilities, features and labels of generated and of real pictures."""
    scores = {}
    for name, (said, _, _) in (("generated", made), ("real", real)):
        mean, std = inception_score(said)
        scores[name] = {"mean": mean, "std": std, "n": len(said)}
    # Halves of a shuffled order: the split itself may be sorted by class.
    order = np.random.default_rng(0).permutation(len(real[1]))
    halves = np.array_split(real[1][order], 2)
    return {
        "generated": len(made[2]),
        "real": len(real[2]),
        "inception_score": {
            **scores["generated"],
            "splits": min(SPLITS, len(made[2])),
            "upper_bound": classes,
            "of_real_pictures": scores["real"],
        },
        "frechet_classifier_distance": {
            **_distance(made[1], real[1]),
            "features": made[1].shape[1],
            # What real pictures are from real ones, with half as many of them.
            "floor": _distance(*halves),
        },
        "recognised": {
            "share": _recognised(made),
            "of_real_pictures": _recognised(real),
            "chance": 1 / classes,
        },
    }


def _distance(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    n = min(len(one), len(other))
    return {
        "value": frechet_distance(one, other) if n > 1 else None,
        "n": n,
        "reliable": n >= 2 * one.shape[1],
    }


def _recognised(seen: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    said, _, labels = seen
    return float((said.argmax(axis=1) == labels).mean())


def _rows(found: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    score, distance = found["inception_score"], found["frechet_classifier_distance"]
    of_real, share = score["of_real_pictures"], found["recognised"]

    def far(one: Mapping[str, Any]) -> str:
        value = "-" if one["value"] is None else f"{one['value']:.2f}"
        why = "" if one["reliable"] else f", unreliable: n < 2 x {distance['features']} features"
        return f"{value} (n={one['n']:,}{why})"

    return [
        (
            "Inception Score",
            f"{score['mean']:.2f} +- {score['std']:.2f} (n={score['n']:,}, {score['splits']} splits; at "
            f"most {score['upper_bound']}; real pictures {of_real['mean']:.2f}, n={of_real['n']:,})",
        ),
        ("frechet_classifier_distance", far(distance)),
        ("  of real from real", far(distance["floor"])),
        (
            "recognised",
            f"{share['share']:.1%} (real pictures {share['of_real_pictures']:.1%}, chance "
            f"{share['chance']:.1%})",
        ),
        ("written", str(folder / "quality.json")),
    ]


def _read(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _ = found["counts"], found["data"]["name"], found["audio"]["colour"]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): give a folder that experiments.generate has written."
        ) from error


def _same_kind(run: str, classifier: Trained, description: Mapping[str, Any]) -> None:
    """Returns if a classifier knows the classes of generated pictures, and what they show."""
    for name in description["counts"]:
        if name not in classifier.classes:
            raise UserError(
                f"--judge={run} knows no class {name}{suggest_nearest(name, classifier.classes)}"
            )
    mine, theirs = classifier.config.data.name, description["data"]["name"]
    if mine != theirs:
        raise UserError(f"--judge={run} knows pictures of {mine}, and these are of {theirs}.")
    if mine != "audio":
        return
    differing = [
        f"{name} is {classifier.config.audio[name]} and not {description['audio'].get(name)}"
        for name in SETTINGS
        if classifier.config.audio[name] != description["audio"].get(name)
    ]
    if differing:
        raise UserError(
            f"--judge={run} knows spectrograms of another kind: in its --config.audio "
            f"{', '.join(differing)}."
        )


def _generated(
    paths: Sequence[Path], classifier: Trained, description: Mapping[str, Any]
) -> Iterator[Example]:
    """Generated pictures as the classifier sees them."""
    channels = description["shape"][-1]
    for path in paths:
        picture = pictures.read_picture(path, path.name, channels)
        try:
            if classifier.config.data.name == "audio":
                levels = remove_colours(picture, description["audio"]["colour"])[..., None]
                yield classifier.prepared(levels)
            else:
                yield classifier.prepare(picture)
        except ValueError as error:
            raise UserError(f"{path} cannot be shown to the judge: it is {error}.") from error


def _look(classifier: Trained, examples: Iterable[Example]) -> tuple[np.ndarray, np.ndarray]:
    """What a classifier says of some examples, `[N, C]`, and the features it says it by, `[N, d]`."""
    examples, found = iter(examples), []
    while batch := list(itertools.islice(examples, classifier.config.batch_size)):
        try:
            found.append(classifier.answers_and_features(batch))
        except ValueError as error:
            raise UserError(f"The judge has no features: {error}.") from error
    said, features = zip(*found, strict=True)
    return np.concatenate(said), np.concatenate(features)
