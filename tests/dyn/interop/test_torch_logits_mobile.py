"""A selective kernel network has torch's logits; the other networks are in the matrix."""

from torch_networks_mobile import assert_torchs_logits


def test_selective_kernels_have_torchs_logits():
    assert_torchs_logits("skresnet18")
