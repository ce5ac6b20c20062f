"""`conditions.py`: the configs of an evaluation."""

from dataclasses import replace

import pytest

from s1jax.data.condition import Condition, TraceSettings
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig, Trace


def test_a_backend_that_serves_no_caches_is_refused_before_the_model_is_read():
    with pytest.raises(ValueError, match="attention is 'splash': it must be one of xla, pallas or None"):
        DecodingConfig("nonesuch", "sums.jsonl", "rows.jsonl", attention="splash")


def test_the_conditions_of_a_trace_differ_only_in_their_limits():
    with pytest.raises(ValueError, match="differ only in their limits, and in being forced"):
        Trace((Condition(5), Condition(5, top_p=0.9, temperature=1.0)))


@pytest.mark.parametrize(
    ("num_samples", "temperature", "message"),
    [
        (0, 1.0, "num_samples is 0; it must be from 1"),
        (3, 0.0, "num_samples 3 at temperature 0 would be copies of one answer"),
    ],
)
def test_a_bad_number_of_samples_is_refused(config, num_samples, temperature, message):
    settings = dict(temperature=temperature)
    for make in (
        lambda: EvaluateConfig(config.decoding, Condition(0, **settings), num_samples),
        lambda: replace(config, condition=TraceSettings(**settings), num_samples=num_samples),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_rows=0), "num_rows is 0; it must be at least 1"),
        (dict(num_rows=-4), "num_rows is -4"),
        (dict(limit=0), "limit is 0"),
        (dict(seed=-1), "seed is -1; it must be from 0 to 2147483647"),
        (dict(output=""), "output is empty"),
    ],
)
def test_a_bad_decoding_config_is_refused_by_name(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config.decoding, **changes)
