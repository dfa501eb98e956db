"""The study in three minutes: train nested networks, then classify, stop early and search with their prefixes.

`python -m benchmarks.demo` runs it on scikit-learn's digits and writes report/report.md. The modules, in order of use:
`accuracy`, `cascades` and `retrieval` measure one thing each; `experiment` repeats them over seeds and gathers one
record; `tables`, `figures` and `report` show it. Data and networks are those of the study (benchmarks/study).
"""
