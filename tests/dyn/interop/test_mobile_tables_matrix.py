"""Names of all published networks of inverted residual blocks have their places."""

import pytest
from mobile_names import FILES, assert_every_name_has_its_place

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", FILES)
def test_every_name_of_a_published_file_has_its_place(name):
    assert_every_name_has_its_place(name)
