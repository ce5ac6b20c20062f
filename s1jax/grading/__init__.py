"""Grading: a model's text and a gold answer -> the extracted answer and a verdict.

`math_verify` and `worker` run only in processes of their own. May import `data.chat` and `runtime`.
"""
