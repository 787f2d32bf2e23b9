"""Mobile networks and selective kernels have torch's logits."""

import pytest
from torch_networks_mobile import NETWORKS, assert_torchs_logits

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "skresnet18"])
def test_has_torchs_logits(name):
    assert_torchs_logits(name)
