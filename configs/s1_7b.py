"""The recipe of `s1_32b` (paper section 4.1, appendix D) on Qwen2.5-7B-Instruct.

Expected: no published figure. Hardware and hours: this config has not been run yet.

    python launch/train.py s1_7b
"""

from dataclasses import replace

from configs.s1_32b import CONFIG as S1_32B
from s1jax.runtime.sharding import MeshConfig

CONFIG = replace(S1_32B, model="Qwen/Qwen2.5-7B-Instruct", output="runs/s1_7b", mesh=MeshConfig(sequence=4))
