"""`tiny_texts.py`: the texts that the tiny base is trained on."""

import re

from data_tools.quickstart.tiny_texts import make_text
from tests.support.quickstart import compute


def test_no_pretraining_text_shows_the_format_that_fine_tuning_teaches():
    text = "".join(piece for i in range(2000) for piece, _ in make_text(0, i))
    assert not re.search(r"Wait|<\|im_start\|>(think|answer)", text)
    assert not re.search(r"^\w+ [A-H]: [^\n]*=\d+\n\w+ [A-H]: ", text, re.MULTILINE)


def test_pretraining_texts_state_only_right_sums_unless_they_say_so():
    wrong = 0
    for i in range(2000):
        text = "".join(piece for piece, _ in make_text(0, i))
        for match in re.finditer(r"(\d+)([-+*/])(\d+)=(\d+)( is wrong)?", text):
            if compute(*match.group(1, 2, 3)) != int(match[4]):
                wrong += 1
                assert match[5] or f", not {match[4]}" in text[match.end() :]
            else:
                assert not match[5]
    assert wrong > 100
