"""What all suites share: a fixed number of threads, stated in the result, and the row that a benchmark becomes."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.table import versions

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = str(THREADS)
# XLA takes as many threads as the process may use cores.


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Note the number of threads and the versions of what is compared."""
    machine_info["setting"] = {"threads": THREADS} | versions()
