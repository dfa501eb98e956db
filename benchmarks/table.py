"""From a run of a suite to a table: `python -m benchmarks.table cascade` after `nox -s bench -- cascade`.

Reads report/bench-SUITE.json as pytest-benchmark wrote it, and writes report/SUITE.md: a table per group, a row per
benchmark, medians, and the ratio to the row of the group that is marked as the reference. With `--store`, the run goes
to benchmarks/results/SUITE.json, without single timings, and its table to docs/results/SUITE.md.

A benchmark describes its row in `extra_info`: `row` (its label), `reference` (True for the row that others are compared
with), `multiply_adds`, `bytes` and `peak_bytes` if they apply, and any further column by its title.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FORMATS = {
    "multiply_adds": ("multiply-adds", lambda value: f"{value:.3g}"),
    "bytes": ("bytes", lambda value: f"{value:.3g}"),
    "peak_bytes": ("peak memory", lambda value: f"{value / 2**20:,.0f} MiB"),
}
HIDDEN = ("row", "reference")
COMPARED = ("numpy", "torch", "jax", "keras", "sentence-transformers", "faiss-cpu", "hnswlib", "usearch")


def versions(packages: Iterable[str] = COMPARED) -> dict[str, str]:
    """Return the versions of what is compared, as far as it is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def setting(packages: Iterable[str]) -> dict[str, Any]:
    """Return day, machine and versions, for a suite that does not run under pytest-benchmark (Linux)."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name")[2].partition("\n")[0].strip("\t :")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{cpu}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "setting": versions(packages),
    }


def measured(result: dict[str, Any]) -> str:
    """Return the sentence that says when and where a run was made."""
    details = "".join(f", {name} {value}" for name, value in result["setting"].items())
    return f"Measured on {result['date']}: {result['machine']}, Python {result['python']}{details}. Medians."


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Return what is worth keeping of a run: machine, versions, and a row per benchmark."""
    machine = run["machine_info"]
    rows = [
        {
            "group": b["group"],
            "median_s": b["stats"]["median"],
            "iqr_s": b["stats"]["iqr"],
            "rounds": b["stats"]["rounds"],
        }
        | b["extra_info"]
        for b in run["benchmarks"]
    ]
    return {
        "date": run["datetime"][:10],
        "machine": f"{machine['cpu'].get('brand_raw', machine['processor'])}, {machine['cpu'].get('count')} cores",
        "python": machine["python_version"],
        "setting": run["machine_info"].get("setting", {}),
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a run as Markdown."""
    lines = [measured(result), ""]
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        lines += [f"### {group}", "", *_table([row for row in result["rows"] if row["group"] == group]), ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    reference = next((row["median_s"] for row in rows if row.get("reference")), None)
    known = ("group", "median_s", "iqr_s", "rounds", *HIDDEN)
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in known))
    titles = [
        "",
        *(FORMATS.get(column, (column,))[0] for column in columns),
        "time",
        *(["× reference"] if reference else []),
    ]
    table = []
    for row in rows:
        cells = [_cell(column, row.get(column)) for column in columns]
        ratio = [f"{row['median_s'] / reference:.2f}"] if reference else []
        table.append([row["row"], *cells, seconds(row["median_s"]), *ratio])
    return lines(titles, table)


def lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def store(suite: str, result: Any, page: str) -> None:
    """Keep the figures of a suite and the page that shows them in the repository."""
    figures = json.dumps(result, indent=1) + "\n"
    for path, text in ((f"benchmarks/results/{suite}.json", figures), (f"docs/results/{suite}.md", page)):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")


def measure_folder(suite: str, about: str | None, measure: Callable[[Path], Any], page: Callable[[Any], str]) -> None:
    """Measure what a folder holds, print the tables, and store on request: the command line of such a suite."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what holds the embeddings and the questions")
    parser.add_argument("--store", action="store_true", help="keep the figures and the tables in the repository")
    arguments = parser.parse_args()
    result = measure(arguments.folder)
    print(tables := page(result))
    if arguments.store:
        store(suite, result, tables)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    return (
        FORMATS[column][1](value) if column in FORMATS else f"{value:.4g}" if isinstance(value, float) else str(value)
    )


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1.0:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def main() -> None:
    """Write the tables of the suites that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--store", action="store_true", help="keep the run in benchmarks/results and docs/results")
    arguments = parser.parse_args()
    for suite in arguments.suites:
        result = summary(json.loads(Path(f"report/bench-{suite}.json").read_text(encoding="utf-8")))
        table = markdown(result)
        Path(f"report/{suite}.md").write_text(table, encoding="utf-8")
        print(table)
        if arguments.store:
            store(suite, result, table)


if __name__ == "__main__":
    main()
