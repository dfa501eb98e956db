"""What options of several commands have in common."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


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


def output(text: str) -> Path:
    """Read the path of a file to write: that it can be written is known before any work is done."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        msg = f"{text!r} must be a file in a folder that exists"
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
