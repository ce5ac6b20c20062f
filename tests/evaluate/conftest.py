import json
import pickle
from pathlib import Path

import pytest

from s1jax.data.condition import TraceSettings
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.runtime.files import ROOT


@pytest.fixture
def config(tiny_model, tmp_path):
    """A sweep of a tiny model over three sums."""
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return SweepConfig(
        decoding=DecodingConfig(
            model=tiny_model, benchmark=str(tmp_path / "sums.jsonl"), output=str(tmp_path / "rows.jsonl"),
            num_rows=8,
        ),
        condition=TraceSettings(max_answer_tokens=8, dtype="float32"),
        max_thinking_tokens=(0, 5, 20),
        num_ignore=(0, 2),
    )  # fmt: skip


@pytest.fixture
def command_of(tmp_path):
    """The arguments of python that run `launch/sweep.py` with a config."""

    def command_of(config):
        file = Path(config.decoding.output).with_suffix(".py")
        file.write_text(f"import pickle\n\nCONFIG = pickle.loads({pickle.dumps(config)!r})\n")
        return ROOT / "launch" / "sweep.py", file

    return command_of
