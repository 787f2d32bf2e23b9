"""Pages of help: the first lines of docstrings, in columns."""

from experiments.core.help_pages import format_entries, read_summary


def test_the_first_line_of_a_docstring_is_read_without_running_the_file(tmp_path):
    (tmp_path / "a.py").write_text('"""Counts things.\n\nSlowly.\n"""\nraise SystemExit\n')
    (tmp_path / "b.py").write_text("x = 1\n")
    assert read_summary(tmp_path / "a.py") == "Counts things."
    assert read_summary(tmp_path / "b.py") == ""


def test_long_texts_continue_in_their_column(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    page = format_entries({"a": "word " * 12, "longer": "word"})
    lines = page.split("\n")
    assert len(lines) == 3 and all(len(line) <= 40 for line in lines)
    assert lines[1].startswith(" " * 10 + "word") and lines[-1] == "  longer  word"
    assert format_entries({}) == ""
