"""The command line: `matryoshka COMMAND`, also as `python -m matryoshka COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import matryoshka

__all__ = ["main"]

COMMANDS = {
    "audit": "tell whether embeddings can be truncated",
    "benchmark": "measure what searches with prefixes save and lose",
    "calibrate": "choose the thresholds of a cascade",
    "apply": "let a saved cascade answer new rows",
}
"""Each has a module of its name, which is loaded with all that it needs once the command is asked for."""

INPUTS = """Where an array is asked for as .npy: FILE.npy, FILE.npz:NAME, and with the extra
`datasets` FILE.parquet:COLUMN or FOLDER:COLUMN, a data set of Hugging Face on
disk. A name may be left out where there is but one. Nothing read is executed."""

STATUS = """exit status:
  0    done
  1    whoever reads the output stopped reading before all was done
  2    wrong usage or input: one line on standard error says what,
       and no file is written
  130  interrupted"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that is no wider than all else that is printed, on a wide terminal too."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"width": min(100, shutil.get_terminal_size().columns - 2)} | options)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others; its subparsers are of the same class."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)  # type: ignore[arg-type]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is left over where it was found: the message then names the help of that command."""
        options, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options, others

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
        written; 1 if whoever reads the output stopped reading, 130 if the user interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_streams()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"matryoshka: warning: {message}", file=sys.stderr)
        try:
            options = _parser(next((word for word in arguments if not word.startswith("-")), "")).parse_args(arguments)
            options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
            return 1
        except KeyboardInterrupt:
            print("matryoshka: interrupted", file=sys.stderr)
            return 130
        except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
            print(f"matryoshka: error: {' '.join(_reason(error).split())}", file=sys.stderr)
            return 2
    return 0


def _open_streams() -> None:
    """Let nothing be written where the caller closed a stream, and let names be spelled out that one cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _documented() -> _Parser:
    """Describe all commands with all their options, as the documentation does."""
    return _parser(*COMMANDS)


def _parser(*chosen: str) -> _Parser:
    """Describe all commands, and the options of the chosen ones, whose modules alone are loaded."""
    parser = _Parser(
        prog="matryoshka",
        description="Matryoshka representation learning: tools for arrays in files.",
        epilog=f"example:\n  matryoshka audit EMB.npy\n\nmatryoshka COMMAND --help tells of each.\n\n{STATUS}",
    )
    parser.add_argument("-V", "--version", action="version", version=f"matryoshka {matryoshka.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        if name in chosen:
            module = importlib.import_module(f"matryoshka._commands.{name}")
            command.description = f"{textwrap.fill(module.DESCRIPTION, 79, break_on_hyphens=False)}\n\n{INPUTS}"
            command.epilog = f"example:\n  {module.EXAMPLE}\n\n{STATUS}"
            module.add(command)
    return parser


def _reason(error: Exception) -> str:
    """Return what an error says, without the number that the system gives it."""
    if isinstance(error, MemoryError):
        return f"memory must suffice, got too little: {str(error) or 'none left'}; free some, or pass fewer rows."
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"'{error.filename}': {error.strerror}"
    return str(error)
