"""Run all parts, or those that are named, each in its own process, bounded in count and in time.

Prints what was tried and how it ended; the exit status is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.soak.corruptions import CORRUPTIONS, corruptions
from benchmarks.soak.kills import KILLS, kills
from benchmarks.soak.report import Report
from benchmarks.soak.searches import QUERIES, queries

PARTS: dict[str, tuple[Callable[[], Iterator[Report]], int]] = {
    "queries": (queries, QUERIES),
    "kills": (kills, KILLS),
    "corruptions": (corruptions, CORRUPTIONS),
}
"""Each with how many it must try."""

SECONDS = 900


def run_apart(part: str) -> tuple[list[Report], float]:
    """Run one part in a process of its own."""
    least = PARTS[part][1]
    start, env = time.perf_counter(), dict(os.environ)
    if part != "queries":
        env["OMP_NUM_THREADS"] = "1"  # those processes fork, which threads of OpenMP do not survive
    command = [sys.executable, "-m", "benchmarks.soak", part, "--json"]
    try:
        done = subprocess.run(command, env=env, timeout=SECONDS, stdout=subprocess.PIPE, text=True, check=True)
        reports = [Report(**entry) for entry in json.loads(done.stdout)]
    except (subprocess.SubprocessError, json.JSONDecodeError) as error:
        reports = [Report(part, violations=[f"{part}: did not come to its end: {error}"])]
    if (tried := sum(report.tried for report in reports)) < least:
        reports.append(Report(part, violations=[f"{part}: {tried} tried, not {least}"]))
    return reports, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="queries|kills|corruptions")
    parser.add_argument("--json", action="store_true", help="run one part in this process, for the whole to read")
    options = parser.parse_args()
    if options.json:
        with contextlib.redirect_stdout(sys.stderr):
            found = [vars(report) for report in PARTS[options.parts[0]][0]()]
        print(json.dumps(found))
        return 0
    violations = []
    for part in options.parts or PARTS:
        reports, seconds = run_apart(part)
        tried, bad = (sum(counts) for counts in zip(*((r.tried, len(r.violations)) for r in reports), strict=True))
        print(f"\n{part}: {tried:,} tried, {bad} violations, {seconds:.0f} s", flush=True)
        for report in reports:
            outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in report.outcomes.items())
            print(f"  {report.tried:>8,}  {report.name}: {outcomes}", flush=True)
            violations += report.violations
    print("\n" + "\n".join(violations[:50]) if violations else "\nEverything held.")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
