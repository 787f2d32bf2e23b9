"""Mixes sounds in training: noise and other windows over a window, and noise without birds in its place.

All of it happens to the samples, before the spectrogram; see `experiments.audio.mixing`. All randomness comes
from the generator that is passed in.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import noises, recordings, spectrograms
from experiments.audio.mixing import mix_at_ratio
from experiments.audio.samples import Samples, prepare_samples
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data.dataset import Example

SETTINGS = ("noise_folder", "overlay", "negatives")
"""Settings of `config.audio` that mix sounds, each of which is off when it is '' or 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class SoundMixer:
    """Changes the sound of a training example before its spectrogram is made.

    An example whose sound stays as it is keeps the spectrogram that was computed beforehand.

    Attributes:
        audio: the audio section of the configuration.
        samples: of all recordings.
        owners, starts: recording of each window, and its first sample, `[N]` each.
        labels: of each window, `[N]` or `[N, classes]`.
        partners: positions of the windows that may be laid over others: those of train.
        noise: the recordings of noise.
        nothing: label of a window without birds, float32 `[classes]`.
    """

    audio: ConfigDict
    samples: Sequence[Samples]
    owners: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    partners: np.ndarray
    noise: Sequence[Samples]
    nothing: np.ndarray

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example with another spectrogram and label; `window` is its position, if it has one."""
        audio, label = self.audio, self._soften(example["label"])
        if audio.negatives and rng.random() < audio.negatives:
            return {"inputs": self._draw(self._make_negative(rng)), "label": self.nothing}
        if "window" not in example:  # a generated spectrogram
            return {**example, "label": label}
        mixed, position = None, int(example["window"])
        if audio.overlay and rng.random() < audio.overlay:
            mixed, label = self._overlay(position, label, rng)
        if self.noise and rng.random() < audio.noise_share:
            sound = self.read(position) if mixed is None else mixed
            mixed = mix_at_ratio(sound, self._draw_noise(rng), rng.uniform(*audio.noise_snr))
        if mixed is None:
            return {**example, "label": label}
        return {**example, "inputs": self._draw(mixed), "label": label}

    def read(self, position: int) -> np.ndarray:
        """Returns the samples of a window, float32 `[n]`."""
        recording = self.samples[self.owners[position]]
        return recording.read(int(self.starts[position]), self._length, self.audio.pad)

    @property
    def _length(self) -> int:
        return round(self.audio.seconds * self.audio.sample_rate)

    def _overlay(
        self, position: int, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lays another window over one, and returns the sound and its label."""
        other = int(rng.choice(self.partners))
        gain = rng.uniform(*self.audio.overlay_gain)
        mixed = mix_at_ratio(self.read(position), self.read(other), -gain)
        return mixed, join_labels(label, self._soften(self.labels[other]), gain, self._several)

    def _make_negative(self, rng: np.random.Generator) -> np.ndarray:
        """Returns a window without birds: noise of the user's own half of the time, or made-up noise."""
        length = self._length
        if self.noise and rng.random() < 0.5:
            return self._draw_noise(rng)
        kind = rng.choice(["silence", "coloured", "wind", "drops", "background"])
        if kind == "silence":
            return np.zeros(length)
        if kind == "background":
            return noises.imitate_background(self.read(int(rng.choice(self.partners))), rng)
        if kind == "coloured":
            noise = noises.make_coloured_noise(length, rng.uniform(-0.5, 2.5), rng)
        elif kind == "wind":
            noise = noises.make_wind(length, self.audio.sample_rate, rng)
        else:
            noise = noises.make_drops(length, self.audio.sample_rate, rng)
        if spectrograms.has_absolute_levels(self.audio):
            # As loud as a recording: otherwise its level alone would tell a window without birds.
            noise = noise * np.std(self.read(int(rng.choice(self.partners)))) / (np.std(noise) or 1)
        return noise

    def _draw_noise(self, rng: np.random.Generator) -> np.ndarray:
        return self.noise[rng.integers(len(self.noise))].draw(self._length, rng)

    def _draw(self, sound: np.ndarray) -> np.ndarray:
        """Returns the spectrogram of a sound, uint8 `[H, W, 1]`."""
        if spectrograms.has_absolute_levels(self.audio):
            sound = np.clip(sound, -1, 1)
        else:  # Levels are relative to the loudest point; a sum of sounds may be larger than a float32.
            sound = sound / (np.abs(sound).max() or 1.0)
        return spectrograms.compute_spectrogram(sound.astype(np.float32), self.audio)[..., None]

    @property
    def _several(self) -> bool:
        """True if a window may have several labels."""
        return self.labels.ndim == 2

    def _soften(self, label: np.ndarray) -> np.ndarray:
        """Returns the number of a class as float32 `[classes]`, if labels are going to be mixed."""
        if self._several or not (self.audio.overlay or self.audio.negatives):
            return label
        return np.eye(len(self.nothing), dtype=np.float32)[label]


