"""Any convolution is that of the definition or refused, for thousands of examples."""

import pytest
from any_convolution import LONG, check_convolution, convolutions
from hypothesis import given

pytestmark = pytest.mark.long


@LONG(max_examples=3000)
@given(convolutions())
def test_any_convolution(case):
    check_convolution(case)
