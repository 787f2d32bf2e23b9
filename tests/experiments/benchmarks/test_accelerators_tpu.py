"""Programs compiled by the real TPU compiler, which needs libtpu and no TPU: `pytest -m tpu`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.chips import CHIPS, make_environment
from experiments.benchmarks.compiling import LOWERING, ROOT, compile_in_process
from experiments.benchmarks.lowering_cases import Case

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: docs/accelerators.md",
    ),
]
TPUS = [name for name, chip in CHIPS.items() if chip.platform == "tpu"]
# Two blocks.
SMALL = {
    "platform": "v5e",
    "network": "odconv:digits,smoke",
    "is_config": True,
    "size": 16,
    "batch": 2,
}
MXU_BYTES_A_CYCLE = 4 * 128 * 128  # multiply-adds of the four matrix units of v4, v5e and v5p


def compile_kernels(platform, steps, folder):
    dump, result = folder / "dump", folder / "result.json"
    script = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment |= make_environment(CHIPS[platform], str(dump))
    words = [sys.executable, str(script), platform, str(steps), str(dump), str(result)]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    return json.loads(result.read_text())


@pytest.mark.parametrize("platform", TPUS)
def test_kernels_count_their_schedule_for_each_step(tmp_path, platform):
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = compile_kernels(platform, 8, tmp_path / "few")
    many = compile_kernels(platform, 32, tmp_path / "many")
    for found, steps in ((few, 8), (many, 32)):
        assert found["turns"] == [3]
        once, looped = found["kernels"]
        # At least the products' time, and not several times more.
        products = steps * 9 * 256 * 128 * 128 / MXU_BYTES_A_CYCLE
        assert 0.4 * products < once < 4 * products
        described = found["described"]
        assert described["missing_kernels"] == described["unknown_loops"] == 0
        assert described["kernel_cycles"] >= once + 3 * looped
        assert described["cycles"] > described["kernel_cycles"]
        sources = [one["source"] for one in described["operations"]]
        assert any("compile_kernels.py:" in source for source in sources)
    assert many["kernels"][0] == pytest.approx(4 * few["kernels"][0], rel=0.05)


def test_a_training_step_compiles_for_one_chip_and_for_a_slice():
    one = compile_in_process({**SMALL, "topology": "1"})
    assert one["status"] == "fits" and one["cycles"] > 0 and one["collectives"] == {}
    assert any(o["source"].startswith("dyn/") for o in one["operations"])
    four = compile_in_process({**SMALL, "topology": "2x2"})
    assert four["collectives"]["all-reduce"] > 0 and "all-gather" not in four["collectives"]
    assert four["state_bytes"] == one["state_bytes"]
    sharded = compile_in_process({**SMALL, "topology": "2x2", "shard_parameters": True})
    assert sharded["collectives"]["all-gather"] > 0
    assert sharded["state_bytes"] < one["state_bytes"] / 2


def test_a_step_that_does_not_fit_is_a_row():
    row = compile_in_process({**SMALL, "topology": "1", "size": 1024, "batch": 2048})
    assert row["status"] == "does not fit" and "RESOURCE_EXHAUSTED" in row["message"]


def test_lowerings_are_compared():
    """The kernel writes no patches, so its forward pass is shorter."""
    case = Case(16, (176,), 16, 16, 3, 1, 1, 4, dtype="bfloat16")
    request = {"platform": "v5e", "case": case._asdict(), "lowerings": ["patches", "fused"]}
    result = compile_in_process(request, LOWERING)
    assert result["failures"] == {} and set(result["seconds"]) == {"forward", "training"}
    assert 0 < result["seconds"]["forward"]["fused"] < result["seconds"]["forward"]["patches"]
