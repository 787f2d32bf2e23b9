"""The command around the compilers, which are not needed here: results of compilations by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import (
    accelerators,
    chips,
    compiled_step,
    compiling,
    hlo,
    networks,
    results,
)
from experiments.benchmarks.adam_step import make_step
from experiments.benchmarks.chips import CHIPS
from experiments.benchmarks.schedules import Schedule
from experiments.core.errors import UserError

COMPILED = {
    "status": "fits",
    "parameters": 1_000_000,
    "state_bytes": 12_000_000,
    "compile_seconds": 20.0,
    "temporary_bytes": 2_000_000_000,
    "memory_bytes": 2_100_000_000,
    "cycles": 40_000_000,
    "traffic_cycles": 30_000_000,
    "kernel_cycles": 0,
    "unpriced_cycles": 4_000_000,
    "bytes": 16_000_000_000,
    "unknown_loops": 1,
    "missing_kernels": 0,
    "collectives": {"all-reduce": 3},
    "operations": [
        {
            "cycles": 10_000_000,
            "bytes": 1_000_000_000,
            "times": 9,
            "name": "dot_general (backward)",
            "source": "dyn/ops/lowerings.py:42",
        }
    ],
}
TOO_LARGE = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.91G) "
    "exceeds available HBM (15.75G)."
)


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compilers, and returns the list of the requests that they got."""
    asked = []

    def compile_in_process(request):
        asked.append(request)
        if request["network"] == "fdconv":
            return {**request, **compiled_step.describe_failure(RuntimeError(TOO_LARGE))}
        if request["network"] == "pixel":
            return {**request, "status": "fails", "message": "the compiler stopped"}
        times = 3 if request["network"] == "odconv" else 1
        if request["platform"] == "h100":  # whose compiler has no estimates
            times = 0
        return {**request, **COMPILED, "cycles": times * COMPILED["cycles"]}

    monkeypatch.setattr(accelerators, "check_compiler", lambda chip: None)
    monkeypatch.setattr(compiling, "compile_in_process", compile_in_process)
    monkeypatch.setattr(compiling, "describe_code", lambda platform: "this code")
    return asked


@pytest.fixture
def without_plot(monkeypatch):
    """Leaves out the plot, which takes longer than all else."""
    monkeypatch.setattr(results, "plot_ratios", lambda *args, **options: None)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--platform=a100"], "h100"),
        (["--layers=odcnv"], "odconv"),
        (["--topology=2x2x1"], "2x2"),
        (["--platform=h100", "--topology=2x2"], "H100"),
        (["--batch=1"], "--batch"),
        (["--dtype=float16"], "bfloat16"),
        (["--depth=34"], "50"),
        (["--configs=odcnv"], "odconv"),
        (["--configs=base", "--layers=odconv"], "choose one"),
        (["--platform=h100", "--quick"], "leave it out"),
    ],
)
def test_mistakes(command, compiled, words, fragment):
    code, _, err = command(accelerators, *words)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and fragment in err
    assert not compiled


@pytest.mark.parametrize(("platform", "extra"), [("v5e", "[dev,tpu]"), ("h100", "[dev,cuda]")])
def test_a_missing_compiler_is_one_sentence(command, monkeypatch, platform, extra):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    code, _, err = command(accelerators, f"--platform={platform}", "--layers=odconv")
    assert code == 2 and err.count("\n") == 1 and extra in err


