"""Input pipelines with worker processes, and what the readers import."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from experiments.data import pipeline, transforms
from experiments.data.views import Arrays

pytestmark = pytest.mark.process


def test_threads_and_workers_change_nothing():
    flags.FLAGS.mark_as_parsed()  # Grain's workers read a flag.
    inputs = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 1)).astype(np.uint8)
    augment = transforms.make_transform("crop_flip", 6, 0.5, 0.5, train=True)

    def take_batches(count, **options):
        source = Arrays(inputs, np.arange(21))
        batches = pipeline.train_batches(source, augment, batch_size=8, seed=7, **options)
        taken = list(itertools.islice(batches, count))
        batches.close()
        return taken

    expected = take_batches(7)
    for start, options in (
        (0, {"num_threads": 0}),
        (0, {"num_threads": 5}),
        (1, {"num_workers": 2}),
    ):
        batches = take_batches(6, start_step=start, **options)
        for batch, wanted in zip(batches, expected[start : start + 6], strict=True):
            np.testing.assert_array_equal(batch["inputs"], wanted["inputs"])
            np.testing.assert_array_equal(batch["label"], wanted["label"])


def test_no_reader_imports_tensorflow_or_torch():
    code = (
        "import sys, importlib\n"
        "for name in ('digits', 'tiny_imagenet', 'voc2012', 'ucr', 'folder', 'mask_folder',\n"
        "             'tfds_catalogue', 'pipeline', 'mask_transforms', 'coco_folder', 'voc2012_instances',\n"
        "             'mask_folder_instances', 'instance_transforms'):\n"
        "    importlib.import_module('experiments.data.' + name)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
