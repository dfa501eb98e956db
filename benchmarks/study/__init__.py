"""The paper's experiments in small: train nested networks, then classify, stop early and search with their prefixes.

`python -m benchmarks.study` runs it on scikit-learn's digits and writes report/report.md. The modules, in order of use:
`data` and `networks`; `accuracy`, `cascades` and `retrieval` measure one thing each; `experiment` repeats them over
seeds and gathers one record; `tables`, `figures` and `report` show it.
"""
