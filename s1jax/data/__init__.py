"""Text <-> token ids <-> batches.

In: training rows and a tokenizer. Out: packed batches with loss masks.
This folder may import the model's config and `runtime`.
"""
