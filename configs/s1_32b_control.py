"""s1-32B for conditional control: the recipe of `s1_32b` on rows that ask for a number of tokens or steps, and on plain rows.

The paper trains a model of its own for each of the two methods (table 3). This run trains one model for both, and for budget forcing. Its
data holds each row of s1K-1.1 three times, so it has 3,000 examples and 940 steps.

Data: `python -m data_tools.curation.control_data simplescaling/s1K-1.1 --output runs/data/s1k_control.jsonl --tokenizer
Qwen/Qwen2.5-32B-Instruct`. The headers of steps made the examples of five traces of s1K 2 to 9% longer. If an example has more than 32,768
tokens, the run says so before it starts.

The paper's models need one method each: `--methods token_conditional` or `step_conditional` when the data is written, and here
`--data.source` and `--output`, such as runs/s1_32b_tokens or runs/s1_32b_steps. `simplescaling/s1K` is the paper's data.

Expected: no published figure for the mixture; `s1_32b_aime24_tokens` and `s1_32b_aime24_steps` have those of the paper's models.
Hardware and hours: this config has not been run yet.

    python launch/train.py s1_32b_control
"""

from dataclasses import replace

from configs.s1_32b import CONFIG as S1_32B

CONFIG = replace(S1_32B, output="runs/s1_32b_control", data=replace(S1_32B.data, source="runs/data/s1k_control.jsonl"))
