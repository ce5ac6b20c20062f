"""Models and training runs on disk.

In: the name of a model (a directory or a hub id). Out: its config, parameters and tokenizer. Also writes all of these.
This folder may import `model`, `ops` and `runtime`.
"""
