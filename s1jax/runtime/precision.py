"""Names of number formats that configs and rows use."""

from typing import Literal

DType = Literal["bfloat16", "float32"]
"""Dtype of weights, cache and compute."""
Int8 = Literal["weights", "cache"]
"""What decoding can store in 8 bits."""
