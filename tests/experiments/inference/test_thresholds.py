"""Tables of thresholds as people and spreadsheets save them."""

import unicodedata

import numpy as np
import pytest

from experiments.core.errors import UserError
from experiments.inference.thresholds import make_thresholds


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "content",
    [
        "label,threshold\nwren,0.7\nGrünfink,\n",
        "label;threshold;note\r\nwren;0,7;a, b\r\nGrünfink;;\r\n",
        'label,threshold\nwren,"0,7"\nGrünfink, \n',
        "label\tbest_threshold\nwren\t0,7\nGrünfink\t0.5\n",
    ],
)
def test_tables_of_spreadsheets(tmp_path, content, form):
    path = tmp_path / "own.csv"
    path.write_bytes(unicodedata.normalize(form, content).encode("utf-8-sig"))
    found = make_thresholds(["wren", "Grünfink"], tmp_path, str(path))
    np.testing.assert_allclose(found, [0.7, 0.5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("label;threshold\n", "no table"),
        ("name,threshold\nwren,1\n", "no table"),
        ("label,threshold\nowl,1\n", "no threshold of wren"),
        ("label,threshold\nwren,0,7\n", "line 2 has more cells"),
        ("label;threshold\nwren;1,7\n", "'1,7' for wren"),
        ("label,threshold\nwren,nan\n", "'nan' for wren"),
        ('label,threshold\n"wren,1\n', "quotation mark"),
    ],
)
def test_unusable_tables(tmp_path, content, message):
    path = tmp_path / "own.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        make_thresholds(["wren"], tmp_path, str(path))
