"""Run the study, or make its page: `python -m benchmarks.study --help`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.study import data, grid
from benchmarks.study.cells import Bench, CellError, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are not yet there."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        chosen = grid.read(options.grid or Path(options.data).name)
        cells = chosen.cells(options.task)
        data.load(options.data)
        with tqdm(unit=" cells", disable=None) as progress:
            run(Bench(options.data, chosen, options.output), cells, progress)
    except (OSError, ValueError, CellError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; finished cells are kept, run it again to go on\n")
    print(f"{len(cells)} records lie in {options.output / chosen.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        epilog=data.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="digits", help="what to study, see below (default: %(default)s)")
    parser.add_argument("--grid", help="a name from grids/ or a .toml file (default: the name of the data)")
    parser.add_argument("--task", action="append", help="run this task only; may be given again")
    parser.add_argument("--output", type=Path, default=Path("report/study"), help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that compute: there is one for each core
    main()
