"""Section 3, second half: theory beside clock."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from benchmarks.study.page.draw import Bar, dots
from benchmarks.study.page.records import Record, Study
from benchmarks.study.page.section import Section, number, percent, plan_name, title
from benchmarks.study.page.series import Seeds, mean
from benchmarks.study.page.verdicts import Case, Claim


def timed(study: Study) -> dict[str, dict[str, Seeds]]:
    """Return of each timed plan of MRL: "theory", how many times faster by each clock, and "map"; each by seed."""
    found: dict[tuple[str, int, tuple[int, ...]], dict[str, Seeds]] = {}
    for seed, record in study.of("clock", "MRL").items():
        keys = []
        for i in range(len(record.get("plans"))):
            dims = tuple(record.get("plans", i, "dims"))
            keys.append((record.get("plans", i, "engine"), len(dims), dims))
        full = keys.index(max(key for key in keys if key[:2] == ("exact", 1)))
        whole = record.number("plans", full, "multiply_adds")
        for i, key in enumerate(keys):
            for what, value in _timed(record, i, whole):
                found.setdefault(key, {}).setdefault(what, {})[seed] = value
    return {f"{engine}: {plan_name(dims)}": found[engine, n, dims] for engine, n, dims in sorted(found)}


def _timed(record: Record, i: int, whole: float) -> Iterator[tuple[str, float]]:
    """Give the numbers of one plan, `whole` being the multiply-adds of exact search at full width."""
    yield "map", record.number("plans", i, "map")
    yield "theory", whole / record.number("plans", i, "multiply_adds")
    for clock in ("cpu", "wall"):
        for way in ("alone", "batch"):
            yield f"{clock} {way}", record.number("plans", i, clock, way, "faster")
            yield f"{clock} {way} s", record.number("plans", i, clock, way, "seconds")


def show(made: Section, studies: Sequence[Study]) -> None:
    """Add what the clock says of the plans to the section on searching."""
    if not studies:
        return
    made.say("""**By the clock.** The same searches timed: one query after the other, and 64 at once, in rounds
in which all plans take their turn. *Theory* is by multiply-adds; those of HNSW, a graph of neighbours with 32
links a row, are of the distances that it computed (efSearch is 16, faiss' default, and 200 where 200 candidates
are reordered). Above 1 × is faster than exact search at full width. One thread's CPU time decides; times depend
on the machine, and corpora as small as these leave little to save beside the call itself.""")
    series = ("theory", "cpu alone", "cpu batch")
    panels = [
        (title(study), [Bar(plan, [mean(f[s]) for s in series]) for plan, f in timed(study).items()])
        for study in studies
    ]
    image = dots(panels, ("by count", "clock, one query", "clock, 64 queries"), xlabel="times faster than exact search")
    made.show("retrieval-clock", "Theory beside clock, each plan against exact search at full width", image, ["clock"])
    for study in studies:
        rows = [
            [
                plan,
                percent(found["map"]),
                number(found["theory"]),
                *(f"{1e6 * mean(found[f'cpu {way} s']):,.0f}" for way in ("alone", "batch")),
                *(number(found[f"{clock} {way}"]) for clock in ("cpu", "wall") for way in ("alone", "batch")),
            ]
            for plan, found in timed(study).items()
        ]
        times = [f"{clock} {way} ×" for clock in ("CPU", "wall") for way in ("alone", "batch")]
        header = ["plan", "mAP@10 %", "theory ×", "µs alone", "µs in batch", *times]
        caption = f"{title(study)}: time of a query (CPU, one thread), and times faster than exact search at full width"
        made.table(caption, header, rows)


def _clocked(study: Study) -> Iterator[Case]:
    """Return cases for the second width, alone and reordered at full width, against full width."""
    found = {plan: values["cpu alone"] for plan, values in timed(study).items()}
    widths = sorted(int(plan.removeprefix("hnsw: ")) for plan in found if re.fullmatch(r"hnsw: \d+", plan))
    if len(widths) > 2:
        short, full = widths[1], widths[-1]
        for engine in ("hnsw", "exact"):
            whole = found[f"{engine}: {full}"]
            for dims in ((short,), (short, full)):
                name = f"{engine}: {plan_name(dims)}"
                yield Case(name, {seed: faster / whole[seed] for seed, faster in found[name].items()}, least=1.0)


CLAIMS = (
    Claim(
        "On the clock a short search, with reordering or without, is faster than one at full width",
        "table 19",
        "about 14 × with HNSW where theory says 128",
        "the second width, alone and reordered ÷ full width, HNSW and exact, speed of single queries, ≥ 1",
        _clocked,
        "×",
    ),
)
