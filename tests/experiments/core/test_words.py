import re
from pathlib import Path

from experiments.core import words

EXPERIMENTS = Path(words.__file__).parents[1]


def test_nouns_and_verbs_agree_with_their_number():
    assert [words.count_noun(number, "file") for number in (0, 1, 1200)] == [
        "0 files", "1 file", "1,200 files",
    ]  # fmt: skip
    assert words.count_noun(2, "class", "classes") == "2 classes"
    assert [words.agree(number, "is", "are") for number in (0, 1, 2)] == ["are", "is", "are"]


def test_no_message_leaves_the_number_open():
    for path in EXPERIMENTS.rglob("*.py"):
        open_number = re.search(r"\} [\w ]*[a-z]\((s|es)\)", path.read_text(encoding="utf-8"))
        assert not open_number, f"{path}: {open_number[0]}: use count_noun"
