"""The suite `losses`: what a loss of every prefix costs beside one full-width loss and beside a loop over prefixes.

`python -m benchmarks.losses` measures every case in every framework, each in processes of its own, and writes
report/bench-losses.json and report/losses.md; `… --only "InfoNCE 32…768, 1,024: jax"` prints the tables of what its
name contains. `… gpu` measures the same cases on a CUDA device; `… store` keeps the runs in the repository.

Each case is measured in three ways: forward and backward of

- `full`: the framework's own loss at full width, as its users write it, without any prefix;
- `ours`: the fused loss of this library;
- `loop`: the framework's own loss, called once per prefix, as the official layer and MatryoshkaLoss do.

The ways take turns, so that whatever slows the machine slows all of them; a ratio is the median of the ratios of the
rounds. One process, limited to one thread, measures its CPU time; another, with two threads, the wall clock.
"""
