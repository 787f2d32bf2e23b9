import numpy as np
import pytest
import tensorflow_datasets as tfds
from picture_files import encode
from PIL import Image

from experiments import data
from experiments.core.errors import UserError


class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    sizes = {"train": 20, "test": 6}  # noqa: RUF012
    mode = "L"
    kind = tfds.features.ClassLabel(names=["dark", "light"])

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 5, 1 if self.mode == "L" else 3)),
            "label": self.kind,
            "note": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(size) for name, size in self.sizes.items()}

    def _generate_examples(self, size):
        for i in range(size):
            value = 200 * (i % 2) + i
            picture = Image.new(self.mode, (5, 4), value if self.mode == "L" else (value,) * 3)
            yield i, {"image": encode(picture), "label": i % 2, "note": "unused"}


def prepare(folder, file_format="array_record", **attributes):
    builder = type("Toy", (Toy,), attributes, skip_registration=True)(
        data_dir=folder, file_format=file_format
    )
    builder.download_and_prepare()
    return builder


@pytest.fixture
def load(make_config, tmp_path):
    def load(source=tmp_path, variant="toy"):
        return data.load(make_config(name="tfds", source=source, variant=variant), 0)

    return load


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_prepared_set(load, tmp_path, mode):
    channels = len(mode)
    prepare(tmp_path, mode=mode)
    for source in (tmp_path, tmp_path / "toy" / "1.0.0"):
        toy = load(source)
        assert toy.shape == (4, 5, channels) and toy.classes == ["dark", "light"]
        sizes = {split: len(source) for split, source in toy.splits.items()}
        assert sizes == {"train": 18, "validation": 2, "test": 6}
        example = toy.splits["test"][0]
        assert example["inputs"].shape == (4, 5, channels) and example["inputs"].dtype == np.uint8
        assert (example["inputs"][0, 0, 0] >= 200) == example["label"]
        # The test pictures are copies of training pictures.
        assert any("examples of test are also in train" in note for note in toy.notes)


def test_a_split_without_labels_is_not_used(load, tmp_path):
    def generate(self, size):
        for i, example in Toy._generate_examples(self, size):
            yield i, example | ({"label": -1} if size == 6 else {})

    prepare(tmp_path, _generate_examples=generate)
    toy = load()
    assert len(toy.splits["test"]) == 4 and "The test split has no labels" in toy.notes[0]


def test_missing_splits_are_taken_from_train(load, tmp_path):
    prepare(tmp_path, sizes={"train": 20, "validation": 4})
    toy = load()
    assert [len(toy.splits[s]) for s in ("train", "validation", "test")] == [16, 4, 4]


def test_unprepared_set_is_explained(load, tmp_path):
    with pytest.raises(UserError) as error:
        load(variant="cifar10")
    assert "tfds build cifar10 --file_format=array_record" in str(error.value)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match="variant=NAME"):
        load(variant="")


def test_sets_without_train_or_labels_are_refused(load, tmp_path):
    prepare(tmp_path / "a", sizes={"extra": 4})
    with pytest.raises(UserError, match="no labelled train split, only extra"):
        load(tmp_path / "a")
    prepare(tmp_path / "b", kind=tfds.features.Scalar(np.int64))
    with pytest.raises(UserError, match="no class label"):
        load(tmp_path / "b")


def test_a_format_that_needs_tensorflow_is_refused(load, tmp_path):
    builder = prepare(tmp_path)
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="format tfrecord"):
        load()


def test_third_party_features_are_refused(load, tmp_path, monkeypatch):
    prepare(tmp_path)
    (tmp_path / "code" / "strange").mkdir(parents=True)
    mark = tmp_path / "it ran"
    (tmp_path / "code" / "strange" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path / "code")
    features = tmp_path / "toy" / "1.0.0" / "features.json"
    text = features.read_text()
    features.write_text(
        text.replace("tensorflow_datasets.core.features.text_feature.Text", "strange.Text")
    )
    assert features.read_text() != text
    for source in (tmp_path, tmp_path / "toy" / "1.0.0"):
        with pytest.raises(UserError, match=r"features\.json would run the code of strange\.Text"):
            load(source)
    assert not mark.exists()


def test_undecodable_record_is_named(load, tmp_path):
    def generate(self, size):
        for i, example in Toy._generate_examples(self, size):
            yield i, example | ({"image": b"no picture"} if size == 6 else {})

    prepare(tmp_path, _generate_examples=generate)
    toy = load()
    assert toy.splits["train"][0]["inputs"].shape == (4, 5, 1)
    with pytest.raises(UserError, match=r"Record 0 of test cannot be read.*not a picture"):
        toy.splits["test"][0]
