"""Sample rows -> numbers, tables, figures and a report.

In: JSON lines that `evaluate` wrote. Out: metrics, tables, PNG and HTML files.
It knows no model. It may import `grading`, `data.condition` and `runtime`.
"""
