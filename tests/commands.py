"""What the tests of all commands check: which files there are, and that bad input ends with one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest

from matryoshka.cli import main

Capture = pytest.CaptureFixture[str]


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def unwrapped(printed: object) -> str:
    """Return what is printed, each sentence in one line; no line of it is too wide."""
    text = str(printed)
    assert max(map(len, text.splitlines())) <= 100
    return re.sub("\n {4}(?! )", " ", text)


def strict_json(text: str) -> Any:
    """Read JSON as every program reads it: without NaN and infinity."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def assert_refused(arguments: str, message: str, capsys: Capture) -> None:
    """Run a command that ends with one line and status 2, and leaves no file behind."""
    before = names()
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("matryoshka: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert names() == before


def assert_usage_refused(arguments: str, message: str, capsys: Capture) -> None:
    """Run a command whose options are wrong: it ends with one line and status 2 before any work."""
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
