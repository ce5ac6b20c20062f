"""`lengths.py`: the number of tokens of each trace."""

import json
import string

import pytest

from data_tools.curation.lengths import LengthsConfig, TokenCounter, stage
from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.encoder import Encoder
from tests.support.curation import pool_of, verdicts_of
from tests.support.quickstart import BASE


@pytest.fixture(scope="module")
def encoder(qwen_tokenizer):
    return Encoder.of(qwen_tokenizer)


def test_the_counts_are_those_of_encoding_whole_texts(encoder, shared, rng):
    rows = [json.loads(line) for line in (shared / "data" / "s1k_rows_with_traces.jsonl").read_text().splitlines()]
    texts = [row["gemini_thinking_trajectory"] for row in rows]
    characters = [*string.printable, *" \n\n  '", "'s", "'LL", "\r\n", "the ", "12 ", "<|im_start|>", "</think>"]
    texts += ["".join(rng.choice(characters, 60)) for _ in range(2000)]
    texts += ["", " ", "π ≤ 3.2 — naïve", "e\u0301"]
    counter = TokenCounter(encoder)
    for _ in range(2):  # the second time from memory
        assert [counter.count(text) for text in texts] == [len(encoder.encode_text(text)) for text in texts]


def test_a_tokenizer_that_cuts_texts_in_another_way_counts_too():
    encoder = Encoder.of(load_tokenizer(resolve_source(BASE)))
    counter = TokenCounter(encoder)
    texts = ["One two three.", " a  b\n\nc", "12,345", "A bus has 20 passengers."]
    assert [counter.count(text) for text in texts] == [len(encoder.encode_text(text)) for text in texts]


def test_the_stage_counts_the_trace_and_rejects_the_too_long(tmp_path):
    rows = pool_of(tmp_path, [{"thinking": text} for text in (" a b ", "", "a b c d e f g h i j " * 9, "a")])
    free, verdicts = verdicts_of(stage(LengthsConfig(str(BASE))), rows, tmp_path)
    lengths = [row["num_thinking_tokens"] for row in verdicts]
    assert lengths[1] == 0 and lengths[2] > lengths[0] > lengths[3] > 0
    assert free.summary["num_kept"] == 4
    _, verdicts = verdicts_of(stage(LengthsConfig(str(BASE), max_tokens=lengths[0])), rows, tmp_path)
    assert [row["reason"] for row in verdicts] == [None, None, f"the trace is longer than {lengths[0]} tokens", None]
    assert verdicts[2]["detail"] == f"{lengths[2]} tokens"


def test_the_stage_needs_a_tokenizer():
    with pytest.raises(ValueError, match=r"needs --lengths\.tokenizer: the model that will be trained"):
        stage(LengthsConfig())
