"""Grading: a model's text and a gold answer -> the extracted answer and a verdict.

May import `data.chat` and `runtime`.
"""
