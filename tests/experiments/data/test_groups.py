import csv
import unicodedata

import pytest

from experiments.core.errors import UserError
from experiments.data import groups, splits

NAMES = [f"{bird}/site{site}_{take}.wav" for bird in "ab" for site in range(5) for take in range(2)]
LABELS = [name[0] for name in NAMES]


def test_groups_stay_in_one_split():
    sites = groups.find_groups(NAMES, r"(\w/site\d)")
    assigned, _ = groups.assign_splits(sites, LABELS, validation=0.2, test=0.2, seed=3)
    for site in set(sites):
        assert (
            len({split for split, mine in zip(assigned, sites, strict=True) if mine == site}) == 1
        )
    assert [assigned.count(split) for split in splits.NAMES] == [12, 4, 4]
    for split in splits.NAMES:  # of each class a share
        assert {label for label, mine in zip(LABELS, assigned, strict=True) if mine == split} == {
            "a",
            "b",
        }


def test_recordings_are_groups_without_a_pattern():
    assert groups.find_groups(NAMES, "") == NAMES
    assigned, _ = groups.assign_splits(NAMES, LABELS, validation=0.0, test=0.5, seed=0)
    assert assigned.count("test") == 10 and assigned.count("validation") == 0


def test_unmatched_names_are_groups():
    assert groups.find_groups(["x_1.wav", "y.wav"], r"(.)_") == ["x", "y.wav"]


def test_clips_of_a_recording_are_a_group_with_it():
    clips = [
        "noise/0.812_a b_1.00s.wav",
        "owl/1.000_a b_2.00s-2.wav",
        "owl/clip_a b_9.50s (1).flac",
    ]
    nested = ["owl/0.700_0.812_a b_1.00s_0.00s.wav", "owl/clip_a b_0.00s.wav"]
    found = groups.find_groups([*clips, *nested, "wren/a b.WAV", "other/a b.mp3", "a.wav"], "")
    assert len(set(found[:-1])) == 1 and found[-1] == "a.wav"
    # Names that only look similar: of no score, no start, or other programs' clips.
    others = ["0.812_1_a.wav", "a_1.00s.wav", "a_2.00s.wav", "0.812_a_1.0s_4.0s.wav", "0.812_a.wav"]
    others += [
        "1.5_a_1.00s.wav",
        "44.100_a_2.00s.wav",
        "44.100_a_3.00s.wav",
        "0.812_1.00s.wav",
        "20190522_060000.wav",
        "site_1_3.wav",
        "a.wav",
    ]
    assert groups.find_groups(others, "") == others
    # The pattern of a user wins.
    assert groups.find_groups(clips, r"(\w+)/") == ["noise", "owl", "owl"]
    assert groups.find_groups(clips, r"(^x)") == clips


@pytest.mark.parametrize(
    "name",
    [
        *("a.wav", "site/a: 1.b.wav", "Gru\u0308nfink 1.wav", "0.5_.wav"),
        pytest.param("\u9ce5" * 60 + ".wav", id="long"),
    ],
)
@pytest.mark.parametrize("score", [None, 0.81249, 1.0, -12.5])
def test_clips_are_known_by_the_names_that_they_get(name, score):
    names = [f"x/{groups.name_clip(name, start, score)}.wav" for start in (0.0, 61.257)]
    assert len(set(groups.find_groups([*names, f"y/{name}"], ""))) == 1
    copies = [unicodedata.normalize(form, one) for form in ("NFC", "NFD") for one in names]
    assert len(set(groups.find_groups(copies, ""))) == 1


def test_recordings_that_are_added_move_no_others():
    sites = groups.find_groups(NAMES, r"(\w/site\d)")
    before, _ = groups.assign_splits(sites, LABELS, 0.2, 0.2, seed=3)
    more = [f"a/site{site}_9.wav" for site in range(9)] + NAMES
    sites, known = groups.find_groups(more, r"(\w/site\d)"), [None] * 9 + before
    labels = [name[0] for name in more]
    after, _ = groups.assign_splits(sites, labels, 0.2, 0.2, 3, known)
    assert after[9:] == before
    of_sites = dict(zip(sites[9:], before, strict=True))
    assert after[:5] == [of_sites[f"a/site{site}"] for site in range(5)]
    assert set(after[5:9]) == set(splits.NAMES)  # new sites are divided among themselves


def test_class_of_one_group_is_trained_on():
    assigned, notes = groups.assign_splits(["1", "2", "3", "4", "5"], "aaaab", 0.0, 0.4, seed=0)
    assert assigned[4] == "train" and assigned.count("test") == 2
    assert any("only one example" in note for note in notes)


def test_the_seed_decides():
    one, other, again = (
        groups.assign_splits(NAMES, LABELS, 0.2, 0.2, seed)[0] for seed in (0, 1, 0)
    )
    assert one == again != other


def test_split_table_is_read(tmp_path):
    file = tmp_path / "splits.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("file", "split"), ("a.wav", "Train"), (r"b\c.wav", "val")])
    assert groups.read_splits(file) == {"a.wav": "train", "b/c.wav": "validation"}
    file.write_text("file;split\na, b.wav;Train\n", encoding="utf-16")  # as a spreadsheet saves it
    assert groups.read_splits(file) == {"a, b.wav": "train"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,part\na.wav,train\n", "columns file and split"),
        ("file,split\na.wav,some\n", "a.wav has the split 'some'"),
        ("file,split\na.wav,train\na.wav,test\n", "a.wav is in two splits, train and test"),
    ],
)
def test_invalid_split_tables_are_refused(tmp_path, text, words):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        groups.read_splits(tmp_path / "splits.csv")
