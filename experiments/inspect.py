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


def main(run: str, *, out: str = "") -> None:
    """Makes the page of a run, and prints its path."""
    trained = load(run)
    folder = Path(run).expanduser()
    path = write_page(
        folder,
        trained.model,
        trained.variables,
        trained.shape,
        trained.classes,
        out,
        settings=trained.config.to_dict(),
    )
    print_result("finished", [("page", str(path))])


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The page cannot be written")
