"""The page of the study, made from stored records: `python -m benchmarks.study page --help`.

In order of use: `records` reads and stores them; `series` calculates with numbers for each seed; `section`, `draw` and
`verdicts` are what sections are made of; each section has a module (`widths`, `cascades`, `retrieval`, `robust`,
`modes`, `ablations`, `instead`) with its claims; `claims` sets these beside the paper; `document` puts all together.
"""
