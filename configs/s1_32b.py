"""s1-32B: Qwen2.5-32B-Instruct fine-tuned on 1,000 examples for 5 epochs, 315 steps (paper section 4.1, appendix D).

Expected (the paper's, AIME24 / MATH500 / GPQA Diamond): with s1K, the first release's data, 50.0 / 92.6 / 56.6 without budget
forcing and 56.7 / 93.0 / 59.6 with it (table 1); with s1K-1.1, the default here, 56.7 / 95.4 / 63.6 with it.
Hardware and hours: 16 H100 for 26 minutes in the paper (7 H100-hours); here not yet run. Computed from slices of it on one H100,
it would take 12.4 minutes if communication took no time.
`--data.source simplescaling/s1K` is the first release, a path is a local file. With s1K-1.1 the paper's authors cut examples at
20,000 tokens, for want of memory; here none is cut.

A row holds several examples and is split over 8 GPUs. With one example per GPU, all GPUs would wait for the longest example. Compiled
ahead of time for 16 H100, a step needs 43 GiB of each (`docs/performance.md`). On one host of 8, add `--param-dtype bfloat16`. With the
loss in chunks of 256 positions it also fits a v6e 4x8. `--mesh.sequence` times `--mesh.tensor` must divide the 40 heads.

    python launch/train.py s1_32b
"""

from s1jax.data.examples import DataConfig
from s1jax.runtime.sharding import MeshConfig
from s1jax.train.config import TrainConfig
from s1jax.train.step import StepConfig

CONFIG = TrainConfig(
    model="Qwen/Qwen2.5-32B-Instruct",
    output="runs/s1_32b",
    data=DataConfig(source="simplescaling/s1K-1.1", max_length=32768),
    mesh=MeshConfig(sequence=8),
    step=StepConfig(loss_chunk=256),
)
