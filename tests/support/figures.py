"""Per-token figures of a trace, as token records hold them."""

import numpy as np

FIGURES = np.dtype(
    [("token", "<i4"), ("logprob", "<f2"), ("confidence", "<f2"), ("end_logprob", "<f2"), ("forced", "u1")]
)


def figures(confidences, forced=None, logprobs=None) -> np.ndarray:
    """Records with these confidences (the field holds them negated, as it does in a file)."""
    records = np.zeros(len(confidences), FIGURES)
    records["confidence"] = -np.asarray(confidences, np.float64)
    records["forced"] = np.zeros(len(records)) if forced is None else forced
    records["logprob"] = np.full(len(records), -1.0) if logprobs is None else logprobs
    return records
