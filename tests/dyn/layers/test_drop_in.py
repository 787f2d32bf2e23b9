"""ODConv inside flax's own ResNet; `test_drop_in_matrix` has the other layers."""

from flax_resnet import assert_trains_inside_flax_resnet
from layer_cases import CONVOLUTIONS


def test_odconv_trains_inside_flax_resnet():
    assert_trains_inside_flax_resnet(CONVOLUTIONS["ODConv"])
