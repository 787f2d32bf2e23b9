"""A command: words and flags in, one line and an exit code out."""

from collections.abc import Sequence

import pytest

from experiments.core import cli
from experiments.core.errors import UserError

USAGE = """Counts something.

    python -m count RUN FILES... [--top=5]
"""


@pytest.fixture
def calls():
    return []


@pytest.fixture
def run(calls, capsys):
    """Runs a command with the words of a command line: (exit code, output, errors)."""

    def main(
        run: str,
        *files: str,
        top: int = 5,
        share: float | None = None,
        out: str = "here",
        quick: bool = False,
        override: Sequence[str] = (),
    ) -> None:
        calls.append((run, files, top, share, out, quick, list(override)))

    def call(*words, main=main, **options):
        code = cli.run(main, ["count.py", *words], USAGE, **options)
        return code, *capsys.readouterr()

    return call


def test_words_and_flags_reach_the_command_in_any_order(run, calls):
    assert (
        run("--top=3", "run", "--quick", "a.png", "--override=x=1", "b.png", "--override=y=2,3")[0]
        == 0
    )
    assert run("run", "--share=0.5", "--out", "there", "--noquick")[0] == 0
    assert calls == [
        ("run", ("a.png", "b.png"), 3, None, "here", True, ["x=1", "y=2,3"]),
        ("run", (), 5, 0.5, "there", False, []),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "RUN is missing: python -m count RUN FILES... [--top=5]"),
        (["run", "--tob=3"], "'--top'"),
        (["run", "--qqqqqq"], "--help lists the flags"),
        (["run", "--top=many"], "--top=many is not a whole number, such as 5."),
        (["run", "--share=much"], "--share=much is not a number, such as 0.5."),
        (["run", "--quick=perhaps"], "quick=perhaps"),
        (["run", "--flagfile=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_answered_in_one_line(run, words, says):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err and err.startswith("error: ") and err.count("\n") == 1


def test_settings_are_flags_with_an_equals_sign_or_a_space():
    assert cli.list_override_texts(["main"]) == {}
    words = "main --config base --config.conv.name odconv --config.epochs=-3 --config.lr -1 --noconfig.wandb"
    assert cli.list_override_texts([*words.split(), "--config.static", "--config.note=a=b"]) == {
        "conv.name": "odconv", "epochs": "-3", "lr": "-1", "wandb": "", "static": "", "note": "a=b",
    }  # fmt: skip


def test_a_command_without_words_takes_none(run, calls):
    def main(*, top: int = 1) -> None:
        calls.append(top)

    assert "'stray' is not a flag" in run("stray", main=main)[2] and not calls


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_prints_the_usage(run, word):
    code, out, err = run(word, "--whatever")
    assert (code, err) == (0, "") and out.startswith("Counts something.")


def test_exit_codes(run, calls):
    def fail(error):
        def main() -> None:
            raise error

        return main

    stop = KeyboardInterrupt("stopped after step 3")
    stop.exit_code = 143
    assert run(main=fail(UserError("no\nway"))) == (2, "", "error: no way\n")
    assert run(main=fail(KeyboardInterrupt()), stopped="later")[::2] == (130, "\nlater\n")
    assert run(main=fail(stop))[::2] == (143, "\nstopped after step 3\n")
    assert run(main=fail(OSError("full")), failure="No page")[2] == "error: No page: full.\n"
    with pytest.raises(OSError, match="full"):
        run(main=fail(OSError("full")))
    with pytest.raises(KeyError):  # ours, which keeps its traceback
        run(main=fail(KeyError("ours")))
    code, _, err = run("--debug", main=fail(UserError("no")))
    assert code == 2 and "Traceback" in err and err.endswith("error: no\n")


def test_very_long_words_are_cut_in_a_message():
    assert len(cli.join_lines("x" * 5000)) < 200