def test_the_static_network_is_the_measure(command, compiled, read_results, tmp_path):
    words = ["--layers=odconv,fdconv,pixel", "--topology=1,2x2", "--ops"]
    code, out, _ = command(accelerators, *words)
    assert code == 0
    rows = read_results("accelerators-v5e")["rows"]
    assert [row["network"] for row in rows] == 2 * ["Conv", "odconv", "fdconv", "pixel"]
    assert "odconv on 2x2: 120.0 M cycles, 3.00 times static" in out
    assert "fdconv does not fit: RESOURCE_EXHAUSTED" in out and "pixel does not compile" in out
    assert "1 loops of unknown length" in out and "4.0 M cycles more" in out
    assert "3 all-reduce" in out and "dyn/ops/lowerings.py:42" in out
    header, *records = (tmp_path / "accelerators-v5e.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), records[1].split(","), strict=True))
    assert cells["row"] == "odconv" and cells["ratio"] == "3.0"


def test_a_config_for_series_is_refused():
    with pytest.raises(UserError, match="pictures"):
        networks.make_config_task("net1:adiac")


def test_networks_of_configs(command, compiled, without_plot):
    code, out, _ = command(
        accelerators, "--configs=base", "--configs=odconv", "--size=32", "--batch=8"
    )
    assert code == 0 and "odconv: 120.0 M cycles, 3.00 times static" in out
    assert [request["is_config"] for request in compiled] == [True, True]


def test_settings_of_configs_can_be_changed(command, compiled, without_plot):
    words = ["--size=32", "--batch=8", "--override=model.depth=50"]
    code, _, err = command(accelerators, *words)
    assert code == 2 and "name at least one" in err
    assert command(accelerators, "--configs=base", *words)[0] == 0
    assert compiled[-1]["overrides"] == ["model.depth=50"]
    # The network without them has not been compiled.
    assert command(accelerators, "--configs=base", *words[:2])[0] == 0
    assert len(compiled) == 2 and compiled[-1]["overrides"] == []


def test_a_config_of_another_version_compiles_again(command, compiled, without_plot, tmp_path):
    file, words = tmp_path / "mine.py", ["--size=32", "--batch=8"]
    for width, rows in ((16, 1), (16, 1), (32, 2)):
        file.write_text(
            "from experiments.configs import common\n\n\n"
            "def get_config(argument=''):\n    config = common.get_config(argument)\n"
            f"    config.model.width = {width}\n    return config\n"
        )
        assert command(accelerators, f"--configs={file}:digits", *words)[0] == 0
        assert len(compiled) == rows
    code, _, err = command(accelerators, "--configs=bsae", *words)
    assert code == 2 and "base" in err and len(compiled) == 2


def test_a_quick_table_is_another_one(command, compiled, without_plot):
    code, out, _ = command(accelerators, "--layers=odconv", "--quick")
    assert code == 0 and "compiled with --quick" in " ".join(out.split())
    code, out, _ = command(accelerators, "--layers=odconv")
    assert code == 0 and "--quick" not in out
    assert [request["quick"] for request in compiled] == [True, True, False, False]


@pytest.mark.usefixtures("standard_promotion")
def test_a_detector_takes_a_step_with_its_own_loss():
    request = compiled_step.Request(
        *("v5e", "1", "base:voc2012_instances,smoke"),
        is_config=True,
        overrides=("detector.objects=3",),
    )
    pictures = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    model, measure, batch = compiled_step.make_model(request, pictures)
    assert batch["ids"].shape == (2, 64, 64) and batch["classes"].shape == (2, 3)
    assert model.num_classes == 21  # of VOC: with ImageNet's 1000, masks are most of the step
    create, train = make_step(model, None, measure)
    state = jax.eval_shape(create, jax.random.key(0), pictures)
    after = jax.eval_shape(train, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_the_same_command_continues(command, compiled, without_plot, tmp_path):
    words = ["--layers=odconv,pixel"]
    command(accelerators, *words)
    command(accelerators, *words)
    # A row that failed is tried again.
    assert [request["network"] for request in compiled] == ["Conv", "odconv", "pixel", "pixel"]
    command(accelerators, "--layers=odconv", "--batch=64")
    assert len(compiled) == 6
    # The earlier rows are kept.
    command(accelerators, "--layers=odconv")
    assert len(compiled) == 6


def test_other_code_compiles_again(command, compiled, without_plot, monkeypatch):
    command(accelerators, "--layers=Conv")
    monkeypatch.setattr(compiling, "describe_code", lambda platform: "other code")
    command(accelerators, "--layers=Conv")
    assert len(compiled) == 2


def test_rows_are_written_as_soon_as_they_are_known(compiled, tmp_path, monkeypatch):
    def stop(request):
        if request["network"] == "odconv":
            raise KeyboardInterrupt
        return {**request, **COMPILED}

    monkeypatch.setattr(compiling, "compile_in_process", stop)
    requests = compiling.make_requests(["Conv", "odconv"], ["1"], platform="v5e")
    with pytest.raises(KeyboardInterrupt):
        accelerators.compile_table(tmp_path / "table", requests)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["Conv"]


def test_a_gpu_is_measured_by_its_bytes(command, compiled, without_plot):
    code, out, _ = command(accelerators, "--platform=h100", "--layers=odconv")
    assert code == 0 and "estimate" not in out and "16.0 GB moved" in out


def test_a_full_memory_is_a_result():
    result = compiled_step.describe_failure(RuntimeError(TOO_LARGE))
    assert result["status"] == "does not fit"
    assert result["temporary_bytes"] == round(17.91 * 2**30)
    used = "RESOURCE_EXHAUSTED: Used 18.30G of 15.75G hbm.\n 1. Size: 1.5G\n 2. Size: 512.0M"
    result = compiled_step.describe_failure(RuntimeError(used))
    assert result["memory_bytes"] == round(18.3 * 2**30)
    assert result["largest_buffers_bytes"] == 2**31
    assert compiled_step.describe_failure(ValueError("no such tile"))["status"] == "fails"


KERNELS = """HloModule m

ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  %short = f32[1000]{0} custom-call(%a), custom_call_target="tpu_custom_call"
  %long = f32[1000]{0} custom-call(%short), custom_call_target="tpu_custom_call"
  %other = f32[1000]{0} custom-call(%long), custom_call_target="tpu_custom_call"
  %moved = f32[1000]{0} reshape(%other)
  ROOT %sum = f32[1000]{0} add(%moved, %a), backend_config={"estimated_cycles":"500"}
}
"""


def test_a_kernel_takes_the_longer_of_schedule_and_traffic():
    chip = CHIPS["v5e"]
    kernels = {"short": Schedule(1), "long": Schedule(10_000, unknown_loops=1)}
    result = compiled_step.describe_program(chip, hlo.parse_module(KERNELS), kernels)
    traffic = 8000 * chip.clock / chip.bandwidth  # of an operand and a result
    assert result["kernel_cycles"] == round(traffic + 10_000)
    assert result["cycles"] == round(traffic + 10_000 + 500)
    assert result["unknown_loops"] == 1 and result["missing_kernels"] == 1
    assert result["unpriced_cycles"] == pytest.approx(2 * traffic, abs=1)
    assert result["bytes"] == 4 * 8000 + 12_000
    kernels, total, _ = result["operations"]
    assert kernels["name"] == "custom-call:tpu_custom_call" and kernels["times"] == 3
    assert kernels["cycles"] == result["kernel_cycles"]
    assert total == {"source": "", "name": "add", "cycles": 500, "bytes": 12_000, "times": 1}


def test_kernels_that_are_alike_share_a_schedule():
    body = 'backend_config={"custom_call_config":{"body":"TUzvUg=="}}'
    target = 'custom_call_target="tpu_custom_call"'
    text = KERNELS
    for name in ("long", "other"):
        line = next(line for line in text.splitlines() if f"%{name} =" in line)
        text = text.replace(line, line.replace(target, f"{target}, {body}"))
    kernels = {"long": Schedule(10_000)}
    result = compiled_step.describe_program(CHIPS["v5e"], hlo.parse_module(text), kernels)
    assert result["kernel_cycles"] == 20_000 and result["missing_kernels"] == 1
