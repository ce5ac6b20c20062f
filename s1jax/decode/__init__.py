"""Budget-forced decoding.

In: a model and requests. Out: completions.
This folder may import `data`, `model`, `checkpoint`, `ops` and `runtime`. It never imports `train`.
"""
