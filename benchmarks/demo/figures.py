"""The figures of the report, each made of the record of the study and returned as the bytes of a PNG."""

from __future__ import annotations

from typing import Any

from benchmarks.demo.tables import faster, full_width
from benchmarks.demo.tables import name as plan_name
from benchmarks.study.page.draw import Bar, Line, Panel, curves, dots
from benchmarks.study.page.series import Curve, Seeds

Record = dict[str, Any]

STYLES = {"random columns": "Rand", "exact": "MRL", "adaptive": "Slim", "funnel": "SVD"}
"""Systems of the study whose colour and mark other names have."""


def accuracy(record: Record) -> bytes:
    """Draw accuracy against width, linear head beside nearest neighbour."""
    titles = {"linear": "by a linear classifier", "nearest_neighbor": "by the nearest training row"}
    panels = [
        Panel(
            f"Accuracy {title}",
            [_line(method, _by_width(found)) for method, found in record[judge].items()],
            record["settings"]["dims"],
        )
        for judge, title in titles.items()
    ]
    return curves(panels, xlabel="numbers kept of each embedding", ylabel="right (%, stretched axis)")


def cascade(record: Record) -> bytes:
    """Draw accuracy of the capped cascades against expected width, beside networks of one fixed width."""
    dims = record["settings"]["dims"]
    lines = [Line("one network per width (FF)", _by_width(record["linear"]["FF"]), "FF")]
    for found in record["cascades"]:
        if found["calibration"] != "without labels":  # so near the certified one that neither could be read
            points = {point["expected_dim"]["mean"]: _seeds(point["accuracy"]) for point in found["curve"]}
            joined = "-" if found["calibration"] == "published" else "--"
            name = f"{found['network']} ({found['calibration']})"
            lines.append(Line(name, dict(sorted(points.items())), found["network"], joined))
    return curves(
        [Panel("Cascades that stop early, against networks of one fixed width", lines, dims)],
        xlabel="expected dimension: numbers used per row, on average\n"
        f"(points of a cascade: it stops at {', '.join(map(str, dims[1:]))} at the latest)",
        ylabel="right (%, stretched axis)",
    )


def retrieval(record: Record) -> bytes:
    """Draw mAP@10 against multiply-adds per query, for each kind of plan and both corpora."""
    titles = {
        "small": f"among the {record['data']['train']:,} training rows",
        "large": f"among {record['settings']['large']:,} mixtures of them",
    }
    panels = []
    for size, title in titles.items():
        plans = record["plans"][size]
        lines = [
            _line(kind, {plan["multiply_adds"] / 1e3: _seeds(plan["map"]) for plan in plans if plan["kind"] == kind})
            for kind in ("exact", "adaptive", "funnel")
        ]
        if size == "small":
            fixed = zip(lines[0].points, record["fixed_map"].values(), strict=True)
            lines.append(Line("exact (FF)", {count: _seeds(found) for count, found in fixed}, "FF"))
        panels.append(Panel(f"Ten neighbours {title}", lines))
    widths = ", ".join(map(str, record["settings"]["dims"]))
    return curves(
        panels,
        xlabel=f"thousand multiply-adds per query; along each line the first comparison takes {widths} numbers",
        ylabel="mAP@10 (%, stretched axis)",
    )


def clock(record: Record) -> bytes:
    """Draw how many times faster than exact search each plan is in the large corpus, by count and by the clock."""
    full = full_width(record["plans"]["large"])
    bars = [
        Bar(plan_name(plan), [full["multiply_adds"] / plan["multiply_adds"], *_on_the_clock(full, plan)])
        for plan in record["plans"]["large"]
        if plan is not full
    ]
    return dots(
        [(f"Search in {record['settings']['large']:,} rows: saved in theory and on the clock", bars)],
        ("by count", "clock, one query", "clock, 64 queries"),
        xlabel=f"times faster than exact search at {full['dims'][0]} dimensions (right is better)",
    )


def _on_the_clock(full: Record, plan: Record) -> list[float]:
    return [faster(full, plan, way) for way in ("alone", "batch")]


def _line(name: str, points: Curve) -> Line:
    return Line(name, points, STYLES.get(name, name))


def _by_width(found: Record) -> Curve:
    return {int(dim): _seeds(summary) for dim, summary in found.items()}


def _seeds(found: Record | float) -> Seeds:
    """Return the number of each run; of one that was taken in the first run only, that."""
    return {0: found} if isinstance(found, float) else dict(enumerate(found["runs"]))
