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
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run lives.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Whether there are several hosts.")


def main() -> None:
    """Trains what the flags say."""
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/dyn/xla").expanduser()))
    config = CONFIG.value
    if config is None:
        raise UserError(
            "Which experiment? Give --config=experiments/configs/odconv.py, for example."
        )
    # Imported late, so that a mistake in the flags is answered at once.
    from experiments.train import train

    train(config, Path(WORKDIR.value or f"runs/{config.name}-{config.dataset.lower()}"))


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, __doc__))
