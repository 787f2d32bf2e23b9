"""Embeds files: writes the codes that a finished run's network makes of windows of sound, or of pictures.

    python -m experiments.embed RUN FILES_OR_FOLDERS... [--out=embeddings] [--compare]

    RUN                  the --workdir of a finished run: of an autoencoder, whose codes are written, or of a
                         classifier, whose codes are the inputs of its last layer; of event detection their
                         mean over a window
    FILES_OR_FOLDERS     recordings, or pictures if the run was trained on pictures
    --out=FOLDER         where everything goes
    --labels=WHICH       the labels that clusters are compared with: folder (of the file), period (of the day,
                         by the file's name) or a CSV with the columns file and label
    --clusters=N         the number of clusters; without it the number of labels, or 8
    --compare            for recordings: also acoustic indices and cepstra, and which of them finds the labels
    --hoplite=FOLDER     for recordings: also a database of perch-hoplite, for its search and agile modelling
    --batch_size=N       examples at once; without it the run's
    --overwrite          replaces the output of an earlier command

FOLDER gets embeddings.npz (codes, file, start_s, end_s, silent) and embeddings.csv; clusters.csv; tsne.png;
day.png, if names say when files were made (YYYYMMDD_HHMMSS); reconstructions.png of an autoencoder; and
skipped.csv. With --compare also indices.csv, indices_per_file.csv, indices.npz, definitions.csv, timing.csv,
compare.csv and compare.png.
"""

from experiments.core import cli
from experiments.inference import embed
from experiments.load import load


def main(
    run: str,
    *paths: str,
    out: str = embed.OUT,
    labels: str = "",
    clusters: int = 0,
    compare: bool = False,
    batch_size: int = 0,
    hoplite: str = "",
    overwrite: bool = False,
) -> None:
    """Embeds files."""
    cli.keep_compiled()
    embed.embed(
        load(run),
        paths,
        out,
        labels=labels,
        clusters=clusters,
        compare=compare,
        batch_size=batch_size,
        hoplite=hoplite,
        overwrite=overwrite,
    )


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The embeddings cannot be written", stopped="stopped")
