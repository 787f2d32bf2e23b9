"""What the planner thinks that a lowering has to do, and what it makes of it."""

import pytest

from dyn.ops import LOWERINGS
from dyn.ops.planner import PRICES, plan, work
from dyn.ops.window import Window

THREE = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)


def amounts(lowering, side=14, features=256, batch=16, num_kernels=4):
    return work(
        lowering,
        (batch, side, side, features),
        (num_kernels, 3, 3, features, features),
        THREE,
        mixed=num_kernels > 1,
        tap_attention=True,
    )


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
    assert shared.inputs == 2 * 4 * 16 * 196 * 9 * 256  # patches, and patches that are weighed
    assert amounts("taps").turns == 9 and amounts("samples").turns == 16


def test_a_convolution_of_pictures_smaller_than_its_kernel_is_cramped():
    assert amounts("outputs", side=2).cramped and not amounts("outputs", side=2).product
    assert amounts("outputs", side=3).product and not amounts("outputs", side=3).cramped


@pytest.mark.parametrize("platform", PRICES)
def test_prices_are_known_for_all_that_can_be_chosen(platform):
    assert set(PRICES[platform].of) == set(LOWERINGS) - {"reference"}
    assert all(price >= 0 for kinds in PRICES[platform].of.values() for price in kinds)


@pytest.mark.parametrize(
    ("side", "features", "num_kernels", "choices"),
    [
        (2, 512, 4, {"shared"}),  # few positions: no kernel of a sample's own is worth it
        (4, 256, 1, {"shared"}),
        (
            56,
            64,
            4,
            {"samples", "patches"},
        ),  # four kernels at each of many positions are not either
    ],
)
@pytest.mark.parametrize("platform", PRICES)
def test_few_positions_share_kernels_and_many_do_not(
    platform, side, features, num_kernels, choices
):
    chosen = plan(
        (32, side, side, features),
        (num_kernels, 3, 3, features, features),
        THREE,
        pixelwise=False,
        mixed=num_kernels > 1,
        tap_attention=True,
        platform=platform,
    )
    assert chosen.choice in choices
