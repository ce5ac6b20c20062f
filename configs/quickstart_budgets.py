"""The quickstart's sequential scaling curve: growing thinking budgets on held-out problems, as the paper's figure 1.

python launch/sweep.py quickstart_budgets --decoding.model out/model/hf
"""

from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.runtime.sharding import MeshConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(
        model="out/model/hf",
        benchmark="out/data/heldout.jsonl",
        output="out/rows.jsonl",
        max_answer_tokens=8,
        num_rows=128,
        dtype="float32",
        mesh=MeshConfig(data=-1, fsdp=1),
    ),
    max_thinking_tokens=(8, 16, 32, 64, 96, 128, 192),
)
