import pytest

from experiments.runs.metrics import count_classes, select_scalars
from experiments.train.banner import describe_shape


@pytest.mark.parametrize(
    ("shape", "image_size", "words"),
    [
        ((8, 8, 1), 0, "8x8x1"),
        ((64, 64, 3), 64, "64x64x3"),
        ((32, 64, 3), 64, "32x64x3, resized to 64x64"),
        ((0, 0, 3), 96, "pictures of different sizes, 3 channels, resized to 96x96"),
        ((176, 1), 0, "176x1"),
    ],
)
def test_shape(shape, image_size, words):
    assert describe_shape(shape, image_size) == words


def test_metrics_without_information_are_not_shown():
    metrics = {"accuracy": 0.9, "top5": 1.0, "top1_error": 0.1, "iou": {"cat": 0.5}}
    assert select_scalars(metrics, 3) == {"accuracy": 0.9}
    assert select_scalars(metrics, 6) == select_scalars(metrics, None)
    assert "top5" in select_scalars(metrics, 6)
    assert count_classes({"classes": ["a", "b"]}) == 2 and count_classes({}) is None
