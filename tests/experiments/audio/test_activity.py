import numpy as np
from finished_runs import read_table
from PIL import Image

from experiments.audio.activity import Activity, average_scores
from experiments.audio.detection_formats import Origin
from experiments.audio.times import parse_station
from experiments.inference.detection_tables import TableOptions, draw_groups


def test_stations_are_what_is_before_the_time_or_the_folder():
    names = {
        "a/S4A03895_20190522_060000.wav": "S4A03895",
        "a/b/20190522_060000.wav": "b",
        "20190522_060000.wav": "",
        "creek/S20190522T061501+1000_E20190522T063501+1000.wav": "creek",
        "wood/x.wav": "wood",
        "wood/x_20199922_060000.wav": "wood",
    }
    assert {name: parse_station(name) for name in names} == names


def test_scores_by_hour_and_station(tmp_path, rng):
    activity, scores = Activity(2), rng.random((4, 2))
    places = [
        ("s1/A_20200101_235930.wav", 0.0), ("s1/A_20200101_235930.wav", 40.0),
        ("s2/B_20200101_053000.wav", 0.0), ("s2/B_20200101_053000.wav", 30.0),
    ]  # fmt: skip
    for (name, start), row in zip(places, scores, strict=True):
        activity.add(name, start, row)
    means, counts = average_scores(activity.hours, range(24), 2)
    np.testing.assert_allclose(means[[23, 0, 5]], [scores[0], scores[1], scores[2:].mean(axis=0)])
    assert counts.sum() == 4 and np.isnan(means[1]).all()

    origin = Origin("run", "dyn", 2.0, 1.0, (0.0, 1.0))
    options = TableOptions(["wren", "rain"], np.array([0.5, np.inf]), True, False, 1, origin)
    drawn = draw_groups(tmp_path, activity, options)
    assert [path.name for path in drawn] == ["hours.png", "stations.png"]
    for path in drawn:
        Image.open(path).verify()
    rows = read_table(tmp_path / "stations.csv")
    assert list(rows[0]) == ["station", "windows", "wren"] and [r["station"] for r in rows] == [
        "A",
        "B",
    ]
    np.testing.assert_allclose(float(rows[1]["wren"]), scores[2:, 0].mean(), atol=1e-6)
    assert read_table(tmp_path / "hours.csv")[1] == {"hour": "1", "windows": "0", "wren": None}
    assert draw_groups(tmp_path / "none", Activity(2), options) == []
