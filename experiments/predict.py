"""Predicts the classes of files with the network of a finished run.

    python -m experiments.predict RUN FILES_OR_FOLDERS... [--out=predictions.csv] [--top=5]
    python -m experiments.predict RUN RECORDINGS... [--out=predictions/] [--threshold=0.5] [--merge=N]

    RUN                  the --workdir of a finished run
    FILES_OR_FOLDERS     pictures; for a run on series, files of the UCR archive's formats (.tsv, .txt, .ts),
                         whose labels are ignored; for a run on recordings, recordings of any length
    --out=FILE.csv       where the predictions go; for recordings a folder
    --top=K              the number of classes per example, the most probable first; 5
    --batch_size=N       examples at once; without it the run's
    --overwrite          replaces the predictions of an earlier command

for recordings only
    --threshold=SHARE    the lowest score that is written, 0.5; precision: of each class, for the precision of
                         config.audio.precision on validation, in the run's thresholds.csv; run: the best of
                         each in its per_class.csv; FILE.csv: in a table with label and threshold
    --without=CLASS      leaves a class out, such as one for noise; may be given several times
    --all_scores         all scores of all windows instead, a column per class
    --merge=N            the largest number of consecutive windows with one label that share a row; a run of
                         event detection joins all of its frames
    --hop=SECONDS        from one window to the next; without it the run's
    --format=A,B         the tables to write: csv, raven, audacity, kaleidoscope, birdnet, parquet; without it
                         csv and a table for Raven of each recording

FILE.csv has a row for each example and rank: file, rank, label, probability (and the line, in a file of
series). For a segmentation run it has a row for each picture and class in it: file, mask, label, pixels,
share; the masks are palette PNGs in the folder FILE. For a detector it has a row for each object: file,
image_id, label, score, x, y, width, height (pixels); FILE.coco.json has the same objects with their masks as
results in COCO's format, and the folder FILE the pictures with boxes and masks. Files that cannot be used
are in FILE.skipped.csv.

For recordings, --out is a folder with
    predictions.csv   file, start_s, end_s, label, score, silent: a row for each window and label whose score
                      reaches the threshold; if a window has one class, only the most probable. With
                      --all_scores: file, start_s, end_s, silent and a column per class, a row per window.
    per_file.csv      file, windows, note, and for each class CLASS_max, its highest score, and
                      CLASS_mean_top2, the mean of its two highest
    NAME.dyn.selections.txt   a table for Raven of each recording, in folders like the recordings
    predictions.raven.txt     (raven) one selection table over all recordings; open the recordings in
                      predictions.raven.list.txt in Raven first
    NAME.dyn.labels.txt       (audacity) a label track of each recording
    predictions.kaleidoscope.csv, predictions.birdnet.csv, predictions.parquet
    hours.csv, .png, stations.csv, .png   mean scores, where file names have a time (YYYYMMDD_HHMMSS), and
                      several recorders (what is before the time) or folders
    skipped.csv       file, reason: the files that cannot be used
    written.csv       file, sha256: the tables that people edit; one that has changed since is not this
                      command's, and --overwrite keeps it as NAME.earlier.csv or .txt
`silent` is 1 where all samples are the same. If a recording breaks off, the windows before the break are
there, and its `note` says so.
"""

from collections.abc import Sequence

from experiments.core import cli
from experiments.inference import predict
from experiments.load import load


def main(
    run: str,
    *paths: str,
    out: str | None = None,
    top: int | None = None,
    batch_size: int = 0,
    overwrite: bool = False,
    threshold: str | None = None,
    without: Sequence[str] = (),
    all_scores: bool | None = None,
    merge: int | None = None,
    hop: float | None = None,
    format: str | None = None,
) -> None:
    """Predicts files."""
    cli.keep_compiled()
    predict.predict(
        load(run),
        paths,
        out,
        top=top,
        batch_size=batch_size,
        overwrite=overwrite,
        threshold=threshold,
        without=without or None,
        all_scores=all_scores,
        merge=merge,
        hop=hop,
        format=format,
    )


if __name__ == "__main__":
    cli.run_command(
        main,
        __doc__,
        failure="The predictions cannot be written",
        stopped="stopped; the predictions so far are written",
    )
