"""Measure in processes of their own, gather, and write the page; what `python -m benchmarks.retrieval` can do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import clock, table

MODULE = "benchmarks.retrieval"
COMPARED = ("numpy", "torch", "faiss-cpu", "hnswlib", "usearch")
REPORT = Path("report/bench-retrieval.json")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    only = "measure this group anew: first, rerank, full, ladder, funnel, hnsw, bounds, codes, end, mapped, disk"
    parser.add_argument("--only", metavar="GROUP", action="append", help=f"{only}; may be given again")
    tasks = parser.add_subparsers(dest="task")
    times = tasks.add_parser("times", help="what a process of its own measures of some cases, as lines of JSON")
    times.add_argument("threads", type=int)
    times.add_argument("cases", type=int, nargs="+")
    for task in ("draw", "file"):
        one = tasks.add_parser(task, help="what a process of its own does with rows in a file")
        one.add_argument("group")
        one.add_argument("folder", type=Path)
        one.add_argument("plan", type=int, nargs="?")
    tasks.add_parser("store", help="keep the report in benchmarks/results and docs/results")
    arguments = parser.parse_args()
    if arguments.task is None:
        _suite(arguments.only)
    elif arguments.task == "store":
        _store()
    elif arguments.task == "times":
        clock.keep_to(arguments.threads)
        from benchmarks.retrieval import cases, measure

        for found in measure.measure([cases.CASES[i] for i in arguments.cases], arguments.threads):
            print(json.dumps(found), flush=True)
    else:
        from benchmarks.retrieval import files

        files.run(arguments.task, arguments.group, arguments.folder, arguments.plan)


def _suite(only: list[str] | None) -> None:
    from benchmarks.retrieval import page
    from benchmarks.retrieval.cases import CASES, GROUPS
    from benchmarks.retrieval.files import FILES

    default = [*GROUPS, *(group for group, file in FILES.items() if not file.asked_for)]
    if unknown := set(only or ()) - {*GROUPS, *FILES}:
        msg = f"no group {', '.join(unknown)}; there are {', '.join((*GROUPS, *FILES))}."
        raise SystemExit(msg)
    order = [case.title(batch) for case in CASES for batch in case.batches] + [file.title for file in FILES.values()]
    rows = {row["title"]: row for row in _read()["rows"]} if REPORT.exists() else {}
    for row in _rows(only or default):
        rows[row["title"]] = row
        result = table.setting(COMPARED) | {"rows": [rows[title] for title in order if title in rows]}
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        Path("report/retrieval.md").write_text(page.markdown(result), encoding="utf-8")
        print(page.section(row) if "cpu" not in row or "wall" in row else f"{row['title']}: CPU time", flush=True)


def _rows(groups: list[str]) -> Iterator[dict[str, Any]]:
    from benchmarks.retrieval.cases import CASES
    from benchmarks.retrieval.files import FILES, measured
    from benchmarks.retrieval.peers import FOLDER

    chosen = [i for i, case in enumerate(CASES) if case.group in groups]
    with TemporaryDirectory() as graphs:
        for source in dict.fromkeys(CASES[i].source for i in chosen):
            same = [i for i in chosen if CASES[i].source == source]
            yield from _pairs(same, {FOLDER: graphs})
    yield from (measured(group) for group in FILES if group in groups)


def _pairs(chosen: list[int], env: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Give the rows of cases on the same data, first with CPU time only, then with the wall clock too."""
    from benchmarks.retrieval.cases import CASES

    rows = {}
    for case in (CASES[i] for i in chosen):
        own = {"group": case.group, "k": case.k, "exact": case.exact, "at_recall": case.at_recall}
        for batch in case.batches:
            wanted = [asdict(wanted) for wanted in case.wanted if wanted.batch == batch]
            rows[case.title(batch)] = {"title": case.title(batch), "batch": batch, **own, "wanted": wanted}
    for name, threads in (("cpu", 1), ("wall", 2)):
        for line in clock.process(MODULE, ("times", threads, *chosen), threads, **env):
            found = json.loads(line)
            row = rows[found.pop("title")]
            row[name] = found
            yield row


def _read() -> dict[str, Any]:
    return dict(json.loads(REPORT.read_text(encoding="utf-8")))


def _store() -> None:
    from benchmarks.retrieval import page

    result = _read()
    table.store("retrieval", result, page.markdown(result))


if __name__ == "__main__":
    main()
