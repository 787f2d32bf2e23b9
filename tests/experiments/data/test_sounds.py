import csv
import json
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from experiments.audio import songs
from experiments.configs import birdsong_classifier, common
from experiments.core.errors import UserError
from experiments.data import check_skipped, extra, load
from experiments.data.fingerprint import compute_fingerprint, describe_changes
from experiments.data.views import flatten

# Small pictures of short windows: what is read, not how it looks, is what counts here.
AUDIO = {"sample_rate": 16_000, "seconds": 0.5, "hop": 0.5, "n_fft": 256, "step": 200, "bands": 16}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    return songs.write_songs(folder, classes=2, recordings=6, seconds=1.0, rate=16_000)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return songs.write_mixed_songs(folder, classes=2, recordings=6, seconds=4.0, rate=16_000)


@pytest.fixture
def opened(tmp_path):
    def read(source, seed=0, data=(), known=(), **audio):
        config = common.get_config("audio")
        config.data.update({"source": str(source), "dir": str(tmp_path), **dict(data)})
        config.audio.update({**AUDIO, **audio})
        return load(config.data, seed, config.audio, known)

    return read


def names_of(source):
    (windows,), _, positions = flatten(source)
    return [windows.names[position] for position in positions]


def files_of(source):
    return {name.partition(" @ ")[0] for name in names_of(source)}


def test_folders_are_classes_and_windows_are_pictures(birds, opened):
    found = opened(birds)
    assert found.classes == ["faller", "riser"] and found.shape == (16, 41, 1)
    for source in found.splits.values():
        for index in range(len(source)):
            example = source[index]
            assert example["inputs"].shape == found.shape and example["inputs"].dtype == np.uint8
            name = names_of(source)[index]
            assert name.startswith(f"{found.classes[example['label']]}/")
    assert sum(map(len, found.splits.values())) == 2 * 6 * 2


def test_recordings_stay_in_one_split(birds, opened):
    found = opened(birds)
    files = {split: files_of(source) for split, source in found.splits.items()}
    assert not files["train"] & files["test"] and not files["train"] & files["validation"]
    assert {file: split for split in files for file in files[split]} == dict(found.assignment)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_classes_and_splits_have_accents_in_either_form(birds, opened, tmp_path, forms):
    one, other = (unicodedata.normalize(form, "Grünfink") for form in forms)
    shutil.copytree(birds / "riser", tmp_path / "all" / one)
    shutil.copytree(birds / "faller", tmp_path / "all" / "Kranich")
    files = [
        f"{folder}/{file.name}"
        for folder, bird in ((other, "riser"), ("Kranich", "faller"))
        for file in sorted((birds / bird).glob("*.wav"))
    ]
    rows = [
        f"{file},{('train', 'validation', 'test')[place % 3]}" for place, file in enumerate(files)
    ]
    (tmp_path / "splits.csv").write_text("\n".join(["file,split", *rows]), encoding="utf-8")
    found = opened(
        tmp_path / "all", splits=str(tmp_path / "splits.csv"), data={"classes": f"{other},Kranich"}
    )
    assert found.classes == [unicodedata.normalize("NFC", one), "Kranich"]
    assert [split for _, split in sorted(found.assignment)] == ["train", "validation", "test"] * 4


def test_recordings_that_are_added_move_no_others(birds, opened, tmp_path):
    root = shutil.copytree(birds, tmp_path / "more")
    before = opened(root)
    for number in range(8):
        shutil.copy(birds / "riser" / "riser-001.wav", root / "riser" / f"a{number}.wav")
    dealt_anew, splits = dict(opened(root).assignment), dict(before.assignment)
    assert any(dealt_anew[name] != split for name, split in splits.items())
    known = compute_fingerprint(before)
    after = opened(root, known=known.entries)
    kept = dict(after.assignment)
    assert {name: kept[name] for name in splits} == splits and len(kept) == len(splits) + 8
    # Recordings that were added are named, and no others.
    words = describe_changes(known, compute_fingerprint(after))
    assert words.startswith("8 files were added (riser/a0.wav") and "moved" not in words
    assert len(known.entries) == len(splits)


def test_rare_classes_are_repeated_in_training(birds, opened, tmp_path):
    root = shutil.copytree(birds, tmp_path / "few")
    for number in (0, 1, 2):
        (root / "riser" / f"riser-00{number}.wav").unlink(missing_ok=True)
    before, after = opened(root), opened(root, upsample=1.0)

    def count(dataset, split):
        source = dataset.splits[split]
        return np.bincount([source[index]["label"] for index in range(len(source))])

    rare, frequent = sorted(count(before, "train"))
    assert rare < frequent and count(after, "train").tolist() == [frequent, frequent]
    assert count(after, "test").tolist() == count(before, "test").tolist()
    assert set(names_of(after.splits["train"])) == set(names_of(before.splits["train"]))
    assert any("repeated" in note for note in after.notes)
    compute_fingerprint(after)


