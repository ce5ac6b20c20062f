"""`encoder.py`: what becomes a markup token, and what does not."""

import pytest
from tokenizers import AddedToken

from s1jax.data.encoder import Encoder
from tests.support.tokenizers import SPECIALS, TAGS, byte_tokenizer


@pytest.fixture(scope="module")
def encoder():
    return Encoder.of(byte_tokenizer(ordinary=(*TAGS, "<think>>", "[INST]", "  ", " Week A:", "...")))


@pytest.mark.parametrize("token", [*SPECIALS, *TAGS, "<think>>", "[INST]"])
def test_markup_is_a_token_in_a_template_and_text_in_a_text(encoder, token):
    i = encoder.added_tokens[token]
    assert encoder.encode_segments([("a" + token, True), ("b", False)])[1] == i
    for text in (token, f"a{token}b", token + token, f"<{token}>", token[:-1] + token):
        ids = encoder.encode_text(text)
        assert i not in ids and encoder.decode(ids) == text
        assert encoder.encode_segments([(text, False)]) == ids


def test_a_tokenizer_that_reads_a_template_otherwise_in_pieces_is_refused():
    swallowing = AddedToken("<|im_end|>", rstrip=True, special=True)  # the whitespace behind it belongs to it
    encoder = Encoder.of(byte_tokenizer(("<|im_start|>", swallowing)))
    encoder.check_pieces("<|im_start|>user a")
    with pytest.raises(ValueError, match="reads a prompt as other tokens if it is cut at its special tokens"):
        encoder.check_pieces("a<|im_end|>\n")


def test_words_that_were_added_stay_tokens_in_a_text(encoder):
    ids = encoder.encode_text("in Week A: 1...")
    assert {encoder.added_tokens[word] for word in (" Week A:", "...")} <= set(ids)


def test_a_markup_token_that_a_text_and_a_template_spell_together_is_text(encoder):
    ids = encoder.encode_segments([("<thi", False), ("nk>", True)])
    assert encoder.decode(ids) == "<think>" and not set(ids) & set(encoder.added_tokens.values())


def test_text_of_a_template_and_of_others_is_one_piece_between_two_tokens(qwen_tokenizer):
    encoder = Encoder.of(qwen_tokenizer)
    ids = encoder.encode_segments([("<|im_start|>user\n", True), ("\nhi", False), ("<|im_end|>", True)])
    assert ids == qwen_tokenizer("<|im_start|>user\n\nhi<|im_end|>", add_special_tokens=False)["input_ids"]
    assert encoder.encode_text("\n\n") != encoder.encode_text("\n") * 2, "two line breaks merge"


@pytest.mark.parametrize(("text", "kind"), [("a\ud800", "a lone surrogate"), ("a\udcff", "a byte that is not UTF-8")])
def test_text_that_is_not_unicode_has_no_ids(encoder, text, kind):
    with pytest.raises(ValueError, match=rf"is not valid Unicode: character 2 is {kind}"):
        encoder.encode_text(text)
