"""Trains one experiment, or continues it.

    python -m experiments.main --config=experiments/configs/odconv.py[:DATASET[,smoke]]

    --config=NAME[:DATASET] the experiment: one of the configs, such as odconv, or the path of your own file;
                            DATASET is digits (without it), tiny_imagenet, voc2012, adiac, ucr, folder,
                            mask_folder, tfds, audio or songs; for detectors voc2012_instances,
                            mask_folder_instances or coco_folder; with ,smoke a run of half a minute
    --config.KEY=VALUE      changes any setting of the config, for example --config.epochs=5, or any field of
                            its layers, such as --config.conv.reduction=0.25
    --workdir=runs/NAME     the folder of the run; without it runs/<config>-<dataset>
    --accept_new_data       continues a run though its data has changed
    --profile=50,60         traces steps 50 to 60 into WORKDIR/profile, for TensorBoard or Perfetto
    --help                  this page; together with --config: all settings, their values and limits
    --debug                 shows the traceback of an error

on several machines
    --distributed           joins the other processes of a TPU slice, Slurm, Open MPI or Kubernetes
    --coordinator_address=HOST:PORT --num_processes=N --process_id=I   joins them anywhere else
    --heartbeat=SECONDS     ends the run if a process gives no sign for this long (30)

The same command again continues a run that was stopped, and shows the result of one that is finished.
"""

import contextlib
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.configs.shared.assemble import complete_config
from experiments.configs.shared.flags import add_settings, describe_settings
from experiments.core import cli
from experiments.core.config_file import find_setting
from experiments.core.errors import UserError
from experiments.train.interrupts import announce_abrupt_end

EXAMPLE = "--config=experiments/configs/odconv.py"
SETTINGS = cli.ConfigFlags(add_settings, describe_settings)


def main(
    *,
    config: ConfigDict | None = None,
    workdir: str = "",
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat: int = 30,
    accept_new_data: bool = False,
    profile: str = "",
) -> None:
    """Trains the experiment that the flags describe."""
    if config is None:
        raise UserError(f"Which experiment? Give {EXAMPLE}, for example.")
    if not config.name:
        raise UserError("--config.name=: folders and reports know a config by its name; write one.")
    if not 2 <= heartbeat <= 86_400:
        raise UserError(f"--heartbeat={heartbeat}: choose 2 seconds or more, at most a day.")
    place = (coordinator_address, num_processes, process_id)
    with contextlib.ExitStack() as stack:
        if distributed or place != (None, None, None):
            stack.enter_context(announce_abrupt_end(process_id))
            join_processes(*place, heartbeat=heartbeat)
        _train(config, workdir, profile, accept_new_data)


def _train(config: ConfigDict, workdir: str, profile: str, accept_new_data: bool) -> None:
    cli.keep_compiled()
    # Imported late, so that a mistake in the flags is answered at once.
    from experiments.train.loop import train
    from experiments.train.profile import parse_steps

    completed = complete_config(config)
    for path in cli.list_overrides(sys.argv):  # another flag may have made a setting meaningless
        find_setting(completed, path)
    folder = Path(workdir or f"runs/{config.name}-{config.dataset.lower()}").expanduser()
    steps = parse_steps(profile.split(",") if profile else [])
    train(config, folder, profile=steps, accept_new_data=accept_new_data)


def join_processes(
    address: str | None, number: int | None, index: int | None, heartbeat: int
) -> None:
    """Joins the other processes before JAX lists its devices; None lets the cluster decide."""
    try:
        jax.distributed.initialize(address, number, index, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"--distributed finds no cluster ({' '.join(str(error).split())}). It is for Cloud TPU pods, "
            "Slurm, Open MPI and Kubernetes, which know the processes; elsewhere give "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I. A single machine uses all its "
            "devices anyway: leave the flag out."
        ) from error


if __name__ == "__main__":
    cli.run_command(main, __doc__, settings=SETTINGS)
