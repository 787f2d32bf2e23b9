from experiments import report
from experiments.core import cli


def test_report(tmp_path, write_run, capsys):
    write_run()
    out = tmp_path / "out"
    words = ["report", str(tmp_path / "runs"), f"--out={out}"]
    assert cli.run(report.main, words, report.__doc__) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.md")
    assert (out / "report.md").exists()
