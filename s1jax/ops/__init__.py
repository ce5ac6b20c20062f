"""Pure array functions.

In: arrays. Out: arrays. They know no parameters, configs or files.
This folder may import `runtime`.
"""
