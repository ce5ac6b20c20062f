"""Supervised fine-tuning.

In: a training config. Out: a run directory with checkpoints, metrics and a Hugging Face export.
This folder may import `data`, `model`, `checkpoint`, `ops` and `runtime`.
"""
