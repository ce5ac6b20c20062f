"""The recipe of `s1_32b` (paper section 4.1, appendix D) on Qwen2.5-14B-Instruct.

Expected: no published figure. Hardware and hours: this config has not been run yet.

    python launch/train.py s1_14b
"""

from dataclasses import replace

from configs.s1_32b import CONFIG as S1_32B

CONFIG = replace(S1_32B, model="Qwen/Qwen2.5-14B-Instruct", output="runs/s1_14b")
