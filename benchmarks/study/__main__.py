"""Run the study, or make its page: `python -m benchmarks.study --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.study import data, grid
from benchmarks.study.cells import Bench, CellError, run

OUTPUT, RESULTS = Path("report/study"), Path("benchmarks/results/study")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are not yet there, or make the page of those that are."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["page"]:
        _make_page(given[1:])
        return
    parser = _parser()
    options = parser.parse_args(given)
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


def _make_page(arguments: Sequence[str]) -> None:
    """Make docs/study.md from stored records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study page", description=_make_page.__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where records are kept (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="(default: %(default)s)")
    parser.add_argument(
        "--store",
        type=Path,
        nargs="?",
        const=OUTPUT,
        metavar="RUN",
        help="first copy the records of a run there (default, if the option is given: %(const)s)",
    )
    options = parser.parse_args(arguments)
    from benchmarks.study.page import document, records

    try:
        if options.store is not None:
            print(f"{records.store(options.store, options.results)} records copied to {options.results}")
        paths = document.write(options.results, options.docs)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    kept = [*paths, *options.results.rglob("*.json")]
    size = sum(path.stat().st_size for path in kept) / 1e6
    print(f"{options.docs / 'study.md'} with {len(paths) - 1} figures; with the records {size:.1f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=f"{__doc__}\n\n`page` as the first argument makes docs/study.md: `page --help`.",
        epilog=data.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="digits", help="what to study, see below (default: %(default)s)")
    parser.add_argument("--grid", help="a name from grids/ or a .toml file (default: the name of the data)")
    parser.add_argument("--task", action="append", help="run this task only; may be given again")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that compute: there is one for each core
    main()
