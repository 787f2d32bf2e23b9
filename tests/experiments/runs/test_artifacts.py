"""Maps of a few test examples: which ones, of which layer, written and read back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.diagnostics import class_activation
from dyn.layers import GatedConv, PixelDynamicConv
from dyn.models import BasicBlock, ResNet
from experiments.core.errors import UserError
from experiments.runs import artifacts as maps


@pytest.mark.parametrize(
    ("labels", "number", "expected"),
    [
        (np.arange(600) // 3, 8, [0, 84, 171, 255, 342, 426, 513, 597]),  # spread over 200 classes
        ([2, 0, 0, 1, 2], 3, [1, 3, 0]),  # a class each
        ([2, 0, 0, 1, 2], 4, [1, 2, 3, 0]),  # then a second one of the first class
        ([2, 0, 0, 1, 2], 9, [1, 2, 3, 0, 4]),  # all there are
        ([7, 7, 7], 2, [0, 1]),
        ([0, 1, 2, 3, 3, 3], 2, [0, 3]),  # the first and the last class
        ([], 8, []),
    ],
)
def test_examples_are_the_first_of_classes_spread_over_all(labels, number, expected):
    assert maps.choose_examples(np.array(labels, int), number).tolist() == expected


@pytest.fixture(scope="module")
def network():
    """A pixel-wise network of two stages, 8x8 and 4x4, with a third of 2x2; and its variables."""
    net = ResNet(
        (1, 1, 1), BasicBlock, num_classes=3, width=4, stem="small",
        conv=partial(PixelDynamicConv, num_kernels=2),
    )  # fmt: skip
    inputs = np.random.default_rng(0).normal(size=(12, 8, 8, 1)).astype(np.float32)
    return net, jax.jit(net.init)(jax.random.key(0), inputs[:2]), inputs


@pytest.mark.matrix
def test_what_a_network_sees_is_written_and_read_back(tmp_path, network):
    net, variables, inputs = network
    labels = np.array([2, 2, 1, 0] * 3)
    of_all = {"stage1_block1/conv1": np.array([[0.5, 0.5], [0, 1]] * 6)}
    path = tmp_path / "run" / "maps.npz"
    maps.save_maps(path, net, variables, lambda i: {"inputs": inputs[i]}, labels, "abc", of_all)
    found = maps.load_maps(path)

    chosen = maps.choose_examples(labels, maps.NUM_EXAMPLES)
    np.testing.assert_array_equal(found.inputs, inputs[chosen])
    np.testing.assert_array_equal(found.labels, labels[chosen])
    assert found.classes == ["a", "b", "c"]
    logits, state = net.apply(variables, inputs[chosen], mutable=["intermediates"])
    np.testing.assert_array_equal(found.predictions, logits.argmax(-1))
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits).max(-1), rtol=1e-5)
    # The last of the stages whose features are still 4x4.
    assert found.layer == "stage2_block1"
    expected = class_activation(
        net, variables, jnp.asarray(inputs[chosen]), jnp.asarray(labels[chosen]), found.layer
    )
    np.testing.assert_allclose(found.activation, expected, rtol=1e-3, atol=1e-5)
    sown = state["intermediates"]["stage1_block1"]["conv2"]["attention"]["weights"][0]
    kept = found.weights["stage1_block1/conv2"]
    assert kept.keys() == {"kernel", "pixel"} and kept["pixel"].shape == (8, 8, 8, 2)
    np.testing.assert_allclose(kept["pixel"], sown["pixel"], atol=1e-3)

    # Mixtures of all inputs are kept as given; the others come from the examples.
    whole, few = (found.mixtures[f"stage1_block1/conv{n}"] for n in (1, 2))
    assert whole["count"] == 12 and few["count"] == 8
    np.testing.assert_allclose(whole["mean"], [0.25, 0.75])
    np.testing.assert_allclose(whole["on"], [0.5, 1.0])
    assert not whole["hard"] and not whole["dead"].any()


def test_hard_gates_are_known_by_their_values():
    found = maps.describe_mixture(np.array([[1, 0, 1], [0, 0, 1]]))
    assert found["hard"] and found["on"].tolist() == [0.5, 0, 1]
    assert found["dead"].tolist() == [False, True, False]
    assert not maps.describe_mixture(np.array([[0.5, 0.5], [1, 0]]))["hard"]


@pytest.mark.parametrize(
    ("size", "layer"), [(32, "stage3_block1"), (8, "stage2_block1"), (4, "stage1_block1"), (3, "")]
)
def test_the_layer_that_is_mapped_has_four_positions_along_each_axis(size, layer):
    net = ResNet((1, 1, 1), BasicBlock, num_classes=3, width=4, stem="small", conv=GatedConv)
    x = jax.ShapeDtypeStruct((2, size, 2 * size, 1), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert maps.find_activation_layer(net, variables, x) == layer


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "maps.npz"
    with pytest.raises(UserError, match=r"maps\.npz cannot be read"):
        maps.load_maps(path)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UserError, match=r"maps\.npz cannot be read"):
        maps.load_maps(path)
    np.savez(path, inputs=np.ones(3))
    with pytest.raises(UserError, match=r"maps\.npz is damaged: it has no labels"):
        maps.load_maps(path)
    np.savez(path, **{"classes": np.array(["a"]), "images/0": np.ones((2, 2, 3), np.uint8)})
    with pytest.raises(UserError, match="is damaged: it has no 'truths/0'"):
        maps.load_samples(path)


def test_segmentation_samples_of_any_size_are_made_smaller_by_whole_classes(tmp_path, rng):
    sizes = [(40, 30), (100, 800)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    truths = [rng.choice([0, 3, 255], size).astype(np.int32) for size in sizes]
    predictions = [rng.choice([0, 20], size) for size in sizes]
    path = tmp_path / "samples.npz"
    maps.save_samples(path, images, truths, predictions, ["background", "bird"])
    found = maps.load_samples(path)
    assert found.classes == ["background", "bird"]
    assert [image.shape for image in found.images] == [(40, 30, 3), (40, 320, 3)]
    np.testing.assert_array_equal(found.images[0], images[0])
    np.testing.assert_array_equal(found.truths[0], truths[0])
    np.testing.assert_array_equal(found.predictions[0], predictions[0])
    assert found.truths[1].shape == found.predictions[1].shape == (40, 320)
    assert set(np.unique(found.truths[1])) == {0, 3, 255}
