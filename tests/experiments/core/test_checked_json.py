"""JSON that other programs or people have written: a value of the described form, or one sentence."""

import os

import pytest

from experiments.core import text
from experiments.core.checked_json import (
    Flag,
    ListOf,
    MapOf,
    Metric,
    Nullable,
    Number,
    Numbers,
    Record,
    Text,
    find_fault,
    parse_json,
    read_json,
)
from experiments.core.errors import UserError
from experiments.core.files import read_small_file
from experiments.data import ucr

FORM = Record({"name": Text(), "steps": Number(0, 99, whole=True)}, needed=("name",))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b'{"name": "a"', "no JSON"),
        (b"null", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"{}", "it has no name"),
        (b'{"name": 5}', "name is 5 instead of a text"),
        (b'{"name": null}', "name is null instead of a text"),
        (b'{"name": "a", "steps": "4"}', 'steps is "4" instead of a whole number'),
        (b'{"name": "a", "steps": 1.5}', "0 or more and 99 or less"),
        (b'{"name": "a", "steps": true}', "steps is true"),
        (b'{"name": "a", "steps": -1}', "steps is -1"),
        (b'{"name": "a", "steps": NaN}', "steps is NaN"),
        (b'{"name": "a", "steps": 1e999}', "steps is Infinity"),
        (b'{"name": "a", "steps": ' + b"9" * 5000 + b"}", "too large"),
        (b'{"name": "a", "name": "b"}', "'name' is there twice"),
        (b'{"name": "\xff"}', "byte 10 is not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'{"' + b"x" * 2000 + b'": 1}', "name of more than 1,000"),
        (b"[" * 100_000, "brackets in brackets"),
        (b'{"name": "a", "other": ' + b"[" * 20 + b"]" * 20 + b"}", "brackets in brackets"),
    ],
)
def test_rubbish_is_one_sentence(tmp_path, content, says):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read_json(file, FORM, "Do that.")
    message = str(caught.value)
    assert message.startswith(f"{file} cannot be read: ") and message.endswith("Do that.")
    assert len(message) < 250 + len(str(file))


def test_forms():
    value = {"name": "a", "steps": 3, "younger": [{}]}
    assert parse_json('{"name": "a", "steps": 3, "younger": [{}]}', FORM) == value
    nested = Record(
        {"classes": ListOf(Text(), 1, 2), "best": Nullable(MapOf(Number())), "on": Flag()},
        others=Numbers(),
    )
    assert (
        find_fault({"classes": ["a"], "best": None, "on": True, "more": [1, {"a": 2}]}, nested)
        == ""
    )
    assert "classes has 0 entries instead of 1 to 2" in find_fault({"classes": []}, nested)
    assert find_fault({"classes": ["a", 1]}, nested) == "classes[1] is 1 instead of a text"
    assert find_fault({"best": {"x": []}}, nested).startswith(
        "best.x is a list instead of a finite"
    )
    assert find_fault({"more": [1, "a"]}, nested) == "more is a list instead of a number"
    assert find_fault({"x": 1}, Record({}, others=None)) == "x does not exist"
    assert find_fault(float("nan"), Metric()) == "" and find_fault("x", Metric()) != ""


def test_only_a_regular_file_of_a_sensible_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 30)
    for name, says in {
        "pipe": "not a regular file",
        "folder": "it is a folder",
        "loop": "symbolic links",
        "device": "not a regular file",
        "large": "1,073,741,824 bytes",
        "x" * 400: "too long",
        "a\0b": "null",
    }.items():
        with pytest.raises(UserError, match=says):
            read_small_file(tmp_path / name)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("dangling", "nothing", "large/below"):
        with pytest.raises(FileNotFoundError):
            read_small_file(tmp_path / name)


def test_tables_that_are_pipes_do_not_wait(tmp_path):
    pipe = tmp_path / "a.txt"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        text.read_text(pipe)
    with pytest.raises(UserError, match="not a regular file"):
        ucr.read_series(pipe)
