"""The numbers in the documents are those of the results."""

import pytest

from experiments.benchmarks import documents


@pytest.mark.parametrize("path", documents.list_documents(), ids=lambda path: path.name)
def test_numbers_are_those_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    # `python -m experiments.benchmarks.documents` writes them.
    assert documents.update_document(path, text) == text


def test_every_file_of_results_is_shown_and_described():
    texts = [path.read_text(encoding="utf-8") for path in documents.list_documents()]
    shown = {mark[1] for text in texts for mark in documents.MARK.finditer(text)}
    shown |= {file for _, file, *_ in documents.SENTENCES}
    assert shown == {path.name for path in documents.RESULTS.glob("*.csv")}
    described = (documents.RESULTS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in described for name in shown)


def test_numbers_keep_their_form():
    records = {
        "base": {
            "config": "base",
            "mean": "0.98765",
            "sd": "0.012",
            "macs": "2340000",
            "n": "1234",
        },
        "base_w33": {"config": "base_w33", "mean": "0.5", "sd": "", "macs": "1e9", "n": ""},
    }
    table = (
        "| config | accuracy, % | MACs | n |\n|---|---:|---:|---:|\n"
        "| `base` (20 epochs) | 98.89 ± 0.48 | 2.17 M | 1,000 |\n"
        "| `base_w33` | 98.79 | 9.2 G | |"
    )
    assert documents.update_table(table, records, "config | 100*mean ± 100*sd | macs | n") == (
        "| config | accuracy, % | MACs | n |\n|---|---:|---:|---:|\n"
        "| `base` (20 epochs) | 98.77 ± 1.20 | 2.34 M | 1,234 |\n"
        "| `base_w33` | 50.00 | 1.0 G | |"
    )
    with pytest.raises(KeyError, match="no row for 'odconv'"):
        documents.update_table(table.replace("base_w33", "odconv"), records, "config | - | - | -")


def test_a_table_may_grow_before_another(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    (tmp_path / "one.csv").write_text("row,n\na,123456\n", encoding="utf-8")
    text = "<!-- one.csv: row | n -->\n| row | n |\n|---|---|\n| a | {} |\n\nText.\n\n"
    old, new = text.format("1") * 2, text.format("123,456") * 2
    assert documents.update_document(tmp_path / "guide.md", old) == new


def test_sentences_are_found_over_lines():
    record = {"accuracy": "0.97772", "parameters": "11943944"}
    sentence = "accuracy {accuracy:.4f} with {parameters:,.0f} parameters"
    text = "Its accuracy\n0.9833 with 1,000 parameters."
    updated = documents.update_sentence(text, record, sentence)
    assert updated == "Its accuracy\n0.9777 with 11,943,944 parameters."
    with pytest.raises(ValueError, match="no sentence"):
        documents.update_sentence("another", record, sentence)


def test_the_first_paragraph_of_the_readme():
    steps = documents.read_records("train_step_224.csv")
    ratios = [float(record["times_flax"]) for name, record in steps.items() if name != "flax"]
    usual = [ratio for ratio in ratios if ratio < 1.55]
    assert len(usual) > len(ratios) / 2
    torch = documents.read_records("against_torch.csv")
    times = [float(r[at]) for n, r in torch.items() if "ODConv" in n for at in ("at_64", "at_224")]
    readme = (documents.ROOT / "README.md").read_text(encoding="utf-8")
    assert f"takes {min(usual):.2f} to {max(usual):.2f} times as" in readme
    assert f"takes {min(times):.1f} to {max(times):.0f} times as" in readme
