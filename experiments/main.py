"""Trains one experiment, or continues it.

    python -m experiments.main --config=experiments/configs/odconv.py[:DATASET[,name=NAME][,smoke]]

    --workdir=runs/NAME     where the run lives; without it runs/<config>-<dataset>
    --config.KEY=VALUE      overrides any field of the config, for example --config.epochs=5
    --distributed           one process of several; a TPU slice, Slurm, Open MPI or Kubernetes tells its place
    --coordinator_address=HOST:PORT --num_processes=N --process_id=I   elsewhere these do
    --heartbeat=SECONDS     without a sign for so long (30) a process is lost, and the others end
    --profile=50,60         traces steps 50 to 60 into WORKDIR/profile, for TensorBoard or Perfetto
    --debug                 shows the traceback of an error

The same command again continues a run that was stopped, and shows the result of one that is finished.
"""

import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from experiments.core import cli
from experiments.core.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Whether there are several processes.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Where process 0 listens.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 30, "After how many seconds without a sign a process is lost.", lower_bound=2
)
PROFILE = flags.DEFINE_list("profile", [], "The first and the last step to trace.")


def main() -> None:
    """Trains what the flags say."""
    config = CONFIG.value
    if config is None:
        raise UserError(
            "Which experiment? Give --config=experiments/configs/odconv.py, for example."
        )
    if not config.name:
        raise UserError("--config.name=: folders and reports know a config by its name; write one.")
    place = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if DISTRIBUTED.value or place != (None, None, None):
        join_processes(*place, heartbeat=HEARTBEAT.value)
    cli.keep_compiled()
    # Imported late, so that a mistake in the flags is answered at once.
    from experiments.train import profile as tracing
    from experiments.train.loop import train
    from experiments.train.validate import refuse_unused

    refuse_unused(config, cli.overridden(sys.argv))

    train(
        config,
        Path(cli.WORKDIR.value or f"runs/{config.name}-{config.dataset.lower()}").expanduser(),
        profile=tracing.parse(PROFILE.value),
    )


def join_processes(
    address: str | None, number: int | None, index: int | None, heartbeat: int
) -> None:
    """Meets the other processes; before anything else that asks JAX for its devices.

    What is None comes from the cluster. One that gives no sign for `heartbeat` seconds ends all.
    """
    try:
        jax.distributed.initialize(address, number, index, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"--distributed finds no cluster ({' '.join(str(error).split())}). It is for Cloud TPU "
            "pods, Slurm, Open MPI and Kubernetes, which tell each process its place; elsewhere give "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I. For all devices of a "
            "single machine leave it out: they are used anyway."
        ) from error


if __name__ == "__main__":
    code = cli.run(main, sys.argv, __doc__)
    # After an error the others do not come to the end, where jax.distributed would wait for them.
    cli.leave(code, at_once=code != 0 and jax.distributed.is_initialized())
