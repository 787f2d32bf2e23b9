"""Writes measured numbers into the documents, from the results in `experiments/results`.

    python -m experiments.benchmarks.documents

A table in a document is measured if a comment stands before it, with a file of `experiments/results` and what
each of the table's columns shows of it:

    <!-- digits_study.csv: config | 100*accuracy_mean ± 100*accuracy_sd | parameters | - -->

A cell of the column `config`, or of the first column of the CSV, begins with the name of a row there. `-` is
not measured. The numbers of a cell keep their decimals, and k, M or G after them. Sentences with measured
numbers are listed in `SENTENCES`. A test holds that there is nothing to write.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.core import cli
from experiments.core.console import print_line
from experiments.core.files import read_csv_records, write_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
MARK = re.compile(r"<!-- (\S+\.csv): (.*?) -->\n\n?")
NUMBER = re.compile(r"(?<![\w.,])[+−-]?\d[\d,]*(?:\.\d+)?(?: ([kMG])(?!\w))?")
SCALES = {"k": 1e3, "M": 1e6, "G": 1e9}

Record = Mapping[str, str]

# Document, results, name of the row, and the sentence, with columns in braces: {seconds:.0f}.
SENTENCES = (
    (
        "README.md", "digits_runs.csv", "odconv",
        "test accuracy {accuracy:.4f} after {seconds:.0f} s on two CPU cores, {compile_seconds:.0f} s of it "
        "compiling",
    ),
    (
        "README.md", "network_sizes.csv", "ODConv(num_kernels=1)",
        "with `num_kernels=1` it has {parameters:,.0f} parameters",
    ),
    *(
        (
            f"experiments/configs/{name}.py", "digits_runs.csv", name,
            "the command above, test accuracy {accuracy:.4f} (359 pictures)",
        )
        for name in (
            "cbam", "condconv", "dcd", "dyconv", "fdconv", "kernel_warehouse", "rotated", "spectral_norm",
        )
    ),
    (
        "experiments/configs/base.py", "digits_runs.csv", "base",
        "test accuracy (359 pictures) {accuracy:.4f} after {seconds:.0f} s, {compile_seconds:.0f} s of it",
    ),
    *(
        (
            f"experiments/configs/{name}.py", "digits_runs.csv", name,
            "test accuracy (359 pictures) {accuracy:.4f} after {seconds:.0f} s;",
        )
        for name in ("global_soft", "hard", "local_soft")
    ),
    (
        "experiments/configs/odconv.py", "digits_runs.csv", "odconv",
        "test accuracy {accuracy:.4f} (359 pictures) after {seconds:.0f} s, {compile_seconds:.0f} s of it",
    ),
    *(
        (
            f"experiments/configs/{name}.py", "digits_study.csv", name,
            "{accuracy_mean:.3f} +- {accuracy_sd:.3f} over three seeds",
        )
        for name in ("base", "global_soft", "hard", "local_soft", "odconv")
    ),
    *(
        (
            f"experiments/configs/{name}.py", file, name,
            "accuracy {accuracy_mean:.3f} +- {accuracy_sd:.3f}",
        )
        for file, names in (
            ("adiac_folds.csv", ("net1", "net1_longer", "net1_dynamic")),
            ("adiac_folds_others.csv", ("net2", "net2_dynamic")),
        )
        for name in names
    ),
    (
        "experiments/configs/net1_dynamic.py", "adiac_folds.csv", "net1_longer",
        "static network that has trained as long {accuracy_mean:.3f}.",
    ),
    (
        "experiments/configs/net2_dynamic.py", "adiac_folds_others.csv", "net2",
        "the static network {accuracy_mean:.3f}.",
    ),
    (
        "experiments/configs/odconv.py", "single_runs.csv", "odconv.py:adiac",
        "test accuracy {top1:.4f} (391 series) after {seconds:.0f} s",
    ),
    (
        "experiments/configs/odconv.py", "single_runs.csv", "odconv.py:tiny_imagenet",
        "top-1 {top1:.4f}, top-5 {top5:.4f} (chance: 0.005, 0.025) after {seconds:.0f} s",
    ),
    (
        "docs/studies.md", "adiac_attention.csv", "net1_dynamic",
        "an entropy of {entropy:.3f}, where 1 is equal weights, and weights differ between series by "
        "{spread:.3f}",
    ),
    (
        "docs/studies.md", "digits_factors.csv", "base",
        "The static network, trained alike, has a test accuracy of {accuracy_mean:.3f} over two seeds",
    ),
    (
        "docs/studies.md", "digits_factors.csv",
        "odconv,attention_norm=layer,start=30,information=0,attention_rate=1",
        "ODConv with its defaults {accuracy_mean:.3f}",
    ),
    ("docs/studies.md", "gates.csv", "low", "reads digits 0 to 4 with accuracy {accuracy:.3f}"),
    ("docs/studies.md", "gates.csv", "high", "reads 5 to 9 with {accuracy:.3f}"),
    (
        "docs/bioacoustics.md", "birds_species.csv", "windows of clips",
        "is {seed0:.3f}, {seed1:.3f} and {seed2:.3f} for three seeds",
    ),
    (
        "docs/bioacoustics.md", "birds_species.csv", "recordings",
        "measure) {seed0:.3f}, {seed1:.3f} and {seed2:.3f}",
    ),
    (
        "docs/bioacoustics.md", "birds_species.csv", "windows of recordings",
        "over windows {seed0:.3f}, {seed1:.3f} and {seed2:.3f}",
    ),
    (
        "docs/bioacoustics.md", "birds_gan.csv", "generated",
        "The Inception Score is {inception_mean:.2f} ± {inception_sd:.2f} of",
    ),
    (
        "experiments/configs/odconv.py", "adiac_folds_others.csv", "odconv",
        "over ten folds {accuracy_mean:.3f} +- {accuracy_sd:.3f}",
    ),
)  # fmt: skip


def main() -> None:
    """Writes the documents whose numbers are out of date, and prints their names."""
    for path in list_documents():
        text = path.read_text(encoding="utf-8")
        updated = update_document(path, text)
        if updated != text:
            write_text(path, updated)
            print_line(str(path.relative_to(ROOT)))


def list_documents() -> list[Path]:
    """Lists the files that may have measured numbers."""
    named = {ROOT / document for document, *_ in SENTENCES}
    return sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *named})


def update_document(path: Path, text: str) -> str:
    """Returns the text of a document with the measured numbers of today.

    Raises:
        ValueError: if a table or a sentence does not fit its results.
    """
    old = text
    for mark in MARK.finditer(old):
        end = re.compile(r"\n(?!\|)|\Z").search(old, mark.end()).start()
        table = old[mark.end() : end]
        try:
            written = update_table(table, read_records(mark[1]), mark[2])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path.name}, the table of {mark[1]}: {error}") from error
        # Numbers may become longer, so the text after the table moves.
        text = text.replace(mark[0] + table, mark[0] + written)
    for document, file, name, sentence in SENTENCES:
        if ROOT / document == path:
            text = update_sentence(text, find_record(read_records(file), name), sentence)
    return text


def read_records(file: str) -> dict[str, Record]:
    """Reads a file of results: its rows by their first cells."""
    records = read_csv_records(RESULTS / file)
    return {record[name_key(record)]: record for record in records}


def name_key(record: Record) -> str:
    """Returns the column that names the rows of a file: `config`, as in reports, or the first one."""
    return "config" if "config" in record else next(iter(record))


def find_record(records: Mapping[str, Record], text: str) -> Record:
    """Returns the row with the longest name that a text begins with; a KeyError says that there is none."""
    text = text.replace("`", "").strip()
    names = [name for name in records if text.startswith(name)]
    if not names:
        raise KeyError(f"there is no row for '{text}'")
    return records[max(names, key=len)]


def update_table(table: str, records: Mapping[str, Record], columns: str) -> str:
    """Returns a table in Markdown with the numbers of its results in the columns that show them."""
    names = [column.strip() for column in columns.split("|")]
    key = name_key(next(iter(records.values())))
    rows = []
    for row in table.split("\n"):
        cells = row.strip("|").split("|")
        if len(rows) < 2:  # the headings and the rule below
            rows.append(row)
            continue
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells but {len(names)} columns: {row}")
        record: Record = {}
        for place, name in enumerate(names):
            if name == key:
                record = find_record(records, cells[place]) if cells[place].strip() else {}
            elif name != "-" and record:
                cells[place] = update_cell(
                    cells[place], [record_value(record, n) for n in name.split("±")]
                )
        rows.append(f"|{'|'.join(cells)}|")
    return "\n".join(rows)


def record_value(record: Record, name: str) -> float | None:
    """Returns a number of a row, such as `accuracy` or `100*accuracy`; None if its cell is empty."""
    factor, _, column = name.strip().rpartition("*")
    return float(record[column]) * float(factor or 1) if record[column] else None


def update_cell(cell: str, values: Sequence[float | None]) -> str:
    """Returns a cell with other numbers, which are written as those that they replace."""
    known = iter([value for value in values if value is not None])

    def write(match: re.Match[str]) -> str:
        value = next(known, None)
        return match[0] if value is None else format_like(match, value)

    return NUMBER.sub(write, cell)


def format_like(match: re.Match[str], value: float) -> str:
    """Formats a number with the decimals, the separators and the unit of the number that it replaces."""
    number, unit = match[0].partition(" ")[0], match[1]
    decimals = len(number.partition(".")[2])
    return f"{value / SCALES.get(unit, 1.0):,.{decimals}f}{f' {unit}' if unit else ''}"


def update_sentence(text: str, record: Record, sentence: str) -> str:
    """Returns a text in which a sentence, over any lines, has the numbers of its results."""
    parts = re.split(r"\{(\w+):(,?\.\d)f\}", sentence)
    literals = [r"\s+".join(map(re.escape, part.split(" "))) for part in parts[::3]]
    found = re.search(r"([\d.,]*\d)".join(literals), text)
    if not found:
        raise ValueError(f"there is no sentence '{sentence}'")
    places = zip(range(1, len(parts) // 3 + 1), parts[1::3], parts[2::3], strict=True)
    for group, column, decimals in reversed(list(places)):
        start, end = found.span(group)
        text = f"{text[:start]}{float(record[column]):{decimals}f}{text[end:]}"
    return text


if __name__ == "__main__":
    cli.run_command(main, __doc__)
