"""Removes the kernels that a finished run of hard attention never uses, and measures what that saves.

    python -m experiments.prune RUN [--out=RUN/pruned]

    RUN                   the --workdir of a finished classifier with GatedConv, such as hard.py's
    --out=FOLDER          where everything goes
    --batch_size=N        examples at once; without it the run's
    --runs=20             timed pairs of batches of the network before and after
    --overwrite           replaces the results of an earlier command
    --debug               shows the traceback of an error

The network sees the training and validation examples once. Of each layer, kernels that no example has
switched on are removed, and those that every example has switched on become one, their sum; a layer in which
nothing else is left has no gates any more. On those examples the network computes what it did before; the
test examples say what it does on others.

FOLDER is then used like a run, in experiments.predict FOLDER and experiments.export FOLDER, for example. It
has
    model.safetensors   the network, its settings and classes
    prune.json          parameters, multiply-adds, accuracy and seconds before and after
    prune.csv           layer, kernels, never, always, left: how many of each
    prune.png           the same as a picture
"""

from experiments.core import cli
from experiments.inference import prune
from experiments.load import load


def main(
    run: str, *, out: str = "", batch_size: int = 0, runs: int = 20, overwrite: bool = False
) -> None:
    """Prunes a network."""
    cli.keep_compiled()
    prune.prune_network(load(run), out, batch_size=batch_size, runs=runs, overwrite=overwrite)


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The network cannot be written")
