import ast
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # As in "1 file(s)"; "Begin Time (s)" is a column of Raven's.
                assert not re.search(r"[a-z]\((s|es)\)(?!\w)", node.value), f"{path}: {node.value}"
