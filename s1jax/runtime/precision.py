"""Number formats, by the names that configs and rows use."""

from typing import Literal

DType = Literal["bfloat16", "float32"]
"""Dtype of weights, cache and compute."""
Int8 = Literal["weights", "cache"]
"""Arrays that decoding can store in 8 bits."""
