"""Trains one experiment, or continues it.

    python -m experiments.main --config=experiments/configs/odconv.py[:DATASET[,name=NAME][,smoke]]

    --workdir=runs/NAME     where the run lives; without it runs/<config>-<dataset>
    --config.KEY=VALUE      overrides any field of the config, for example --config.epochs=5
    --distributed           one process of several hosts; addresses come from the cluster
    --debug                 shows the traceback of an error

The same command again continues a run that was stopped, and shows the result of one that is finished.
"""

import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Whether there are several hosts.")


def main() -> None:
    """Trains what the flags say."""
    config = CONFIG.value
    if config is None:
        raise UserError(
            "Which experiment? Give --config=experiments/configs/odconv.py, for example."
        )
    if DISTRIBUTED.value:
        join_cluster()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/dyn/xla").expanduser()))
    # Imported late, so that a mistake in the flags is answered at once.
    from experiments.train import train

    train(
        config,
        Path(cli.WORKDIR.value or f"runs/{config.name}-{config.dataset.lower()}").expanduser(),
    )


def join_cluster() -> None:
    """Meets the other hosts; before anything else that asks JAX for its devices."""
    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed finds no cluster ({' '.join(str(error).split())}). It is for Cloud TPU "
            "pods, Slurm, Open MPI and Kubernetes, which tell each process its place; on a "
            "single machine leave it out: all its devices are used anyway."
        ) from error


if __name__ == "__main__":
    cli.leave(cli.run(main, sys.argv, __doc__))
