import numpy as np
import pytest

from experiments import data
from experiments.core.errors import UserError

Z = np.array([-1.3416408, -0.4472136, 0.4472136, 1.3416408], np.float32)  # 1 2 3 4 normalised.


def write(folder, name="Toy", suffix=".tsv", train=None, test=None, separator="\t"):
    """Writes a set of four training and two test series unless other rows are given."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = [f"{label},1,2,3,4" for label in (2, 10, 2, 10)]
    for part, rows in (("TRAIN", train or usual), ("TEST", test or usual[:2])):
        text = "\n".join(rows).replace(",", separator)
        (folder / f"{name}_{part}{suffix}").write_text(text + "\n")
    return folder


@pytest.fixture
def load(make_config, tmp_path):
    def load(source=tmp_path, **fields):
        return data.load(make_config(name="ucr", source=source, **{"validation": 0.0} | fields), 0)

    return load


def series(dataset, split="train"):
    return np.stack([dataset.splits[split][i]["inputs"] for i in range(len(dataset.splits[split]))])


def labels(dataset, split="train"):
    return [int(dataset.splits[split][i]["label"]) for i in range(len(dataset.splits[split]))]


@pytest.mark.parametrize(
    ("suffix", "separator"), [(".tsv", "\t"), ("", ","), (".txt", ","), (".txt", "  ")]
)
def test_tables_of_2018_and_2015(load, tmp_path, suffix, separator):
    write(tmp_path, suffix=suffix, separator=separator)
    toy = load()
    assert (toy.name, toy.shape, toy.classes) == ("Toy", (4, 1), ["2", "10"])
    assert labels(toy) == [0, 1, 0, 1] and labels(toy, "test") == [0, 1]
    assert series(toy).dtype == np.float32
    np.testing.assert_allclose(series(toy)[0, :, 0], Z, rtol=1e-6)
    assert any("All series were z-normalised" in note for note in toy.notes)


def test_set_is_found_by_name(load, tmp_path, make_config):
    write(tmp_path / "Toy")
    write(tmp_path / "Other", "Other")
    assert load(variant="toy").name == "Toy"
    with pytest.raises(UserError, match=r"2 data sets.*variant=NAME: Other, Toy"):
        load()
    assert load(tmp_path / "Toy").name == "Toy"
    assert load(tmp_path / "Other" / "Other_TEST.tsv").name == "Other"
    write(tmp_path / "prepared" / "ucr" / "Toy")
    assert data.load(make_config(name="ucr", variant="Toy"), 0).name == "Toy"


def test_missing_set_is_explained(load, tmp_path):
    write(tmp_path / "Toy")
    with pytest.raises(UserError) as error:
        load(variant="Tooy")
    for part in ("Tooy_TRAIN.tsv", str(tmp_path), "Did you mean 'Toy'", "--config.data.source"):
        assert part in str(error.value)
    assert "UCR Time Series Classification Archive (2018)" in str(error.value)
    assert str(tmp_path / "prepared" / "ucr") in str(error.value)
    (tmp_path / "Toy" / "Toy_TEST.tsv").unlink()
    with pytest.raises(UserError, match=r"Toy_TEST\.tsv"):
        load()


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        (["-1", "1", "-1", "1"], ["-1", "1"], [0, 1, 0, 1]),
        (["1.0000000e+00", "2", "1", "1e1"], ["1", "2", "10"], [0, 1, 0, 2]),
        (["2020101", "2020102", "1e7", "1e7"], ["2020101", "2020102", "10000000"], [0, 1, 2, 2]),
        (["0.1234567", "0.1234568", "-0.0", "0"], ["0", "0.1234567", "0.1234568"], [1, 2, 0, 0]),
        (["b", "a", "b", "a"], ["a", "b"], [1, 0, 1, 0]),
        (["0.5", "1.5", "x", "x"], ["0.5", "1.5", "x"], [0, 1, 2, 2]),
    ],
)
def test_labels_of_any_kind(load, tmp_path, given, classes, expected):
    rows = [f"{label},1,2,3,4" for label in given]
    toy = load(write(tmp_path, train=rows, test=rows))
    assert toy.classes == classes and labels(toy) == labels(toy, "test") == expected


def test_unseen_label_is_named_with_its_line(load, tmp_path):
    write(tmp_path, test=["2,1,2,3,4", "7,1,2,3,4"])
    with pytest.raises(UserError, match=r"Toy_TEST\.tsv, line 2: the label '7'"):
        load()


def test_one_class_is_refused(load, tmp_path):
    write(tmp_path, train=["1,1,2,3"] * 4, test=["1,1,2,3"])
    with pytest.raises(UserError, match="two classes"):
        load()


@pytest.mark.parametrize("missing", ["NaN", "?", ""])
def test_gaps_are_interpolated(load, tmp_path, missing):
    toy = load(write(tmp_path, train=[f"2,1,{missing},3,4", "10,1,2,3,4"]))
    np.testing.assert_allclose(series(toy)[0, :, 0], Z, rtol=1e-6)
    assert "1 missing value in 1 series was filled by linear interpolation." in toy.notes


def test_short_series_are_padded_after_normalising(load, tmp_path):
    toy = load(write(tmp_path, train=["2,1,2,3,4,NaN,NaN", "10,1,2,3,4,5,6"], test=["2,1,2,3,4"]))
    assert toy.shape == (6, 1)
    np.testing.assert_allclose(series(toy)[0, :, 0], [*Z, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(series(toy, "test")[0, :, 0], [*Z, 0, 0], rtol=1e-6)
    assert any("4 to 6 values long: 2 of 3" in note for note in toy.notes)


def test_normalised_series_are_left_alone(load, tmp_path):
    row = ",".join(f"{v:.5f}" for v in Z)
    toy = load(write(tmp_path, train=[f"2,{row}", f"10,{row}"], test=[f"2,{row}"]))
    np.testing.assert_array_equal(series(toy)[0, :, 0], np.round(Z, 5))
    assert not any("normalised" in note for note in toy.notes)


def test_constant_and_empty_series(load, tmp_path):
    rows = ["2,5.1,5.1,5.1,5.1", "10,1,2,3,4", "2,?,?,?,?"]
    toy = load(write(tmp_path, train=rows))
    np.testing.assert_array_equal(series(toy)[0], 0)
    assert len(toy.splits["train"]) == 2 and toy.skipped[0][0].endswith("line 3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2,1,2,3", "4 columns instead of 5"),
        ("2,1,2,3,4,5", "6 columns instead of 5"),
        ("2", "1 columns instead of 5"),
        ("2,1,2,x,4", "not a number"),
        ("2,1,\0,3,4", "not a number"),
        ("2,1,inf,3,4", "inf"),
        ("2,1,1e39,3,4", "beyond float32"),
        ("2,1,1e999,3,4", "infinite"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(load, tmp_path, row, message):
    write(tmp_path, train=["2,1,2,3,4", "", row])
    with pytest.raises(UserError, match=rf"Toy_TRAIN\.tsv, line 3.*{message}"):
        load()


@pytest.mark.parametrize("label", ["", "?", "NaN"])
def test_series_without_a_label_are_skipped(load, tmp_path, label):
    rows = ["2,1,2,3,4", f"{label},1,2,3,4", "10,1,2,3,4"]
    toy = load(write(tmp_path, train=rows, test=rows))
    assert toy.classes == ["2", "10"] and labels(toy) == labels(toy, "test") == [0, 1]
    assert toy.skipped == [
        (f"{tmp_path / name}, line 2", "no label") for name in ("Toy_TRAIN.tsv", "Toy_TEST.tsv")
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x89PNG\r\n\x1a\n\0\xff"])
def test_a_file_that_is_no_table_is_named(load, tmp_path, content):
    write(tmp_path)
    (tmp_path / "Toy_TRAIN.tsv").write_bytes(content)
    with pytest.raises(UserError, match=r"Toy_TRAIN\.tsv (holds no series|cannot be read)"):
        load()


HEADER = [
    "# a comment",
    "@problemName Toy",
    "@timeStamps false",
    "@univariate true",
    "@classLabel true up down",
]


def write_ts(folder, rows, header=()):
    for part in ("TRAIN", "TEST"):
        (folder / f"Toy_{part}.ts").write_text("\n".join([*HEADER, *header, "@data", *rows]))


def test_ts_files(load, tmp_path):
    write_ts(tmp_path, ["1,2,3,4:up", "4,?,2,1:down"], ["@equalLength true"])
    toy = load()
    assert toy.classes == ["down", "up"] and labels(toy) == [1, 0] and toy.shape == (4, 1)
    np.testing.assert_allclose(series(toy)[1, :, 0], Z[::-1], rtol=1e-6)


def test_ts_channels_and_lengths(load, tmp_path):
    write_ts(tmp_path, ["1,2,3,4:4,3,2,1:up", "1,2:2,1:down"], ["@equalLength false"])
    toy = load()
    assert toy.shape == (4, 2)
    np.testing.assert_allclose(series(toy)[0], np.stack([Z, -Z], -1), rtol=1e-6)
    np.testing.assert_allclose(series(toy)[1], [[-1, 1], [1, -1], [0, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1,2,3:up", "1,2:down"], ["@equalLength true"], "line 9 has 2 values"),
        (["1,2,3"], [], "line 7 has no label"),
        (["1,2:up", "1,2:1,2:up"], [], "line 8 has 2 channels"),
        (["(0,1),(1,2):up"], ["@timeStamps true"], "time stamps"),
        (["1,2"], ["@classLabel false"], "no class labels"),
        ([], [], "no series"),
    ],
)
def test_bad_ts_files(load, tmp_path, rows, header, message):
    write_ts(tmp_path, rows, header)
    with pytest.raises(UserError, match=message):
        load()


def test_adiac_in_both_formats(load, real_data):
    new = load(real_data("ucr"), variant="adiac", validation=0.1)
    old = load(real_data("ucr/UCR_TS_Archive_2015"), validation=0.1)
    for adiac in (new, old):
        sizes = {split: len(source) for split, source in adiac.splits.items()}
        assert sizes == {"train": 351, "validation": 39, "test": 391}
        assert adiac.shape == (176, 1) and adiac.classes == [str(n) for n in range(1, 38)]
    assert labels(new) == labels(old)
    np.testing.assert_allclose(series(new), series(old), atol=1e-3)
