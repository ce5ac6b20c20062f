"""`config.py`: published configs, and those that are refused."""

from __future__ import annotations

import json

import jax
import pytest
import transformers

from s1jax.model.config import SIZES, ModelConfig
from s1jax.model.qwen2 import abstract_params
from tests.support.models import RULES, YARN, one_device, published

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
def test_published_configs_survive_the_round_trip(size, scaling):
    hf = published(size) | ({"rope_scaling": scaling} if scaling else {})
    config = ModelConfig.from_hf(hf)
    written = config.to_hf()
    assert ModelConfig.from_hf(json.loads(json.dumps(written))) == config
    for key in hf.keys() & written.keys() - {"rope_scaling"}:
        assert written[key] == hf[key], key
    assert (config.yarn is None) == (scaling is None)
    # Hugging Face reads what we write as it reads the original, and we read what it writes (`rope_parameters`).
    theirs, ours = (transformers.Qwen2Config.from_dict(x) for x in (hf, written))
    for key in (
        "hidden_size",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
        "rms_norm_eps",
    ):
        assert getattr(ours, key) == getattr(theirs, key)
    for key, value in theirs.rope_parameters.items():
        assert ours.rope_parameters[key] == value, key
    assert ModelConfig.from_hf(theirs.to_dict()) == config


def test_published_configs_have_the_published_number_of_parameters():
    def count(size: str) -> int:
        params = abstract_params(ModelConfig.from_hf(published(size)), RULES, "stacked", one_device())
        return sum(x.size for x in jax.tree.leaves(params))

    assert {size: count(size) for size in SIZES} == {
        "0.5B": 494_032_768,
        "1.5B": 1_543_714_304,
        "3B": 3_085_938_688,
        "7B": 7_615_616_512,
        "14B": 14_770_033_664,
        "32B": 32_763_876_352,
        "72B": 72_706_203_648,
    }


def test_an_unsupported_config_is_refused_with_all_its_problems_at_once():
    hf = published(
        "7B", model_type="llama", hidden_act="gelu", use_sliding_window=True, rope_scaling={"rope_type": "linear"}
    )
    del hf["vocab_size"], hf["num_attention_heads"]
    with pytest.raises(ValueError) as error:
        ModelConfig.from_hf(hf)
    for words in ("'llama'", "'gelu'", "use_sliding_window", "'linear'", "vocab_size", "num_attention_heads"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen3"}, "qwen3"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True}, "sliding_window"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "llama3"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"num_key_value_heads": 3}, "3"),  # does not divide 28 heads
        # Hugging Face computes something else with these; to leave them unread would be silently wrong.
        ({"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}, "mscale"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_hf(published("7B", **changes))
