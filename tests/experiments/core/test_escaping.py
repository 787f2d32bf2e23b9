"""Names that others have chosen, in every kind of output."""

import ast
from pathlib import Path

import pytest

from experiments.audio import tables
from experiments.core import cli, files
from experiments.core.console import Progress, print_facts, print_line
from experiments.core.errors import UserError
from experiments.core.escaping import escape_cell, escape_control, escape_html, escape_markdown

EXPERIMENTS = Path(cli.__file__).parents[1]
FORMULAS = ["=cmd|'/c calc'!A1", "+1", "@SUM(A1)", "-1+1", "\tx", "\rx", "'=x", "''@x", "＝1+1"]
PLAIN = ["wren", "", "'tis", "a=b", "-0.25", "-1e-05", "Ω 鳥"]
HOSTILE = "a\x1b[2J\n\u202egpj\x9b\u2028\ud800b"


def test_tables_hold_no_formula_and_are_read_back_as_they_were(tmp_path):
    rows = [[name, -0.5, None] for name in FORMULAS + PLAIN]
    files.write_csv(tmp_path / "a.csv", ["=name", "n", "x"], rows)
    with files.append_csv(tmp_path / "b.csv", ["=name", "n", "x"]) as append:
        append(rows)
    for path in (tmp_path / "a.csv", tmp_path / "b.csv"):
        assert files.read_csv(path) == [["=name", "n", "x"], *([n, "-0.5", ""] for n, *_ in rows)]
        records = files.read_csv_records(path)
        assert [record["=name"] for record in records] == FORMULAS + PLAIN
    assert all(str(escape_cell(name))[:1] == "'" for name in FORMULAS)
    assert [escape_cell(value) for value in (*PLAIN, -1, -0.5, None)] == [*PLAIN, -1, -0.5, None]


def test_labels_of_our_own_tables_are_annotations(tmp_path):
    rows = [["a.wav", 0, 1, name] for name in ("=wren", "+owl", "'=x", "tit")]
    files.write_csv(tmp_path / "predictions.csv", ["file", "start_s", "end_s", "label"], rows)
    lines = tables.read_table(tmp_path / "predictions.csv").lines
    assert [cells["label"] for _, cells in lines] == ["=wren", "+owl", "'=x", "tit"]


def test_control_characters_never_reach_the_terminal(capsys):
    shown = r"a\x1b[2J\n\u202egpj\x9b\u2028\ud800b"
    assert escape_control(HOSTILE) == shown

    def main(*names: str) -> None:
        raise UserError(f"There is no {HOSTILE}.")

    assert cli.run(main, ["x"], "") == 2
    assert cli.run(main, ["x", "--debug"], "") == 2
    print_line(HOSTILE)
    print_facts(HOSTILE, [(HOSTILE, HOSTILE)])
    with Progress(10) as progress:
        progress.say(HOSTILE)
        progress.row(1, {HOSTILE: HOSTILE})
    out, err = capsys.readouterr()
    assert out.count(shown) == 7 and err.count("gpj") >= 3
    assert all(character == "\n" or character.isprintable() for character in out + err)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<b>&amp;</b>", "&lt;b>&amp;amp;&lt;/b>"),
        ("[a](http://b) `c` *d* | $e$ _f_ g_h", r"\[a\](http://b) \`c\` \*d\* \| \$e\$ \_f\_ g_h"),
        ("# no heading", r"\# no heading"),
        ("p < 0.001 & a ± b, odconv-digits", "p < 0.001 & a ± b, odconv-digits"),
    ],
)
def test_names_are_no_markdown(name, shown):
    assert escape_markdown(name) == shown


def test_names_are_no_html():
    assert escape_html("<img src='x'>\n") == r"&lt;img src=&#x27;x&#x27;&gt;\n"


def list_calls(path):
    """Yields the name of each function that a file calls, such as `csv.writer`, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(name)):
                yield name, node.lineno
            case ast.Call(func=ast.Attribute(ast.Name(module), name)):
                yield f"{module}.{name}", node.lineno


def test_everything_is_printed_and_tabled_by_the_functions_that_escape():
    homes = {
        "print": "console.py",
        "csv.writer": "files.py",
        "csv.DictWriter": "files.py",
        "html.escape": "escaping.py",
        "traceback.print_exc": "",
    }
    for path in EXPERIMENTS.rglob("*.py"):
        if path.parent.name != "benchmarks":  # They print numbers alone.
            for name, line in list_calls(path):
                assert homes.get(name, path.name) == path.name, f"{path}:{line}: {name}"
