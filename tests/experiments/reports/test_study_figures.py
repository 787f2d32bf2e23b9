import numpy as np
import pytest

from experiments.reports import study_figures
from experiments.reports.attention import LayerAttention


@pytest.fixture
def comparison(compare, write_run):
    """Twelve configs with three seeds each, of about the same accuracy and cost."""
    names = ["base", *(f"with a long name {n}" for n in range(11))]
    return compare(
        *(
            write_run(
                name, 0.9 + number / 500 + seed / 200, seed, macs=10_000_000 + 300_000 * number
            )
            for number, name in enumerate(names)
            for seed in range(3)
        )
    )


def test_twelve_configs_fit_on_a_page(size_of, tmp_path, comparison):
    figures = {
        study_figures.draw_accuracy_against_macs: (8.6, 4.6),
        study_figures.draw_curves: (8.6, 6.0),
        study_figures.draw_runs: (11.0, 6.4),
    }
    for draw, size in figures.items():
        path = tmp_path / draw.__name__ / "figure.png"
        assert draw(comparison, path)
        np.testing.assert_allclose(size_of(path), size, atol=0.02)
        assert len(list(path.parent.iterdir())) == 1  # no temporary file is left


def test_attention_of_some_configs(size_of, tmp_path, comparison):
    layers = [LayerAttention(f"stage{n}", 4, n / 10, 0.1, n / 20, 0.0, None) for n in range(1, 5)]
    attention = {results.config: layers for results in comparison.results[1:]}
    path = tmp_path / "figure.png"
    # No layer has an agreement: two panels.
    assert study_figures.draw_attention_by_depth(comparison, attention, path)
    np.testing.assert_allclose(size_of(path), (8.6, 5.3), atol=0.02)
    assert not study_figures.draw_attention_by_depth(comparison, {}, path)


def test_nothing_to_draw(compare, tmp_path, write_run):
    folder = write_run(without=["macs"])
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"damaged\n{"step": 2}\n')
    comparison = compare(folder)
    for draw in (
        study_figures.draw_accuracy_against_macs, study_figures.draw_curves, study_figures.draw_runs,
    ):  # fmt: skip
        assert not draw(comparison, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_mean_curve_of_the_runs_that_still_run(compare, write_run):
    logs = [
        '{"step": 10, "split": "validation", "accuracy": 0.5}\n',
        '{"step": 10, "split": "validation", "accuracy": 0.7}\n',
        '{"step": 10, "split": "validation", "accuracy": null}\n'
        '{"step": 20, "split": "validation", "accuracy": 0.9}\n'
        '{"step": 20, "split": "train", "accuracy": 0.1}\n',
    ]
    folders = [write_run(seed=seed) for seed in range(3)]
    for folder, text in zip(folders, logs, strict=True):
        (folder / "metrics.jsonl").write_text(text)
    steps, mean, sd = study_figures._mean_curve(compare(*folders).results[0], "accuracy")
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(mean, [0.6, 0.9])
    np.testing.assert_allclose(sd, [np.std([0.5, 0.7], ddof=1), 0])
