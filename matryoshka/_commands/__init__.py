"""The commands, a module each: `add` describes it to the parser, and its `run` does the work.

`run` raises what is wrong with the input; `matryoshka.cli` prints it as one line. `_options` is what commands share,
`_measure` and `_picture` belong to `benchmark`.
"""
