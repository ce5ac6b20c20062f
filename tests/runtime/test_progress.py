"""`progress.py`: lines that say how far a command is."""

import re

import pytest

from s1jax.runtime.progress import _speed, progress


def test_progress_says_nothing_of_a_speed_before_anything_is_done(capsys):
    with progress(840, "decode", "row", initial=4) as bar:
        assert capsys.readouterr().err == "decode: 4 of 840\n"
        bar.update(836)
    assert re.fullmatch(r"decode: 840 of 840, [\d,.e+]+ row/s, 00:00 left\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("rate", "unit", "scaled", "text"),
    [
        (1.859, "row", False, "1.86 row/s"),
        (0.05, "row", False, "20 s/row"),
        (0.0, "row", False, "0 row/s"),
        (12345.6, "row", False, "12,346 row/s"),
        (2.5e9, "B", True, "2.5 GB/s"),
    ],
)
def test_a_speed_has_a_space_before_its_unit(rate, unit, scaled, text):
    assert _speed(dict(rate=rate, unit=unit, unit_scale=scaled)) == text
