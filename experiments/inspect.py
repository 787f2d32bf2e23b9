"""Makes a page about a finished run's network.

    python -m experiments.inspect RUN [--out=RUN/inspect.html]

    RUN             the --workdir of a finished run
    --out=FILE      the page, one file with all of its figures
    --debug         shows the traceback of an error

The page has notable findings, the cost of each layer, the mixtures of kernels and their similarity, what the
network attends to in test pictures, and the figures of the run. It is made of what the run has left, needs
no data, and may be made again at any time.
"""

from pathlib import Path

from experiments.core import cli
from experiments.core.console import print_result
from experiments.load import load
from experiments.reports.network_page import write_page


def inspect(run: str | Path, out: str | Path = "") -> Path:
    """Writes the page about the network of a finished run, and returns its path.

    Args:
        run: the workdir of the run.
        out: the file to write; '' for `inspect.html` in the workdir.

    Raises:
        UserError: if there is no finished run, or `out` is a folder.
    """
    trained = load(run)
    folder = Path(run).expanduser()
    return write_page(folder, trained.model, trained.variables, trained.shape, trained.classes, out)


def main(run: str, *, out: str = "") -> None:
    """Makes the page of a run, and prints its path."""
    print_result("finished", [("page", str(inspect(run, out)))])


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The page cannot be written")
