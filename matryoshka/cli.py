"""The command line: `matryoshka COMMAND`, also as `python -m matryoshka COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import matryoshka
from matryoshka._commands import apply, audit, benchmark, calibrate

__all__ = ["main"]

COMMANDS = (audit, benchmark, calibrate, apply)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others; its subparsers are of the same class."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"matryoshka: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the name of the program; by default that of this process.

    Returns
    -------
    int
        The exit status: 0, or 2 with one line on standard error about what is wrong, in which case no file was
        written; 1 if whoever reads the output stopped reading.
    """
    parser = _Parser(prog="matryoshka", description="Matryoshka representation learning: tools for .npy files.")
    parser.add_argument("--version", action="version", version=f"matryoshka {matryoshka.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"matryoshka: warning: {message}", file=sys.stderr)
        try:
            options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
            return 1
        except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
            print(f"matryoshka: error: {' '.join(_reason(error).split())}", file=sys.stderr)
            return 2
    return 0


def _reason(error: Exception) -> str:
    """Return what an error says, without the number that the system gives it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}': {error.strerror}"
    return str(error)
