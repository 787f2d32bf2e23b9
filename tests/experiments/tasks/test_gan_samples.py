import numpy as np

from experiments.tasks.gan_samples import choose_real, measure_diversity, to_uint8


def test_diversity_is_measured_within_classes():
    rng = np.random.default_rng(0)
    same = {label: np.full((4, 8, 8, 1), 60 * label, np.uint8) for label in range(3)}
    assert measure_diversity(same) == 0
    noisy = {label: rng.integers(0, 256, (50, 8, 8, 1)).astype(np.uint8) for label in range(2)}
    assert abs(measure_diversity(noisy) - 73.9) < 2  # of 0 to 255
    assert measure_diversity({0: np.zeros((1, 2, 2, 1), np.uint8)}) == 0


def test_a_bounded_number_of_real_pictures_is_read():
    source = [{"inputs": np.full((2, 2, 1), i % 7, np.uint8), "label": i % 3} for i in range(300)]
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    def transform(example):
        return {"inputs": example["inputs"] / np.float32(127.5) - 1}

    found = choose_real(Counted(source), transform, range(4), 2, seed=0)
    assert {label: many.shape for label, many in found.items()} == dict.fromkeys(
        range(3), (2, 2, 2, 1)
    )
    assert len(read) == 160 and all(many.max() <= 6 for many in found.values())


def test_to_uint8_undoes_the_normalisation():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    normalised = (every.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(to_uint8(normalised), every)
    assert to_uint8(np.array([-1.5, 1.5])).tolist() == [0, 255]
