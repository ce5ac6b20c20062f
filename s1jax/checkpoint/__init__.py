"""Models and training runs on disk.

In: a directory or a hub id. Out: a config, parameters, a tokenizer; and back.
This folder may import `model`, `ops` and `runtime`.
"""
