"""Supervised fine-tuning.

In: a training config (`config.py`). Out: a run directory with checkpoints, metrics and a Hugging Face export. Start reading at `run.py`.
This folder may import `data`, `model`, `checkpoint`, `ops` and `runtime`.
"""
