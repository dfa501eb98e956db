"""What commands share: how options are read, and how what was found is printed, written and waited for."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from matryoshka import _files, _pictures
from matryoshka._optional import require

Number = TypeVar("Number", int, float)

ARRAYS = (".npy", ".npz", ".parquet")
"""Ends of names of files that hold arrays: no other file is written over them."""


def integer(text: str) -> int:
    """Read a whole number."""
    return _number(text, int, "an integer")


def number(text: str) -> float:
    """Read a number."""
    return _number(text, float, "a number")


def _number(text: str, kind: type[Number], name: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        msg = f"must be {name}, got {text!r}"
        raise argparse.ArgumentTypeError(msg) from None


def widths(text: str) -> tuple[int, ...]:
    """Read a ladder such as 8,16,32."""
    return _integers(text, "widths", "8,16,32")


def batches(text: str) -> tuple[int, ...]:
    """Read batch sizes such as 1,64."""
    return _integers(text, "batch sizes", "1,64")


def _integers(text: str, name: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        msg = f"{name} must be integers with commas between them, such as {example}, got {text!r}"
        raise argparse.ArgumentTypeError(msg) from None


def new_file(text: str) -> Path:
    """Read the path of a file to write: that it can be written is known before any work is done."""
    path = Path(text)
    if path.exists() and (not path.is_file() or path.suffix in ARRAYS):
        got = "a folder" if path.is_dir() else "a file of arrays" if path.is_file() else "a device or a pipe"
        msg = f"{text!r} must be new, or a file that may be replaced, got {got}"
        raise argparse.ArgumentTypeError(msg)
    if not path.parent.is_dir():
        msg = f"{text!r} must be in a folder that exists"
        raise argparse.ArgumentTypeError(msg)
    _try_to_write(path.parent, f"{text!r} must be a file in a folder that can be written to")
    return path


def folder(text: str) -> Path:
    """Read the path of a folder to write to, which is made if absent: that it can be is known before any work."""
    path = Path(text)
    if not (path.is_dir() or (path.parent.is_dir() and not path.exists())):
        msg = f"{text!r} must be a folder, or a new one in a folder that exists"
        raise argparse.ArgumentTypeError(msg)
    _try_to_write(path if path.is_dir() else path.parent, f"{text!r} must be a folder that can be written to")
    return path


def _try_to_write(place: Path, rule: str) -> None:
    """Make a file that goes away by itself: permissions do not tell of read-only disks and of /proc."""
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        msg = f"{rule}, the system says: {error.strerror}"
        raise argparse.ArgumentTypeError(msg) from None


def require_plots(path: Path | None, option: str) -> None:
    """Require what draws figures, before any work is done, where an option named a place for one."""
    if path is not None:
        require("matplotlib", extra="cli", purpose=option)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Describe the option for programs that read on."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")


def wrote(options: argparse.Namespace, what: str) -> None:
    """Say what was written: to standard error if standard output is for JSON."""
    print(f"wrote {what}", file=sys.stderr if options.json else sys.stdout)


class Publishable(Protocol):
    """A result that is a text, a JSON record and a figure."""

    def __str__(self) -> str: ...

    def to_json(self) -> str:
        """Return the record as JSON text."""

    def figure(self) -> Any:
        """Draw it with matplotlib."""


def publish(report: Publishable, name: str, options: argparse.Namespace, *, dpi: int) -> None:
    """Print a report, and then write it to the folder `-o` if there is one."""
    print(report.to_json() if options.json else report, flush=True)
    write(report, name, options, dpi=dpi)


def write(report: Publishable, name: str, options: argparse.Namespace, *, dpi: int) -> None:
    """Write a report to the folder `-o` if there is one: text, record and figure together, or nothing."""
    if options.output is not None:
        contents = {
            f"{name}.txt": f"{report}\n".encode(errors="backslashreplace"),
            f"{name}.json": f"{report.to_json()}\n".encode(),
            f"{name}.png": _pictures.rendered(report.figure(), dpi=dpi),
        }
        _files.write_together(options.output, contents)
        wrote(options, f"{options.output / name}.txt, .json and .png")


class Progress:
    """What is printed as it is found, above a bar that says what is done meanwhile; either may be left out."""

    def __init__(self, bar: Any = None, *, quiet: bool = False) -> None:
        self._bar, self._quiet = bar, quiet

    def now(self, doing: str) -> None:
        """Say what is done from now on."""
        if self._bar is not None:
            self._bar.set_description_str(doing)

    def show(self, lines: str) -> None:
        """Print lines to standard output at once."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.clear()
        print(lines, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def step(self) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()


@contextmanager
def progress(total: int, unit: str, *, quiet: bool) -> Iterator[Progress]:
    """Give what shows progress: with a bar on a terminal, where somebody sees it, if the extra `cli` brought one."""
    if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        yield Progress(quiet=quiet)
        return
    tqdm = importlib.import_module("tqdm")
    with tqdm.tqdm(total=total, unit=unit, leave=False) as bar:
        yield Progress(bar, quiet=quiet)
