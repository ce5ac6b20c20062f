"""`examples.py`: rows become tokens and loss masks."""

from dataclasses import replace

import numpy as np
import pytest

from s1jax.data.chat import ChatFormat
from s1jax.data.examples import DataConfig, encode_rows
from s1jax.model.config import ModelConfig
from tests.support.tokenizers import byte_tokenizer, qwq_tokenizer
from tests.support.training import ROW, make_examples

# Reading


# Tokenising


def test_encoded_rows_are_the_examples_in_order():
    chat = ChatFormat.of(byte_tokenizer())
    rows = [{**ROW, "id": str(i), "thinking": "t" * (i + 1)} for i in range(3)]
    examples, rejects = encode_rows(rows, chat, DataConfig("rows"))
    assert len(examples) == 3 and not rejects and examples.num_truncated == 0 and examples.row_ids == ("0", "1", "2")
    for i, row in enumerate(rows):
        ids, mask = chat.encode_example(row["question"], row["thinking"], row["answer"])
        assert examples[i][0].tolist() == ids and examples[i][1].tolist() == mask
        assert examples.lengths[i] == len(ids)


def test_too_long_examples_are_one_error_that_names_them():
    rows = [{**ROW, "id": f"row-{i}", "thinking": "t" * (i * 10 + 1)} for i in range(14)]
    chat = ChatFormat.of(byte_tokenizer())
    lengths = encode_rows(rows, chat, DataConfig("rows"))[0].lengths
    with pytest.raises(ValueError) as error:
        encode_rows(rows, chat, DataConfig("rows", max_length=int(lengths[1])))
    message = str(error.value)
    assert message.startswith(
        f"12 of 14 examples are longer than max_length {lengths[1]}, the longest has {lengths[-1]} tokens"
    )
    assert "\n  row-2 (row 2)\n  row-3 (row 3)\n" in message and message.endswith("row-9 (row 9)\n  and 4 more")
    assert f"Raise max_length to {lengths[-1]}" in message


def test_truncation_is_counted_and_leaves_no_example_without_loss():
    chat = ChatFormat.of(byte_tokenizer())
    rows = [ROW, {**ROW, "thinking": "t" * 50}, {**ROW, "question": "q" * 200}]
    length = len(chat.encode_example("q", "t", "a")[0])
    config = DataConfig("rows", max_length=length, too_long="truncate")
    examples, rejects = encode_rows(rows, chat, config)
    assert examples.lengths.tolist() == [length, length] and examples.num_truncated == 1
    assert [(reject["row"], reject["question"]) for reject in rejects] == [(2, "q" * 200)]
    assert "no token to train on is left" in rejects[0]["reason"]

    answers = DataConfig("rows", max_length=length, too_long="truncate", loss_on="answer")
    examples, rejects = encode_rows(rows, chat, answers)
    assert len(examples) == 1 and examples.num_truncated == 0 and [reject["row"] for reject in rejects] == [1, 2]
    with pytest.raises(
        ValueError, match=r"no example is left of the 1 rows of rows: cut to max_length .* raise max_length"
    ):
        encode_rows(rows[2:], chat, answers)
    with pytest.raises(ValueError, match="no example is left of the 0 rows"):
        encode_rows([], chat, answers)


def test_config_refuses_values_it_does_not_know():
    for change, message in (
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"rows_per_micro_batch": 0}, "rows_per_micro_batch is 0: it must be at least 1"),
        ({"row_length": 1}, "row_length is 1: it must be at least 2"),
        ({"num_row_lengths": 6}, "num_row_lengths is 6: it must be at most 5"),
        ({"thinking_format": "none"}, "thinking_format none is for decoding only: training rows have traces"),
        ({"thinking_format": "steps"}, "thinking_format is steps: only rows that are labelled step_conditional"),
        ({"thinking_format": "step"}, "thinking_format is 'step': it must be auto, s1, think"),
        ({"too_long": "cut"}, "too_long is 'cut': it must be one of error, truncate"),
        ({"loss_on": "trace"}, "loss_on is 'trace': it must be one of reasoning_and_answer, answer"),
        ({"loss_average": "mean"}, "loss_average is 'mean': it must be one of sequence, token"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig("rows", **change)


def test_rows_with_labels_are_written_as_their_methods_ask_and_change_the_fingerprint():
    chat = ChatFormat.of(byte_tokenizer())
    row = {**ROW, "thinking": "Add.\n\nCheck.\n\nDone."}
    labels = [("token_conditional", "32"), ("step_conditional", "4")]
    rows = [row, *({**row, "method": method, "requested": requested} for method, requested in labels)]
    examples, rejects = encode_rows(rows, chat, DataConfig("rows"))
    assert not rejects
    asked = (
        "user\nq<|im_end|>",
        "user\nq\n\nThink for up to 32 tokens.<|im_end|>",
        "user\nq\n\nThink for up to 4 steps.<|im_end|>",
    )
    plain = "<|im_start|>think\nAdd.\n\nCheck.\n\nDone.\n<|im_start|>answer\nAnswer: a<|im_end|>\n"
    steps = "<|im_start|>4 steps left\nAdd.\n<|im_start|>3 steps left\nCheck.\n<|im_start|>2 steps left\nDone.\n"
    replies = plain, plain, steps + "<|im_start|>answer\nAnswer: a<|im_end|>\n"
    for i in range(3):
        ids, mask = examples[i]
        assert chat.decode(ids[mask]) == replies[i] and chat.decode(ids[~mask]).count(asked[i]) == 1
    relabelled = [*rows[:2], {**rows[2], "requested": "8"}]
    assert encode_rows(relabelled, chat, DataConfig("rows"))[0].fingerprint != examples.fingerprint


def test_steps_that_do_not_fit_the_tokenizer_are_an_error_only_if_a_row_has_them():
    chat = ChatFormat.of(qwq_tokenizer())
    labelled = {**ROW, "method": "token_conditional", "requested": "8"}
    assert len(encode_rows([ROW, labelled], chat, DataConfig("rows"))[0]) == 2
    in_steps = {**ROW, "method": "step_conditional", "requested": "1"}
    with pytest.raises(ValueError, match="the thinking format steps does not fit the tokenizer"):
        encode_rows([ROW, in_steps], chat, DataConfig("rows"))


# Fit


def test_examples_a_model_cannot_take_are_refused():
    examples = make_examples([3, 9, 5])

    def model(**changes):
        return ModelConfig.from_hf(
            dict(model_type="qwen2", vocab_size=2006, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=1, max_position_embeddings=9) | changes
        )  # fmt: skip

    examples.check_fit(model())
    with pytest.raises(ValueError, match=r"example 1 has 9 tokens, but the model's context is 8: .* max_length to 8"):
        examples.check_fit(model(max_position_embeddings=8))
    yarn = {"rope_type": "yarn", "factor": 2.25, "original_max_position_embeddings": 4}
    assert model(max_position_embeddings=8, rope_scaling=yarn).context_length == 9
    examples.check_fit(model(max_position_embeddings=8, rope_scaling=yarn))


@pytest.mark.parametrize("changed", ["tokens", "loss_mask", "offsets", "pad"])
def test_the_fingerprint_of_examples_changes_with_all_that_is_trained_on(changed):
    examples = make_examples([3, 5])
    assert examples.fingerprint == make_examples([3, 5]).fingerprint
    value = np.copy(getattr(examples, changed))
    value.flat[1 if value.ndim else 0] ^= True
    assert replace(examples, **{changed: value}).fingerprint != examples.fingerprint