def test_empty_bands_are_noted_with_the_rate_that_fills_them(birds, opened):
    notes = " ".join(opened(birds, sample_rate=24_000).notes)
    assert "upper bands of their spectrograms are empty; --config.audio.sample_rate=16000" in notes
    assert "are empty" not in " ".join(opened(birds).notes)


def test_copied_recordings_are_noticed(birds, opened, tmp_path):
    for number, name in enumerate(["a", "b", "c", "d"]):
        for kind in ("faller", "riser"):
            target = tmp_path / "some" / kind / f"{name}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            sound = birds / kind / f"{kind}-00{max(number, 1)}.wav"
            target.write_bytes(sound.read_bytes())
    found = {}
    for copy in ("test", "train"):  # b is a copy of a
        rows = [("a", "train"), ("b", copy), ("c", "validation"), ("d", "test")]
        lines = [
            f"{kind}/{name}.wav,{split}" for name, split in rows for kind in ("faller", "riser")
        ]
        (tmp_path / "splits.csv").write_text("\n".join(["file,split", *lines]))
        found[copy] = opened(tmp_path / "some", splits=str(tmp_path / "splits.csv")).notes
    (note,) = set(found["test"]) - set(found["train"])
    assert note.startswith("4 of the 8 examples of test are also in train, with the same content")
    assert "faller/b.wav @ 0.0 s is faller/a.wav @ 0.0 s)" in note


def test_seed_or_table_decides_the_splits(birds, opened, tmp_path):
    one, other = (opened(birds, seed=seed) for seed in (0, 1))
    assert dict(one.assignment) != dict(other.assignment)
    with (tmp_path / "splits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "split"), *one.assignment])
    again = opened(birds, seed=1, splits=str(tmp_path / "splits.csv"))
    assert dict(again.assignment) == dict(one.assignment)


def test_incomplete_split_table_is_refused(birds, opened, tmp_path):
    (tmp_path / "splits.csv").write_text("file,split\nriser/riser-001.wav,train\n")
    with pytest.raises(
        UserError, match=r"splits.csv: faller/faller-001.wav has no split there, nor"
    ):
        opened(birds, splits=str(tmp_path / "splits.csv"))


def test_sites_stay_in_one_split(birds, opened):
    found = opened(birds, group_pattern=r"-00([123])?")
    together = {split for file, split in found.assignment if file.endswith("-001.wav")}
    assert len(together) == 1


def test_clips_of_a_recording_share_its_split(birds, opened, tmp_path):
    root = shutil.copytree(birds, tmp_path / "more")
    (root / "noise").mkdir()
    sound = birds / "riser" / "riser-001.wav"
    for number in range(12):  # Of two recordings that are in the data, and two that are not.
        stem = ("riser-001", "faller-003", "field_1", "field_2")[number % 4]
        kind = "noise" if number < 8 else "riser"
        shutil.copy(sound, root / kind / f"0.{number + 500}_{stem}_{number}.00s.wav")
    for seed in range(3):
        found = opened(root, seed=seed)
        for stem in ("riser-001", "faller-003", "field_1", "field_2"):
            splits = [split for name, split in found.assignment if stem in name]
            assert len(splits) >= 3 and len(set(splits)) == 1
        assert any("share the split of their recording: 14 files of 4" in n for n in found.notes)
    # A class that only clips of one recording have is trained on.
    for path in (root / "noise").glob("*_field_1_*"):
        shutil.copy(path, root / "faller" / path.name.replace(".00s", ".50s"))
    for path in (root / "noise").iterdir():
        if "field_1" not in path.name:
            path.unlink()
    for seed in range(6):
        assignment = dict(opened(root, seed=seed).assignment)
        assert {s for name, s in assignment.items() if name.startswith("noise/")} == {"train"}


def test_labels_may_be_in_names(birds, opened, tmp_path):
    for path in birds.rglob("*.wav"):
        target = tmp_path / "flat" / f"{path.parent.name.title()} {path.stem[-1]}.wav"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "flat" / "unknown.wav").write_bytes(path.read_bytes())
    found = opened(tmp_path / "flat", label_pattern=r"^(\w+) \d")
    assert found.classes == ["Faller", "Riser"]
    assert found.skipped == [
        ("unknown.wav", "its name does not match --config.audio.label_pattern")
    ]


