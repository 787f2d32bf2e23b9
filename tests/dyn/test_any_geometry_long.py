"""Any convolution and any layer in any geometry, for many examples."""

import pytest
from any_convolution import check_convolution, convolutions
from any_geometry import LONG
from any_layer import applications, check_layer
from hypothesis import given
from layer_cases import CONVOLUTIONS

pytestmark = pytest.mark.long


@LONG(max_examples=3000)
@given(convolutions())
def test_any_convolution(case):
    check_convolution(case)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_layer(name):
    @LONG(max_examples=100)
    @given(applications())
    def examples(case):
        check_layer(name, case)

    examples()
