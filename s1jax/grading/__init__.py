"""Text and gold answer -> extracted answer and verdict.

This folder may import `data.chat` and `runtime`.
"""
