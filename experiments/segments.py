r"""Cuts detections out of recordings, to listen to them and to mark which are right.

    python -m experiments.segments PREDICTIONS [--out=segments/] [--per_class=20] [--context=1]

    PREDICTIONS          the --out of experiments.predict, or a table of detections of another program, such
                         as BirdNET-Analyzer's CSV
    --out=FOLDER         where the clips go
    --per_class=N        the largest number of clips of each class; 20
    --bands=A,B          scores that separate bands, of which clips are drawn in turn; 0.5,0.7,0.9
    --context=SECONDS    before and after each detection; 1
    --only=CLASS         cuts this class; may be given several times
    --recordings=FOLDER  where the recordings are now, if they have been moved
    --seed=N             decides which detections of a band are drawn; 0
    --overwrite          replaces the results of an earlier command; a table with marks, and a page of
                         other clips, are kept beside

The folder then has
    segments.html   a page with spectrogram and sound of each clip, to mark it right or wrong and download
                    marks.csv; it needs no server and no network
    segments.csv    clip, file, start, end, label, score, band, mark: the same marks may be typed here
    clips/CLASS/    the clips as WAV files
    skipped.csv     file, reason: what could not be cut

The marks are annotations: right is a positive label, wrong a negative one, and nothing is unknown:

    python -m experiments.main --config=experiments/configs/species_multilabel.py \
        --config.data.source=RECORDINGS --config.audio.annotations=labels.csv,segments/marks.csv
"""

from collections.abc import Sequence

from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference import segments


def main(
    predictions: str,
    *,
    out: str = segments.OUT,
    per_class: int = 20,
    bands: str = "0.5,0.7,0.9",
    context: float = 1.0,
    only: Sequence[str] = (),
    recordings: str = "",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Cuts detections."""
    try:
        borders = [float(word) for word in bands.split(",") if word.strip()]
    except ValueError as error:
        raise UserError(f"--bands={bands}: give numbers between commas.") from error
    options = segments.Options(per_class, borders, context, only, seed)
    segments.cut_segments(
        predictions, out, recordings_in=recordings, overwrite=overwrite, options=options
    )


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The clips cannot be written", stopped="stopped")
