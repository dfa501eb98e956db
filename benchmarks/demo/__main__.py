"""Run the study from the command line: `python -m benchmarks.demo --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.demo import report
from benchmarks.demo.experiment import Settings, study
from benchmarks.study import data


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, print the tables and write the report."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        dataset = data.load(options.data)
        folder = _writable_folder(options.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    try:
        record = study(dataset, Settings(seed=options.seed, runs=options.runs), say=_say)
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted, nothing written\n")
    print(f"\n{report.console(record)}\n")
    print(f"Audit of the vectors of the first MRL network:\n{record['audit']}\n")
    for path in report.write(record, folder):
        print(f"wrote {path}")
    print(f"{record['seconds']:.0f} s in all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Train nested and fixed-width networks; compare prefixes, cascades and searches; write a report.",
        epilog=data.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="digits", help="what to study, see below (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=_integer(0, 2**31), default=0, help="of the first run (default: %(default)s)")
    parser.add_argument("--runs", type=_integer(1, 1000), default=3, help="runs to average (default: %(default)s)")
    return parser


def _integer(least: int, most: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            msg = f"must be within [{least}, {most}], got {number}"
            raise argparse.ArgumentTypeError(msg)
        return number

    return integer


def _writable_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        msg = f"`--output` must be a folder that can be written, got {path}; choose another."
        raise PermissionError(msg)
    return path


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
