"""Problems and conditions -> sample rows.

In: a model's name, a benchmark and a grid of conditions. Out: a JSON line for each answer.
This folder may import every lower folder except `train`.
"""
