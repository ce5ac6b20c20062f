"""`progress.py`: lines that say how far a command is."""

import re

from s1jax.runtime.progress import progress


def test_progress_says_nothing_of_a_speed_before_anything_is_done(capsys):
    with progress(840, "decode", "row", initial=4) as bar:
        assert capsys.readouterr().err == "decode: 4 of 840, ?row/s, ? left\n"
        bar.update(836)
    assert re.fullmatch(r"decode: 840 of 840, +[\d,.e+]+row/s, 00:00 left\n", capsys.readouterr().err)
