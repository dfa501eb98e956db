"""The command line as a whole: exit status, errors of one line, plain output."""

from __future__ import annotations

import io
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import assert_usage_refused

import matryoshka
from matryoshka import cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make a command of its own, `try`, that does an action."""

    def make(action: Callable[[], object]) -> None:
        module = types.ModuleType("try")
        module.DESCRIPTION, module.EXAMPLE = "", ""
        module.add = lambda parser: parser.set_defaults(run=lambda options: action())
        monkeypatch.setitem(cli.COMMANDS, "try", "")
        monkeypatch.setitem(sys.modules, "matryoshka._commands.try", module)

    return make


@pytest.mark.parametrize("error", [ValueError("a\n  b"), TypeError("a b"), OSError("a b"), ImportError("a b")])
def test_what_is_wrong_is_one_line_and_status_2(
    error: Exception, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    command(fail)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", "matryoshka: error: a b\n")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "memory must suffice, got too little: none left; free some, or pass fewer rows."),
        (MemoryError("no 9 PiB"), "memory must suffice, got too little: no 9 PiB; free some, or pass fewer rows."),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(28, "No space left on device", "a.npy"), "'a.npy': No space left on device"),
    ],
)
def test_what_the_system_says_is_a_sentence(
    error: Exception, reason: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    command(fail)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", f"matryoshka: error: {reason}\n")


def test_warnings_are_one_line_and_no_error(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda: warnings.warn("few rows", stacklevel=1))
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("", "matryoshka: warning: few rows\n")


def test_an_interrupt_is_no_traceback(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    command(interrupt)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "matryoshka: interrupted\n")
    sys.modules["matryoshka._commands.try"].add = lambda parser: interrupt()  # while modules are loaded
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "matryoshka: interrupted\n")


def test_mistakes_in_the_program_are_not_hidden(command: Any) -> None:
    command(lambda: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["try"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("audit e.npy f.npy", "unrecognized arguments: f.npy; see matryoshka audit --help"),
        ("audit e.npy --see 3", "unrecognized arguments: --see 3; see matryoshka audit --help"),
        ("audit e.npy --k 1.5", "argument --k: must be an integer, got '1.5'; see matryoshka audit --help"),
        ("benchmark --recall x", "argument --recall: must be a number, got 'x'; see matryoshka benchmark --help"),
    ],
)
def test_wrong_usage_names_the_help_of_its_command(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_usage_refused(arguments, message, capsys)


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


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_tells_of_itself_with_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 100
    assert out.endswith(cli.STATUS + "\n")
    example = out.partition("\nexample:\n  ")[2].splitlines()[0].split()
    assert example[:2] == ["matryoshka", name]
    assert cli._parser(name).parse_args(example[1:]).run.__module__ == f"matryoshka._commands.{name}"


def test_defaults_are_told_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--help"])
    assert "queries asked at once; default 1,64" in " ".join(capsys.readouterr().out.split())
    (batch,) = (action for action in _actions("benchmark") if action.dest == "batch")
    assert batch.default == "1,64"


def _actions(name: str) -> list[Any]:
    commands = cli._documented()._subparsers
    assert commands is not None
    return commands._group_actions[0].choices[name]._actions


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_documentation_shows_all_options(name: str) -> None:
    assert {"--json", "--output"} < {option for action in _actions(name) for option in action.option_strings}
    page = Path(__file__).parents[1] / "docs" / "command_line.md"
    assert f":func: {cli._documented.__name__}\n" in page.read_text(encoding="utf-8")


def test_closed_streams_are_no_error(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def speak() -> None:
        print("a")
        warnings.warn("b", stacklevel=1)

    command(speak)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["try"]) == 0
    sys.stdout.close()
    sys.stderr.close()


def test_what_a_stream_cannot_show_is_spelled_out(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command(lambda: print("\u00e9\udc80"))
    with io.TextIOWrapper(io.BytesIO(), "ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["try"]) == 0
        assert stream.buffer.getvalue() == rb"\xe9\udc80" + b"\n"
        monkeypatch.undo()


def test_the_help_costs_less_than_numpy() -> None:
    code = "import sys; from matryoshka import cli; sys.argv[1:] = ['--help']; sys.exit(cli.main())"
    code = f"import atexit, sys; atexit.register(lambda: print('numpy' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_python_m_runs_it_and_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-m", "matryoshka", "--version"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, f"matryoshka {matryoshka.__version__}\n")
    code = (
        "import sys; from matryoshka import cli; from matryoshka._commands import audit; "
        "audit.add = lambda parser: parser.set_defaults(run=lambda o: print('x' * 10**6)); "
        "sys.exit(cli.main(['audit']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.read(1)
        piped.stdout.close()
        assert (piped.stderr.read(), piped.wait()) == ("", 1)
