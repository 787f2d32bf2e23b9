"""Files for a trained network: the names they get, and how few are read ahead."""

from pathlib import Path

import numpy as np
from finished_runs import config_with

from experiments.data import pictures
from experiments.data.reading import THREADS, File
from experiments.inference.files import expand_paths, read_items
from experiments.inference.trained import Trained


def test_files_of_the_same_name_get_unique_names(tmp_path):
    for place in ("x/in", "y/in"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").touch()
    words = ["x/in", "y/in", "x/in/1.png", "y/in/1.png"]
    files = expand_paths([str(tmp_path / word) for word in words])
    assert [file.name for file in files] == ["in/1.png", "in-2/1.png", "1.png", "1-2.png"]
    assert [file.name for file in expand_paths([str(tmp_path / "x")])] == ["in/1.png"]


def test_excluded_files_and_other_types_are_left_out(tmp_path):
    for name in ("a.wav", "b.WAV", "c.txt", "out/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = expand_paths([str(tmp_path)], [tmp_path / "out"], [".wav"])
    assert [file.name for file in files] == ["a.wav", "b.WAV"]


def test_an_endless_list_of_files_is_read_a_few_ahead(monkeypatch):
    trained = Trained(config_with("folder,smoke", image_size=8), "abc", (8, 8, 3), {})
    trained.task.predict = lambda model, variables, inputs: inputs.mean((1, 2))
    opened, predicted = [], []

    def decode(path, channels):
        opened.append(path)
        return np.full((8, 8, channels), len(opened) % 256, np.uint8)

    monkeypatch.setattr(pictures, "decode_picture", decode)
    endless = (File(Path(f"{n}.png"), "") for n in iter(int, 1))
    items = ((item, item.example) for item in read_items(trained, endless))
    for _ in trained.predict(items, batch_size=4):
        predicted.append(None)
        assert len(opened) - len(predicted) <= 4 + THREADS + 1
        if len(predicted) == 200:
            break
    assert len(trained._programs) == 1
