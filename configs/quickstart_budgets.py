"""The quickstart's sequential scaling curve: growing thinking budgets on held-out problems (as in the paper's figure 1).

python launch/sweep.py quickstart_budgets
"""

from s1jax.data.condition import TraceSettings
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.runtime.sharding import MeshConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(
        model="out/model/hf",
        benchmark="out/data/heldout.jsonl",
        output="out/rows.jsonl",
        num_rows=128,
        mesh=MeshConfig(data=-1, fsdp=1),
    ),
    condition=TraceSettings(max_answer_tokens=8, dtype="float32"),
    max_thinking_tokens=(8, 16, 32, 64, 96, 128, 192),
)
