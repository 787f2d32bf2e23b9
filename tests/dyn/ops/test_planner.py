"""The planner counts the work of each lowering and chooses the cheapest."""

import dataclasses
from functools import partial

import jax
import pytest
from jax.sharding import AxisType

from dyn.ops import LOWERINGS, explain, fused_pixels_tpu, platforms
from dyn.ops.geometry import Problem, resolve_geometry
from dyn.ops.planner import PRICES, count_work, plan, why_unavailable


def problem(side=14, features=256, batch=16, num_kernels=4):
    kernels = (num_kernels, 3, 3, features, features)
    geometry = resolve_geometry((side, side), (3, 3))
    return Problem(batch, kernels, geometry, mixed=num_kernels > 1, tap_attention=True)


def test_an_onnx_file_has_no_kernel_for_tpus():
    assert plan(problem(), "tpu").choice == "fused"
    assert plan(problem(), "onnx").choice != "fused"


@pytest.mark.parametrize("platform", ["tpuv5", "TPU", ""])
def test_an_unknown_platform_is_refused(platform):
    x, kernels = (jax.ShapeDtypeStruct(s, "float32") for s in ((1, 4, 4, 2), (1, 3, 3, 2, 2)))
    for name_it in (
        lambda: plan(problem(), platform),
        lambda: explain(x, kernels, platform=platform),
        lambda: platforms.plan_for_platform(platform).__enter__(),
    ):
        with pytest.raises(ValueError, match="'cpu', 'gpu', 'cuda', 'rocm', 'tpu', 'onnx'"):
            name_it()


def test_a_platform_without_prices_is_planned_for_like_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "METAL")
    assert plan(problem()).platform == plan(problem(), "cuda").platform == "gpu"


def amounts(lowering, **sizes):
    return count_work(lowering, problem(**sizes))


def test_work_is_counted():
    flops = 3 * 2 * 16 * 196 * 9 * 256 * 256
    for lowering in ("taps", "patches", "samples"):
        kinds = amounts(lowering)
        assert kinds.product == flops
        assert kinds.kernels == 4 * 16 * 9 * 256 * 256
        assert kinds.inputs == 4 * 16 * 196 * 9 * 256
    shared = amounts("shared")
    assert shared.product == 4 * flops and shared.kernels == 0
    assert shared.outputs == 4 * (4 * 16 * 196 * 256)
    assert shared.inputs == 2 * 4 * 16 * 196 * 9 * 256  # patches, and patches that are weighted
    assert amounts("taps").iterations == 9 and amounts("samples").iterations == 16


def test_a_convolution_of_pictures_smaller_than_its_kernel_is_cramped():
    assert amounts("outputs", side=2).cramped and not amounts("outputs", side=2).product
    assert amounts("outputs", side=3).product and not amounts("outputs", side=3).cramped


@pytest.mark.parametrize("platform", PRICES)
def test_prices_are_known_for_all_that_can_be_chosen(platform):
    unavailable = {name for name in LOWERINGS if why_unavailable(name, platform)}
    assert set(PRICES[platform].of) | {"reference"} == set(LOWERINGS) - unavailable
    assert all(price >= 0 for kinds in PRICES[platform].of.values() for price in kinds)


@pytest.mark.parametrize(
    ("side", "features", "num_kernels", "choices"),
    [
        (2, 512, 4, {"shared"}),  # per-sample kernels do not pay off at few positions
        (4, 256, 1, {"shared"}),
        (56, 64, 4, {"samples", "patches", "reference"}),  # and they do at many
    ],
)
@pytest.mark.parametrize("platform", PRICES)
def test_few_positions_share_kernels_and_many_do_not(
    platform, side, features, num_kernels, choices
):
    chosen = plan(problem(side, features, 32, num_kernels), platform)
    others = [e.lowering for e in chosen.estimates if e.lowering != "fused"]
    assert others[0] in choices


def choose_on_gpu(devices, monkeypatch, **changes):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    large = dataclasses.replace(problem(56, 64, 128), itemsize=2, **changes)
    return plan(large, "gpu")


