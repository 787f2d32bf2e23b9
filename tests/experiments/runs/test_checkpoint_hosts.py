"""Two hosts agree on a checkpoint though only one of them meets the damage."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

pytestmark = pytest.mark.process

HOST = """
import json, sys
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)
address, rank, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(address, 2, rank)

from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from experiments.runs.checkpoints import Checkpoints
from experiments.train.sharding import AXIS, find_mesh

rows = NamedSharding(find_mesh(), P(AXIS))
numbers = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
state = {"params": jax.make_array_from_callback((64, 64), rows, lambda index: numbers[index])}
checkpoints = Checkpoints(workdir / "checkpoints")
for step in (1, 2):
    checkpoints.save(step, state, {"step": step}, {"accuracy": 0.1 * step, "loss": 1.0})
checkpoints.close()
if rank == 1:  # a file that only this host reads, of a checkpoint from before there were checksums
    (workdir / "checkpoints" / "2" / "checksums.json").unlink()
    files = (workdir / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d").iterdir()
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
multihost_utils.sync_global_devices("damaged")
checkpoints = Checkpoints(workdir / "checkpoints")
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), state)
step, read, progress = checkpoints.restore_latest(like)
equal = all(
    np.array_equal(shard.data, numbers[shard.index]) for shard in read["params"].addressable_shards
)
print(json.dumps({"step": step, "progress": progress, "equal": equal}))
"""


def test_hosts_agree_on_the_checkpoint_though_one_alone_meets_the_damage(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(experiments.__file__).parents[1])
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [host.communicate(timeout=100) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    for out, err in said:
        assert out, err
        expected = {"step": 1, "progress": {"step": 1}, "equal": True}
        assert json.loads(out.splitlines()[-1]) == expected
    assert "checkpoints/2 is damaged (" in said[1][1]
    assert "another host cannot read it" in said[0][1]
    assert (tmp_path / "damaged" / "2").is_dir()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
