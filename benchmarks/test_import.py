"""What `import matryoshka` costs beyond `import numpy`, in fresh interpreters with cached bytecode, as after pip."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CODE = """
import time, numpy
start = time.perf_counter()
import matryoshka
print(time.perf_counter() - start)
"""


@pytest.mark.benchmark(group="import")
def test_import_over_numpy(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows whole processes; the number that counts is printed above it and kept in `extra_info`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    milliseconds = []

    def run() -> None:
        process = subprocess.run([sys.executable, "-c", CODE], check=True, env=env, capture_output=True, text=True)
        milliseconds.append(1e3 * float(process.stdout))

    benchmark.pedantic(run, rounds=30, warmup_rounds=2)
    median = statistics.median(milliseconds[2:])
    benchmark.extra_info.update({"row": "an interpreter that imports matryoshka", "ms over import numpy": median})
    with capsys.disabled():
        print(f"\nimport matryoshka: {median:.1f} ms over import numpy (median)")