def test_a_single_gpu_groups_a_convolution_by_samples(monkeypatch):
    """Its bytes are a third of those of patches, but over several devices it would gather the batch."""
    assert choose_on_gpu(1, monkeypatch).choice == "reference"
    assert choose_on_gpu(8, monkeypatch).choice == "patches"


def test_kernels_that_samples_share_need_no_groups_of_samples(monkeypatch):
    shared = {"kernels": (1, 3, 3, 64, 64), "mixed": False, "tap_attention": False}
    chosen = choose_on_gpu(1, monkeypatch, **shared)
    assert chosen.choice == "outputs"
    assert "same convolution" in str(chosen)


def test_depthwise_convolutions_have_groups_already(monkeypatch):
    depthwise = resolve_geometry((56, 56), (3, 3), groups=64)
    chosen = choose_on_gpu(1, monkeypatch, kernels=(4, 3, 3, 1, 64), geometry=depthwise)
    assert chosen.choice != "reference"
    assert "groups of features" in str(chosen)


def test_tpus_have_the_fused_kernel_and_take_the_next_best_where_it_cannot():
    mixed = problem(56, 64, 32)
    assert plan(mixed, "tpu").choice == "fused"
    for platform in ("cpu", "gpu"):
        assert "a kernel for TPUs" in str(plan(mixed, platform))
    geometry = resolve_geometry((56, 56), (3, 3), kernel_dilation=2)
    dilated = plan(dataclasses.replace(mixed, geometry=geometry), "tpu")
    assert dilated.choice != "fused" and "dilation" in str(dilated)
    ordinary = dataclasses.replace(problem(56, 64, 32, 1), tap_attention=False)
    assert plan(ordinary, "tpu").choice == "outputs"


def test_the_fused_kernel_is_chosen_where_it_is_known_how_a_mesh_divides_the_batch():
    assert plan(problem(), "tpu").choice == "fused"
    shards = partial(dataclasses.replace, problem(batch=16))
    assert plan(shards(batch_shards=4), "tpu").choice == "fused"
    assert "16 does not divide over 3" in str(plan(shards(batch_shards=3), "tpu"))
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
        several = plan(shards(batch_shards=None), "tpu")
    assert several.choice != "fused" and "several automatic axes" in str(several)


def test_the_fused_kernel_is_not_chosen_on_devices_without_a_mesh(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert "call jax.set_mesh" in str(plan(dataclasses.replace(problem(), batch_shards=None)))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert plan(dataclasses.replace(problem(), batch_shards=None)).choice == "fused"


@pytest.mark.parametrize(
    ("side", "features", "batch", "choice", "why"),
    [
        (56, 64, 128, "fused", ""),
        (28, 128, 128, "fused", ""),
        (14, 256, 128, "outputs", "VMEM"),
        (56, 64, 32, "outputs", "no multiple of 128"),
        (56, 60, 128, "outputs", "tiles of 16"),
    ],
)
def test_pixel_wise_mixtures_have_a_kernel_where_xla_is_slower(side, features, batch, choice, why):
    pixelwise = make_pixelwise(side, features, batch)
    chosen = plan(pixelwise, "tpu")
    assert chosen.choice == choice and why in str(chosen)
    work = count_work("fused", pixelwise)
    assert work.product == count_work("outputs", pixelwise).product and work.kernels == 0
    assert 4 * work.outputs == count_work("outputs", pixelwise).outputs


def test_many_features_are_left_to_xla(monkeypatch):
    monkeypatch.setattr(fused_pixels_tpu, "find_vmem_size", lambda: 2**27)
    assert plan(make_pixelwise(14, 256, 128), "tpu").choice == "fused"
    assert "many features" in str(plan(make_pixelwise(14, 384, 128), "tpu"))


def make_pixelwise(side, features, batch):
    changes = {"pixelwise": True, "tap_attention": False, "itemsize": 2}
    return dataclasses.replace(problem(side, features, batch), **changes)
