"""Measure in processes of their own, gather, and write the page; what `python -m benchmarks.losses` can do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import clock
from benchmarks.losses.cases import CASES, SENTENCES, Case

COMPARED = ("numpy", "torch", "jax", "keras", "tensorflow", "sentence-transformers")
MEMORY = ("torch", "jax", "numpy", SENTENCES)
FIXED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Hands freed arrays back to the system, so that the peak is that of live arrays."""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help='print the tables of "CASE: FRAMEWORK" that contain this')
    tasks = parser.add_subparsers(dest="task")
    for task in ("times", "memory"):
        one = tasks.add_parser(task, help="what a process of its own measures of one case, printed as JSON")
        one.add_argument("case", type=int)
        one.add_argument("framework")
        one.add_argument("threads", type=int)
    tasks.add_parser("store", help="keep the runs of report/ in benchmarks/results and docs/results")
    gpu = tasks.add_parser("gpu", help="the same cases on a device")
    gpu.add_argument("--device", default="cuda")
    gpu.add_argument("--divide", type=int, default=1, metavar="BY", help="divide batches and classes, for a trial")
    gpu.add_argument("--output", type=Path, default=Path("report"), metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.task is None:
        _suite(arguments.only)
    elif arguments.task == "store":
        _store()
    elif arguments.task == "gpu":
        from benchmarks.losses.gpu import run

        run(arguments.device, arguments.divide, arguments.output)
    else:
        # Imports come after the thread count: XLA and TensorFlow take as many threads as there are cores for them.
        clock.keep_to(arguments.threads)
        from benchmarks.losses import measure

        case = CASES[arguments.case]
        found = (
            measure.memory(case, arguments.framework)
            if arguments.task == "memory"
            else measure.times(case, arguments.framework, arguments.threads)
        )
        print(json.dumps(found))


def _suite(only: str | None) -> None:
    from benchmarks import table
    from benchmarks.losses import page

    result: dict[str, Any] = table.setting(COMPARED) | {"rows": []}
    for case in CASES:
        for framework in case.frameworks:
            if only is None or only in f"{case}: {framework}":
                result["rows"].append(_row(case, framework))
                print(page.line(result["rows"][-1]), flush=True)
                if only is None:  # after every row: a run takes long
                    _write(result, page.markdown(result))
    if only is not None:
        print(page.markdown(result))


def _write(result: dict[str, Any], text: str) -> None:
    Path("report").mkdir(exist_ok=True)
    Path("report/bench-losses.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Path("report/losses.md").write_text(text, encoding="utf-8")


def _store() -> None:
    from benchmarks import table
    from benchmarks.losses import gpu, page

    for suite, module in (("losses", page), ("losses-gpu", gpu)):
        figures = Path(f"report/bench-{suite}.json")
        if figures.exists():
            result = json.loads(figures.read_text(encoding="utf-8"))
            table.store(suite, result, module.markdown(result))


def _row(case: Case, framework: str) -> dict[str, Any]:
    wanted = {name: getattr(case, name) for name in ("bar", "goal", "memory_bar", "memory_goal")}
    row: dict[str, Any] = {"case": str(case), "framework": framework, **wanted, "per_multiply_add": bool(case.small)}
    row["multiply_adds"] = {way: case.multiply_adds(way) for way in case.ways}
    row["cpu"], row["wall"] = (_process("times", case, framework, threads) for threads in (1, 2))
    if framework in MEMORY:
        row["memory"] = _process("memory", case, framework, 2, **FIXED)
    return row


def _process(task: str, case: Case, framework: str, threads: int, **env: str) -> dict[str, Any]:
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if framework.startswith("keras"):
        env["KERAS_BACKEND"] = framework.removeprefix("keras-")
    arguments = (task, CASES.index(case), framework, threads)
    return dict(json.loads(list(clock.process("benchmarks.losses", arguments, threads, **env))[-1]))


if __name__ == "__main__":
    main()
