"""The suite `retrieval`: searches of this library beside others, and beside what the machine allows.

`python -m benchmarks.retrieval` measures every case and writes report/bench-retrieval.json and report/retrieval.md
after each; `… --only GROUP` measures one group anew and leaves the rest of the report as it is; `… --only disk`, which
no other call runs, writes a file of 10 GB; `… store` keeps the report in the repository.

Cases on the same rows share two processes, in which their ways take turns: one with one thread, whose CPU time decides,
and one with two, whose wall clock stands beside it. Each way searches for other queries at every turn. Beside its time
stands what memory and arithmetic need at least, and which share of the nearest rows it found.
"""
