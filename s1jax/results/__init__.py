"""Sample rows -> numbers, tables and figures.

In: JSON lines that `evaluate` wrote. Out: metrics, tables, PNG files.
It knows no model. It may import `grading`, `data.condition` and `runtime`.
"""
