"""Accelerators that programs are compiled for on a machine without any: their figures and their compilers."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.core.errors import UserError

GIBIBYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
        name: of the generation, as `--platform` takes it.
        platform: 'tpu' or 'gpu'.
        title: its name in tables.
        memory: bytes of its own memory.
        bandwidth: bytes of that memory that it reads and writes in a second.
        clock: cycles in a second.
        delay_slots: bundles after a branch of a schedule that are executed before it jumps.
        axes: numbers in the name of a topology, such as 2 for 4x4.
    """

    name: str
    platform: str
    title: str
    memory: float
    bandwidth: float
    clock: float
    delay_slots: int = 4
    axes: int = 2


# From Google's data sheets; the clock is the one at which the matrix units reach the peak in bfloat16.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", "TPU v4", 32 * GIBIBYTE, 1228e9, 1.05e9, delay_slots=1, axes=3),
        Chip("v5e", "tpu", "TPU v5e", 16 * GIBIBYTE, 819e9, 1.5e9),
        Chip("v5p", "tpu", "TPU v5p", 95 * GIBIBYTE, 2765e9, 1.75e9, axes=3),
        Chip("v6e", "tpu", "TPU v6e", 32 * GIBIBYTE, 1640e9, 1.75e9),
        Chip("h100", "gpu", "H100 80GB", 84978302976, 3352e9, 1.98e9, axes=0),
    )
}

# The compilers' packages, and the extra of this project that installs them.
COMPILERS = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda13_plugin", "cuda")}

# NVIDIA's figures of an H100 SXM, as XLA's GpuTargetConfigProto wants them.
H100_CONFIG = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978302976
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def check_compiler(chip: Chip) -> None:
    """Raises a UserError if this environment lacks the compiler for a chip; it says how to get it."""
    package, extra = COMPILERS[chip.platform]
    if importlib.util.find_spec(package) is None:
        folder = f"~/{extra}-compiler"
        raise UserError(
            f"The compiler for {chip.title} ({package}) is not installed here: make an environment of its "
            f"own, python -m venv {folder} && {folder}/bin/pip install -e '.[dev,{extra}]', and run this "
            f"command with {folder}/bin/python."
        )


def make_environment(chip: Chip, dump_folder: str = "") -> dict[str, str]:
    """Returns the environment variables of a process that compiles for a chip without having one.

    They count only if they are set before jax is imported.

    Args:
        chip: the accelerator.
        dump_folder: the TPU compiler writes the final schedule of each operation there.
    """
    environment = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if chip.platform == "gpu":
        # Without a device to try tiles on, the compiler stops at some products for Triton.
        options = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
        return environment | {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": options.strip()}
    options = os.environ.get("LIBTPU_INIT_ARGS", "")
    if dump_folder:
        options += (
            f" --xla_jf_dump_to={dump_folder} --xla_jf_dump_llo_text=true"
            " --xla_jf_dump_llo_pass_label_regex=.*final_bundles"
        )
    return environment | {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": options.strip(),
    }


def count_chips(topology: str) -> int:
    """Returns the number of chips of a topology such as 4x4, 2x2x1 or 1."""
    return math.prod(int(length) for length in topology.split("x"))


def check_topology(chip: Chip, topology: str) -> None:
    """Raises a UserError if a text does not name chips of this kind in a way that the compiler knows."""
    if topology == "1":
        return
    example = "x".join(["2", "2", "1"][: chip.axes]) if chip.axes else "1"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or topology.count("x") != chip.axes - 1:
        raise UserError(
            f"--topology={topology}: chips of {chip.title} are written like {example}, or 1 for one chip."
        )


def list_devices(chip: Chip, topology: str) -> Sequence[Any]:
    """Returns the devices of a topology, for which programs can be compiled and not run."""
    from jax.experimental import topologies

    if chip.platform == "gpu":
        description = topologies.get_topology_desc(
            platform="cuda", topology_name=chip.name, topology="1x1x1", target_config=H100_CONFIG
        )
        return description.devices
    options: Mapping[str, Any] = {}
    name = topology
    if topology == "1":
        name = "x".join(["1"] * chip.axes)
        options |= {"chips_per_host_bounds": [1, 1, 1]}
    if chip.name == "v4":
        # As on real machines: both cores of a chip are one device.
        options |= {"chip_config_name": "megacore"}
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{chip.name}:{name}", **options
    )
    return description.devices
