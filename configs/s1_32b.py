"""s1-32B: Qwen2.5-32B-Instruct fine-tuned on 1,000 examples (paper section 4.1, appendix D).

Expected (AIME24 / MATH500 / GPQA Diamond): with the first release's data 50.0 / 92.6 / 56.6 without budget forcing (paper, table 1); with
s1K-1.1 56.7 / 95.4 / 63.6 with it. Hardware and time in the paper: 16 H100, 26 minutes. Here: not yet run.
Data: s1K-1.1; `--data.source simplescaling/s1K` is the first release, a path is a local file.

    python launch/train.py s1_32b
"""

from s1jax.data import DataConfig
from s1jax.train import TrainConfig

CONFIG = TrainConfig(
    model="Qwen/Qwen2.5-32B-Instruct",
    output="runs/s1_32b",
    data=DataConfig(source="simplescaling/s1K-1.1", max_length=32768),
)
