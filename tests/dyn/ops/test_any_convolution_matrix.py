"""Any convolution is that of the definition or refused, for 200 examples."""

import pytest
from any_convolution import QUICK, check_convolution, convolutions
from hypothesis import given

pytestmark = pytest.mark.matrix


@QUICK(max_examples=200)
@given(convolutions())
def test_any_convolution(case):
    check_convolution(case)
