"""`config.py`: published configs, and those that are refused."""

from __future__ import annotations

import copy
import json

import jax
import pytest
import transformers

from s1jax.model.config import SIZES, ModelConfig, config_of_size, unread_fields
from s1jax.model.qwen2 import abstract_params
from tests.support.models import RULES, YARN, one_device, published

pytestmark = pytest.mark.usefixtures("quick_compilation")


def in_transformers(hf: dict):
    return transformers.CONFIG_MAPPING[hf["model_type"]].from_dict(copy.deepcopy(hf))


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
    theirs, ours = (in_transformers(x) for x in (hf, written))
    for key in (
        "model_type",
        "architectures",
        "hidden_size",
        "head_dim",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
        "rms_norm_eps",
    ):
        assert getattr(ours, key, config.head_dim) == getattr(theirs, key, config.head_dim)
    for key, value in theirs.rope_parameters.items():
        assert ours.rope_parameters[key] == value, key
    assert ModelConfig.from_hf(theirs.to_dict()) == config


def test_published_configs_have_the_published_number_of_parameters():
    def count(size: str) -> int:
        params = abstract_params(ModelConfig.from_hf(published(size)), RULES, "stacked", one_device())
        return sum(x.size for x in jax.tree.leaves(params))

    assert {size: count(size) for size in SIZES} == {
        "Qwen2.5-0.5B": 494_032_768,
        "Qwen2.5-1.5B": 1_543_714_304,
        "Qwen2.5-3B": 3_085_938_688,
        "Qwen2.5-7B": 7_615_616_512,
        "Qwen2.5-14B": 14_770_033_664,
        "Qwen2.5-32B": 32_763_876_352,
        "Qwen2.5-72B": 72_706_203_648,
        "Qwen3-0.6B": 596_049_920,
        "Qwen3-1.7B": 1_720_574_976,
        "Qwen3-4B": 4_022_468_096,
        "Qwen3-8B": 8_190_735_360,
        "Qwen3-14B": 14_768_307_200,
        "Qwen3-32B": 32_762_123_264,
    }


@pytest.mark.parametrize("size", SIZES)
def test_the_config_of_a_size_is_that_of_its_config_json(size):
    assert config_of_size(size, "float32") == ModelConfig.from_hf(published(size), "float32")


@pytest.mark.parametrize("size", ["Qwen2.5-7B", "Qwen3-4B"])
def test_fields_that_are_left_out_have_transformers_defaults(size):
    hf = published(size, num_hidden_layers=3)
    for name in ("head_dim", "rope_theta", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"):
        hf.pop(name, None)
    theirs = in_transformers(hf)
    config = ModelConfig.from_hf(hf)
    assert ModelConfig.from_hf(theirs.to_dict()) == config
    assert getattr(theirs, "head_dim", 3584 // 28) == config.head_dim


def test_an_unsupported_config_is_refused_with_all_its_problems_at_once():
    hf = published(
        "Qwen2.5-7B",
        model_type="llama",
        hidden_act="gelu",
        use_sliding_window=True,
        max_window_layers=9,
        rope_scaling={"rope_type": "linear"},
    )
    del hf["vocab_size"], hf["num_attention_heads"]
    with pytest.raises(ValueError) as error:
        ModelConfig.from_hf(hf)
    for words in ('"llama"', '"gelu"', "use_sliding_window", '"linear"', "vocab_size", "num_attention_heads"):
        assert words in str(error.value)


FULL = "full_attention"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen3_moe"}, 'model_type is "qwen3_moe": it must be "qwen2" or "qwen3" .dense'),
        ({"model_type": ["qwen3"]}, "model_type is "),
        ({"model_type": None}, "model_type is null"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu": only "silu"'),
        ({"attention_bias": False}, "attention_bias is false: only true"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5: only 1"),
        ({"logit_scale": 0.0625}, "logit_scale"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: no such field"),
        ({"use_mup": True}, "use_mup"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"mup_scale": 2}, "mup_scale"),
        ({"qk_norm": True}, "qk_norm is true"),
        ({"num_experts": 60}, "num_experts"),
        ({"rope_local_base_freq": 1e4}, "rope_local_base_freq"),
        ({"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 28"),
        # A sliding window in some layer, as transformers finds it.
        ({"use_sliding_window": True, "max_window_layers": 27}, "max_window_layers is 27"),
        ({"use_sliding_window": True, "num_hidden_layers": 29, "max_window_layers": None}, "max_window_layers is 28"),
        ({"layer_types": [FULL] * 27 + ["sliding_attention"]}, "layer_types"),
        ({"layer_types": [FULL] * 27}, "layer_types"),
        ({"layer_types": FULL}, 'layer_types is "full_attention"'),
        # Rotations.
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, '"dynamic"'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": YARN}, '"linear"'),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "llama3"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ({"rope_parameters": {FULL: YARN}}, "fields that are not computed: full_attention"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": YARN, "rope_theta": 1}, "rope_theta is 1"),
        ({"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}, "mscale"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate"),
        ({"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_hf(published("Qwen2.5-7B", **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias is true: only false"),
        ({"head_dim": 127}, "head_dim is 127: it must be even"),
        ({"head_dim": 64.0}, "head_dim is 64.0"),
        ({"num_experts": 128, "model_type": "qwen3_moe"}, 'model_type is "qwen3_moe".*; num_experts is 128'),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 35}, "max_window_layers is 35"),
        ({"layer_types": [FULL] * 35 + ["sliding_attention"]}, "layer_types"),
    ],
)
def test_what_the_decoder_does_not_compute_of_qwen3_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_hf(published("Qwen3-8B", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "max_window_layers": 28},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": False, "max_window_layers": 0},
        {"use_sliding_window": True, "max_window_layers": 0, "layer_types": [FULL] * 28},
    ],
)
def test_a_sliding_window_that_no_layer_has_is_accepted(changes):
    hf = published("Qwen2.5-7B", **changes)
    assert set(in_transformers(hf).layer_types) == {FULL}
    assert ModelConfig.from_hf(hf) == ModelConfig.from_hf(published("Qwen2.5-7B"))


def test_a_field_that_says_what_the_decoder_computes_is_accepted():
    neutral = {"attention_bias": True, "logit_scale": 1.0, "clip_qkv": None, "use_mup": False, "num_experts": 0}
    assert ModelConfig.from_hf(published("Qwen2.5-7B", **neutral)) == ModelConfig.from_hf(published("Qwen2.5-7B"))


def test_fields_with_a_value_that_nobody_reads_are_named():
    hf = published("Qwen2.5-7B", attention_dropout=0.1, dual_chunk_attention_config={"chunk_size": 9}, some_flag=False)
    assert unread_fields(hf) == ["attention_dropout", "dual_chunk_attention_config"]
    for size in ("Qwen2.5-7B", "Qwen3-8B"):
        assert unread_fields(published(size)) == unread_fields(in_transformers(published(size)).to_dict()) == []
