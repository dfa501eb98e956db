"""What imports and the help of commands cost, with cached bytecode, each process in turn with a bare NumPy import."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ALONE = "import numpy"


def cpu_seconds(code: str, env: dict[str, str]) -> float:
    """Run a statement, or a module as `python -m ...`, in a fresh interpreter; return the CPU time of the process."""
    arguments = code.split()[1:] if code.startswith("python ") else ["-c", code]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, env=env, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.benchmark(group="import")
@pytest.mark.parametrize(
    "code",
    [
        ALONE,
        "import matryoshka",
        "from matryoshka import Corpus, Funnel",
        "from matryoshka import info_nce",
        "python -m matryoshka --help",
        "python -m matryoshka audit --help",
        "python -m matryoshka benchmark --help",
    ],
)
def test_import(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str) -> None:
    """The table shows wall clocks; what counts is printed and kept in `extra_info`: CPU times beside NumPy's import."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    times = []

    def run() -> None:
        times.append((cpu_seconds(code, env), cpu_seconds(ALONE, env)))

    benchmark.pedantic(run, rounds=30, warmup_rounds=2)
    ratio = statistics.median(own / alone for own, alone in times[2:])
    more = 1000 * statistics.median(own - alone for own, alone in times[2:])
    found = {"x CPU time of NumPy's import": round(ratio, 3), "ms of CPU time over NumPy's import": round(more, 1)}
    benchmark.extra_info.update({"row": f"`{code}`, then `{ALONE}`", **found})
    with capsys.disabled():
        print(f"\n{code}: {ratio:.2f} x the CPU time of {ALONE}, {more:+.0f} ms, as processes (median)")