def join_labels(label: np.ndarray, other: np.ndarray, gain: float, several: bool) -> np.ndarray:
    """Returns the label of two sounds of which the second is `gain` decibels louder.

    With several labels the union: 1 where either is 1, 0 where both are 0, otherwise NaN, for unknown. With
    one class the mean of both, weighted by amplitude: w t + (1 - w) t', w = 1 / (1 + 10^(gain / 20)).

    Args:
        label, other: float32 `[classes]` each.
        gain: level of the second above the first.
        several: whether there may be several labels.

    Source of the weights: Tokozume, Ushiku, Harada: Learning from Between-class Examples for Deep Sound
    Recognition. ICLR 2018.

    Example:
        >>> wren, owl = np.array([1.0, 0.0, np.nan]), np.array([0.0, 1.0, 0.0])
        >>> join_labels(wren, owl, 0.0, several=True).tolist()
        [1.0, 1.0, nan]
        >>> join_labels(np.array([1.0, 0.0]), np.array([0.0, 1.0]), -20.0, several=False).round(3).tolist()
        [0.909, 0.091]
    """
    if several:
        return np.where((label == 1) | (other == 1), 1.0, label + other).astype(np.float32)
    weight = 1 / (1 + 10 ** (gain / 20))
    return (weight * label + (1 - weight) * other).astype(np.float32)


def make_nothing(classes: Sequence[str], audio: ConfigDict) -> np.ndarray:
    """Returns the label of a window without birds, float32 `[classes]`.

    With several labels 0 for each. With one, the class that is called noise, background, silence or other
    (`no_class`); where there is none, all classes are equally likely.
    """
    label = np.zeros(len(classes), np.float32)
    if audio.labels == "multi":
        return label
    no_class = {word.lower() for word in audio.no_class}
    named = [number for number, name in enumerate(classes) if name.lower() in no_class]
    if named:
        label[named[0]] = 1
        return label
    return label + np.float32(1 / len(classes))


def read_noise(audio: ConfigDict, cache: Path) -> tuple[list[Samples], list[tuple[str, str]], str]:
    """Returns the recordings below `noise_folder`, the names and reasons of unusable ones, and a note."""
    folder = Path(audio.noise_folder).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--config.audio.noise_folder={folder} is not a folder; give one with recordings of noise."
        )
    paths = list(recordings.list_recordings(folder))
    names = [f"noise/{path.relative_to(folder).as_posix()}" for path in paths]
    found, skipped = prepare_samples(paths, names, audio, cache)
    usable = [one for one in found if one is not None and not one.silent]
    skipped += [(one.name, "silent") for one in found if one is not None and one.silent]
    if not usable:
        why = f", such as {': '.join(skipped[0])}" if skipped else ""
        raise UserError(
            f"--config.audio.noise_folder={folder}: none of its {len(paths):,} recordings can be used{why}."
        )
    seconds = sum(one.count for one in usable) / audio.sample_rate
    note = f"Noise: {seconds:,.0f} s in {count_noun(len(usable), 'recording')} of {folder}"
    if skipped:
        note += f"; {len(skipped):,} cannot be used, such as {': '.join(skipped[0])}"
    return usable, skipped, f"{note}."


def check_settings(audio: ConfigDict) -> None:
    """Raises a UserError for a range whose ends are in the wrong order."""
    for name in ("noise_snr", "overlay_gain"):
        low, high = audio[name]
        if low > high:
            raise UserError(f"--config.audio.{name}={(low, high)}: give the lower end first.")
