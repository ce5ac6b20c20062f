"""The model, Qwen2.5 or dense Qwen3: its shape, its forward pass, its parameters and its key/value cache.

In: a config and parameters. Out: hidden states and logits.
This folder may import `ops` and `runtime`.
"""
