"""The paper's experiments in small, on real data: every claim beside what was seen.

`nox -s study -- --data digits` runs the grid of a data set; docs/study.md shows the stored runs. In order of use:
`data` reads rows; `selections` and `corruptions` change them; `grid` reads which systems are measured by which tasks
(grids/*.toml); `cells` runs what is not yet there, one JSON file a cell; `networks` and `systems` train, `outputs` is
what they give; `tasks` measure one thing each; `page` makes the document.
"""
