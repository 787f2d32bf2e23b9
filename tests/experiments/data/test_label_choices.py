"""Parts of names that could be labels."""

import pytest

from experiments.audio.annotations import extract_label
from experiments.core.errors import UserError
from experiments.data import label_choices, sound_labels


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["great tit 1.wav", "great tit 12.wav", "owl 1.wav", "owl 2.wav"], {"great tit", "owl"}),
        (["XC1_wren_a.mp3", "XC2_wren_b.mp3", "XC3_owl_c.mp3", "XC4_owl_d.mp3"], {"wren", "owl"}),
        (["s1/wren/1.wav", "s1/owl/2.wav", "s2/wren/3.wav", "s2/owl/4.wav"], {"wren", "owl"}),
        (["2020-wren.wav", "2021-wren.wav", "2022-owl.wav", "2023-owl.wav"], {"wren", "owl"}),
    ],
)
def test_the_label_is_among_the_choices(names, classes):
    choices = label_choices.list_choices(names)
    assert classes in [set(choice.counts) for choice in choices] and len(choices) <= 6
    for choice in choices:
        labels = [extract_label(name, choice.pattern) for name in names]
        assert sum(choice.counts[label] for label in set(labels)) == len(names)


def test_names_without_a_common_part_give_no_choice():
    for names in ([], ["a.wav"], [f"{number}.wav" for number in range(20)], ["x.wav"] * 2):
        assert label_choices.list_choices(names) == []


def test_choices_are_shown_for_a_pattern_that_is_none(tmp_path, capsys):
    from experiments.configs import common

    audio = common.get_config("audio").audio
    audio.label_pattern = "?"
    names = [f"{label} {number}.wav" for label in ("wren", "owl") for number in range(30)]
    with pytest.raises(UserError, match="listed above"):
        sound_labels.read_labels(tmp_path, names, audio)
    output = capsys.readouterr().out
    assert "\\n" not in output and "2 classes: wren (30), owl (30)" in output
    assert "--config.audio.label_pattern='" in output
