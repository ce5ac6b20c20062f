"""`tiny_base.py`: the committed base model of the quickstart."""

import pytest

from data_tools.quickstart.arithmetic import (
    make_heldout,
)
from tests.support.quickstart import BASE


def test_the_committed_base_has_the_shape_its_config_says():
    from data_tools.quickstart.tiny_base import MODEL
    from s1jax.checkpoint.source import resolve_source

    assert resolve_source(BASE).model_config("float32") == MODEL
    assert (BASE / "model.safetensors").stat().st_size < 6_000_000


@pytest.mark.integration
def test_transformers_computes_the_committed_base_the_same(base):
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.decoding import make_request

    engine, chat = base
    prompt = chat.encode_chat(make_heldout(1, 0)[0].question)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=8)[0, len(prompt) :].tolist()
    ours = list(engine.decode([make_request(tuple(prompt), max_answer_tokens=8, thinks=False)])[0].tokens)
    assert theirs[: len(ours)] == ours


def test_the_base_tokenizer_has_short_delimiters_single_digits_and_room_in_the_vocabulary(base):
    engine, chat = base
    assert len(chat.delimiters.think) == len(chat.delimiters.answer) == 2 and len(chat.encode_text("Wait")) == 1
    assert len(chat.encode_text("12345")) == 5
    assert len(chat.token_texts) < engine.model.config.vocab_size
