"""Any convolution is that of the definition or refused, for thousands of examples."""

import pytest
from any_convolution import check_convolution, convolutions
from any_geometry import LONG
from hypothesis import given

pytestmark = pytest.mark.long


@LONG(max_examples=3000)
@given(convolutions())
def test_any_convolution(case):
    check_convolution(case)