def test_classes_can_be_chosen(birds, opened):
    found = opened(birds, data={"classes": "riser"})
    assert found.classes == ["riser"] and len(found.assignment) == 6
    with pytest.raises(UserError, match="there is no raiser; did you mean 'riser'"):
        opened(birds, data={"classes": "raiser"})


def test_other_recordings_are_negative_for_chosen_classes(birds, long, opened):
    for folder, exhaustive in ((birds, False), (long, True)):
        audio = {"labels": "multi", "exhaustive": exhaustive}
        found = opened(folder, data={"classes": "riser"}, **audio)
        assert len(found.assignment) == len(opened(folder, **audio).assignment)
        assert {float(example["label"][0]) for example in found.splits["train"]} == {0.0, 1.0}


def test_silent_and_broken_recordings_are_skipped(birds, opened, tmp_path):
    folder = shutil.copytree(birds, tmp_path / "some")
    (folder / "riser" / "broken.wav").write_text("no sound")
    wave = (folder / "riser" / "riser-001.wav").read_bytes()
    (folder / "riser" / "silent.wav").write_bytes(wave[:44] + bytes(len(wave) - 44))
    found = opened(folder)
    assert [name for name, _ in found.skipped] == ["riser/broken.wav"]
    assert "2 windows are silent and were left out." in found.notes
    assert sum(map(len, found.splits.values())) == 2 * 6 * 2


def test_annotations_label_the_windows_they_overlap(long, opened):
    found = opened(long, labels="multi", exhaustive=True)
    labels = np.stack([example["label"] for example in found.splits["train"]])
    assert found.classes == ["faller", "riser"] and labels.dtype == np.float32
    assert set(np.unique(labels)) == {0.0, 1.0} and labels.any(axis=0).all()


