"""Input pipelines with worker processes, and what the readers import."""

import subprocess
import sys

import pytest
from absl import flags
from test_pipeline import assert_equal, source, train  # noqa: F401  (source is a fixture)

pytestmark = pytest.mark.process


def test_threads_and_workers_change_nothing(source):  # noqa: F811
    flags.FLAGS.mark_as_parsed()  # Grain's workers read a flag.
    wanted = train(source)
    assert_equal(train(source, num_threads=0), wanted)
    assert_equal(train(source, num_threads=5), wanted)
    assert_equal(train(source, num_workers=2, start_step=1), wanted[1:] + train(source, 7)[6:])


def test_no_reader_imports_tensorflow_or_torch():
    code = (
        "import sys, importlib\n"
        "for name in ('digits', 'tiny_imagenet', 'voc2012', 'ucr', 'folder', 'mask_folder',\n"
        "             'tfds_catalogue', 'pipeline', 'mask_transforms'):\n"
        "    importlib.import_module('experiments.data.' + name)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
