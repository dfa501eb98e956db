"""The command line as a whole: exit status, errors of one line, plain output."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import matryoshka
from matryoshka import cli


def command(action: Any) -> SimpleNamespace:
    """A command of its own, `try`, that does `action`."""
    return SimpleNamespace(add=lambda commands: commands.add_parser("try").set_defaults(run=lambda options: action()))


@pytest.mark.parametrize(
    "error", [ValueError("a\n  b"), TypeError("a b"), OSError("a b"), ImportError("a b"), MemoryError("a b")]
)
def test_what_is_wrong_is_one_line_and_status_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "COMMANDS", (command(fail),))
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", "matryoshka: error: a b\n")


def test_warnings_are_one_line_and_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (command(lambda: warnings.warn("few rows", stacklevel=1)),))
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("", "matryoshka: warning: few rows\n")


def test_mistakes_in_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (command(lambda: {}["missing"]),))
    with pytest.raises(KeyError):
        cli.main(["try"])


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["calibrate"], ["calibrate", "a.npy", "b.npy", "--delta", "x"]])
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("matryoshka: error: ")
    assert err.count("\n") == 1


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in ((["--version"], f"matryoshka {matryoshka.__version__}"), (["--help"], "calibrate")):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        assert text in capsys.readouterr().out


def test_python_m_runs_it_and_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-m", "matryoshka", "--version"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, f"matryoshka {matryoshka.__version__}\n")
    code = (
        "import sys; from matryoshka import cli; from types import SimpleNamespace as S; "
        "cli.COMMANDS = (S(add=lambda c: c.add_parser('try').set_defaults(run=lambda o: print('x' * 10**6))),); "
        "sys.exit(cli.main(['try']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.read(1)
        piped.stdout.close()
        assert (piped.stderr.read(), piped.wait()) == ("", 1)