def test_unannotated_classes_are_unknown(long, opened, tmp_path):
    with pytest.raises(UserError, match=r"--config\.audio\.exhaustive=True"):
        opened(long, labels="multi")
    rows = [("file", "start", "end", "label", "label_type")]
    for number in range(1, 7):
        rows.append((f"long-{number:03d}.wav", 0, 0.5, "wren", "positive"))
        rows.append((f"long-{number:03d}.wav", 2, 2.5, "wren", "negative"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = opened(long, labels="multi", annotations=str(tmp_path / "labels.csv"))
    labels = np.concatenate([example["label"] for example in found.splits["train"]])
    assert sorted(set(labels)) == [0.0, 1.0]
    assert {name.partition(" @ ")[2] for name in names_of(found.splits["train"])} == {
        "0.0 s",
        "2.0 s",
    }


def test_splits_balance_the_labels_of_windows(long, opened, tmp_path):
    """One recording of each class has a window to itself; in the others both sound at once."""
    rows = [("file", "start", "end", "label")]
    for number in range(1, 7):
        alone = {1: ["wren"], 2: ["owl"]}.get(number, ["wren", "owl"])
        rows += [(f"long-{number:03d}.wav", 1, 1.5, label) for label in alone]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for seed in range(6):
        found = opened(long, seed, annotations=str(tmp_path / "labels.csv"))
        assert {example["label"] for example in found.splits["train"]} == {0, 1}
    assert found.classes == ["owl", "wren"]


def test_pattern_takes_precedence_over_tables(birds, opened, tmp_path):
    shutil.copytree(birds, tmp_path / "some")
    table = tmp_path / "some" / "riser" / "riser-001.txt"
    table.write_text("Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\n")
    with pytest.raises(UserError, match="11 recordings have no annotations"):
        opened(tmp_path / "some")
    found = opened(tmp_path / "some", label_pattern="^([^/]+)/")
    assert found.classes == ["faller", "riser"] and len(found.assignment) == 12


def test_missing_label_column_is_named(long, opened):
    with pytest.raises(UserError, match=r"none .* long-001\.Table.*txt: it has no column call\."):
        opened(long, label_column="call")


def test_windows_around_annotations_stay_inside(long, opened, tmp_path):
    rows = ["file,start,end,label"]
    for number in range(1, 7):
        for start, end in ((0, 0.2), (1.9, 2.1), (3.7, 9), (5, 6)):
            rows.append(f"long-{number:03d}.wav,{start},{end},wren")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    audio = {"labels": "multi", "exhaustive": True, "windows": "annotations", "pad": "drop"}
    with pytest.raises(UserError, match="no window has a negative label"):
        opened(long, annotations=str(tmp_path / "labels.csv"), **audio)
    rows.append("long-001.wav,1.9,2.1,owl")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    table = "file,split\n" + "".join(f"long-{number:03d}.wav,train\n" for number in range(1, 7))
    (tmp_path / "splits.csv").write_text(table)
    files = {"annotations": str(tmp_path / "labels.csv"), "splits": str(tmp_path / "splits.csv")}
    found = opened(long, **files, **audio)
    assert set(names_of(found.splits["train"])) == {
        f"long-{number:03d}.wav @ {start} s" for number in range(1, 7) for start in (0.0, 1.8, 3.5)
    }
    assert len(found.incomplete) == 6 and not found.skipped  # annotations that begin after the end


def test_lines_of_tables_are_no_unusable_files(long, opened, tmp_path):
    folder = shutil.copytree(long, tmp_path / "some")
    for path in folder.glob("*.wav"):
        points = "".join(f"{n}.5\t{n}.5\tnote\n" for n in range(9))
        path.with_suffix(".txt").write_text(f"0.5\t1.5\twren\n{points}")
    found = opened(folder, labels="multi", exhaustive=True)
    assert len(found.incomplete) == 9 * 6 and not found.skipped
    check_skipped(found, 0.0)


def test_unlabelled_windows(birds, opened):
    found = opened(birds, labels="none")
    assert found.classes == [] and sum(map(len, found.splits.values())) == 2 * 6 * 2


def test_missing_recordings_and_labels_are_explained(tmp_path, opened, birds):
    with pytest.raises(UserError, match="There is no recording below"):
        (tmp_path / "empty").mkdir()
        opened(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        opened(tmp_path / "absent")
    with pytest.raises(UserError, match=r"None of the 6 recordings .* has a label"):
        opened(birds / "riser")
    with pytest.raises(UserError, match="there are no annotations"):
        opened(birds, windows="annotations")
    config = birdsong_classifier.get_config()
    with pytest.raises(UserError, match=":songs"):
        load(config.data, 0, config.audio)


def generated(folder, config, shape=(16, 41)):
    for name in ("faller", "riser"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full(shape, 40 * number, np.uint8)).save(
                folder / name / f"{number:05d}.png"
            )
    (folder / "generated.json").write_text(config.to_json_best_effort())
    return folder


@pytest.fixture
def config(birds, tmp_path):
    config = common.get_config("audio")
    config.data.update({"source": str(birds), "dir": str(tmp_path / "dir")})
    config.audio.update(AUDIO)
    config.data.extra_train = str(tmp_path / "gen")
    return config


def test_extra_pictures_are_only_trained_on(config, tmp_path):
    generated(tmp_path / "gen", config)
    real = load(config.data, 0, config.audio)
    both = extra.add_pictures(real, config.data, config.audio)
    assert len(both.splits["train"]) == len(real.splits["train"]) + 6
    assert both.splits["test"] is real.splits["test"]
    assert both.splits["validation"] is real.splits["validation"]
    last = both.splits["train"][len(real.splits["train"]) + 5]
    assert last["label"] == 1 and last["inputs"].shape == both.shape
    np.testing.assert_array_equal(last["inputs"], 80)
    check_skipped(both, config.data.max_skipped)


def test_leaking_extra_pictures_are_noted(config, tmp_path):
    generated(tmp_path / "gen", config)
    description = json.loads((tmp_path / "gen" / "generated.json").read_text())
    (tmp_path / "gen" / "generated.json").write_text(
        json.dumps({**description, "run": str(tmp_path / "gan")})
    )
    dataset = load(config.data, 0, config.audio)
    (tmp_path / "gan").mkdir()
    for seed, fair in ((0, True), (1, False)):
        split = load(config.data, seed, config.audio).assignment
        with (tmp_path / "gan" / "splits.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "split"), *split])
        notes = " ".join(extra.add_pictures(dataset, config.data, config.audio).notes)
        assert ("recordings of test" in notes) != fair


def test_extra_pictures_need_classes(config):
    config.audio.labels = "none"
    with pytest.raises(UserError, match="pictures or recordings that have classes"):
        extra.add_pictures(load(config.data, 0, config.audio), config.data, config.audio)


def test_extra_pictures_of_other_settings_are_refused(config, tmp_path):
    dataset = load(config.data, 0, config.audio)
    with pytest.raises(UserError, match="is not a folder"):
        extra.add_pictures(dataset, config.data, config.audio)
    folder = generated(tmp_path / "gen", config)
    config.audio.bands = 20
    with pytest.raises(UserError, match="bands was 16 and is now 20"):
        extra.add_pictures(dataset, config.data, config.audio)
    config.audio.bands = 16
    (folder / "faller").rename(folder / "failer")
    with pytest.raises(UserError, match="has no class failer; did you mean 'faller'"):
        extra.add_pictures(dataset, config.data, config.audio)
    (folder / "generated.json").unlink()
    with pytest.raises(UserError, match=r"generated.json cannot be read: it is missing"):
        extra.add_pictures(dataset, config.data, config.audio)
