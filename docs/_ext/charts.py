"""Charts of the guides, drawn by each build from benchmarks/results: a page cannot show what is no longer stored.

A chart is a function that fills the axes it is given; CHARTS says which axes, and the file is named after the function.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from matryoshka import audit, evaluate

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BLUE, RED, GREEN, VIOLET, OCHRE, GREY = "#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cb8", "#c98b1b", "#7f7f7f"
FRAMEWORKS = {"torch": BLUE, "jax": OCHRE, "numpy": GREEN}
JUDGED = (4, 8, 12, 16, 24, 32, 48, 128, 256)
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "svg.hashsalt": "matryoshka",
}


def stored(name: str) -> Any:
    """Read what a suite stored."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def numbers(text: str) -> list[float]:
    """Read figures with blanks between them."""
    return [float(part) for part in text.split()]


def widths(axes: Any, dims: tuple[int, ...], label: str = "columns kept") -> None:
    """Let a doubling be a step of the horizontal axis."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.set_xlabel(label)


def factors(axes: Any, which: str, ticks: tuple[float, ...], *, unit: str = " ×") -> None:
    """Show factors on a logarithmic axis as people write them."""
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}ticks")(ticks, [f"{tick:g}{unit}" for tick in ticks])
    axes.minorticks_off()


def ladder_lines(axes: Any, chosen: dict[str, tuple[str, str]], kind: str = "nearest") -> None:
    """Draw accuracy by width for some of the ladders."""
    records = {record["ladder"]: record for record in stored("fine_tune_ladders")["records"]}
    for name, (label, colour) in chosen.items():
        axes.plot(JUDGED, numbers(records[name][kind]), "o-", ms=3.5, color=colour, label=label)
    widths(axes, (4, 8, 16, 32, 64, 128, 256))
    axes.legend()


def overview(train: Any, decide: Any, retrieve: Any) -> None:
    """Answer the three questions of the first page."""
    ladder_lines(
        train, {"8, 16, 32, …, 256": ("trained nested", BLUE), "256 alone": ("trained plainly, then cut", GREY)}
    )
    train.set(title="Train: a short prefix is good by itself", ylabel="nearest neighbour right, %")
    row = next(row for row in stored("intents")["saved"] if row["head"] == "tied")
    paid = {
        "the full width": 256,
        f"one width, as often right\nin {row['fixed_in']} of {row['draws']} draws": row["fixed"],
        "a cascade,\ncertified": row["paid"],
    }
    bars = decide.barh(list(paid)[::-1], list(paid.values())[::-1], color=[BLUE, GREY, GREY])
    bars[-1].set_alpha(0.6)
    decide.bar_label(bars, fmt="%.0f", padding=3)
    decide.grid(axis="y", visible=False)
    decide.set_xlim(0, 300)
    decide.set(title="Decide: few rows need it all", xlabel="columns used by a row, of 256")
    title = "Funnel: 100,000 x 2,048, best 10, batch 1"
    ways = next(row for row in stored("retrieval")["rows"] if row["title"] == title)["cpu"]["ways"]
    searches = {
        "matryoshka, adaptive": "16 columns, 200 reranked",
        "matryoshka, exact by bounds of 64": "all rows, by bounds",
        "matryoshka, exact": "all rows",
    }
    texts = [f"{label}\nrecall {ways[way]['recall']:.3f}" for way, label in searches.items()]
    bars = retrieve.barh(texts, [1e3 * ways[way]["s"] for way in searches], color=[BLUE, GREEN, GREY])
    retrieve.bar_label(bars, fmt="%.2g", padding=3)
    retrieve.grid(axis="y", visible=False)
    retrieve.set_xlim(0, 30)
    retrieve.set(title="Retrieve: a fraction of the time", xlabel="ms a query, of 100,000 rows")


def ladders(quality: Any, cost: Any) -> None:
    """Show what a denser ladder gains and what it costs."""
    chosen = {
        "256 alone": ("256 alone", GREY),
        "8, 64, 256": ("8, 64, 256", GREEN),
        "8, 16, 32, …, 256": ("8, 16, 32, …, 256", BLUE),
        "every one from 8": ("every one from 8", RED),
        "every 8th, importance 1/m": ("every 8th, importance 1/m", VIOLET),
    }
    ladder_lines(quality, chosen)
    quality.set(ylabel="nearest neighbour right, %")
    records = stored("fine_tune_ladders")["records"]
    base = records[0]
    cost.plot(
        [record["widths"] for record in records],
        [record["loss_s"] / base["loss_s"] for record in records],
        "o",
        color=BLUE,
        label="the loss",
    )
    cost.plot(
        [record["widths"] for record in records],
        [record["step_s"] / base["step_s"] for record in records],
        "s",
        color=GREEN,
        label="the whole step",
    )
    cost.axline((1, 1), (2, 2), color=GREY, ls="--", label="as many losses as widths")
    factors(cost, "x", (1, 3, 10, 30, 100, 300), unit="")
    factors(cost, "y", (1, 3, 10, 30, 100))
    cost.set(xlabel="widths in the ladder", ylabel="CPU time, × one width")
    cost.legend()


def fine_tuning(axes: Any) -> None:
    """Show what each way of tuning a plain classifier reaches."""
    wanted = {
        ("plain", "everything", 1.0, 8): ("trained plainly, then cut", GREY),
        ("PCA, old head", "nothing", 0.0, 0): ("principal components, no training", GREEN),
        ("PCA, old head", "rotation, head", 1.0, 2): ("components and head tuned, encoder as it is", BLUE),
        ("old head", "everything", 0.3, 2): ("everything tuned, without components", RED),
        ("nested from the start", "everything", 1.0, 8): ("nested from the start", VIOLET),
    }
    for record in stored("fine_tune_recipe")["records"]:
        key = (record["way"], record["trained"], record["rate"], record["epochs"])
        if key in wanted:
            label, colour = wanted[key]
            axes.plot((4, 8, 16, 32, 64), numbers(record["test"]), "o-", ms=3.5, color=colour, label=label)
    widths(axes, (4, 8, 16, 32, 64))
    axes.set(ylabel="test images that the head gets right, %")
    axes.legend()


def calibration_rows(paid: Any, broken: Any) -> None:
    """Show what more calibration rows save, and that the promise holds with few."""
    colours = cycle((BLUE, GREEN, OCHRE))
    records = stored("promises_rows")
    for population in dict.fromkeys(record["population"] for record in records):
        colour = next(colours)
        for promise, marker, kind in (("gap", "o-", "labelled"), ("disagreement", "s:", "unlabelled")):
            other = {"labelled": "unlabelled", "unlabelled": "labelled"}[kind]
            some = [r for r in records if (r["population"], r["promise"]) == (population, promise) and not r[other]]
            rows = [record[kind] for record in some]
            name = f"{population}, {kind}"
            paid.plot(rows, [record["expected_dim"] for record in some], marker, ms=3.5, color=colour, label=name)
            broken.plot(rows, [100 * record["broken"] for record in some], marker, ms=3.5, color=colour)
    broken.axhline(10, color=RED, label="at most this")
    paid.set(ylabel="mean exit, of 2,048 columns")
    broken.set(ylabel="draws that broke the promise, %", ylim=(0, 11))
    for axes in (paid, broken):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    for axes in (paid, broken):
        factors(axes, "x", (300, 1000, 3000, 10000), unit="")
        axes.set(xlabel="calibration rows")


def drift(axes: Any) -> None:
    """Show after how many rows the monitor sees a broken promise."""
    records = [record for record in stored("drift") if not record["good_rows"]]
    names = [f"{100 * record['bound']:g} % promised,\n{100 * record['rate']:g} % failed" for record in records]
    axes.barh(names, [record["within_95"] for record in records], color=BLUE, alpha=0.35, label="in 95 % of the runs")
    axes.barh(names, [record["median"] for record in records], color=BLUE, label="in half of the runs")
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="rows looked at until the alarm")
    axes.legend()


def cascade_clock(axes: Any) -> None:
    """Set the clock of a cascade beside what its multiply-adds promise."""
    rows = [row for row in stored("cascade")["rows"] if "factor in theory" in row]
    for head, marker in (("tied", "o"), ("separate", "^")):
        for batch, colour in (("batch 1", OCHRE), ("batch 1,024", BLUE)):
            some = [row for row in rows if row["row"].startswith(head) and row["group"].endswith(batch)]
            axes.plot(
                [row["factor in theory"] for row in some],
                [row["on the clock"] for row in some],
                marker,
                color=colour,
                alpha=0.8,
                label=f"{head} head, {batch}",
            )
    as_promised(axes, (1, 2, 5, 10, 20, 50))


def as_promised(axes: Any, ticks: tuple[float, ...]) -> None:
    """Set times as fast in theory against those on the clock."""
    axes.plot((ticks[0], ticks[-1]), (ticks[0], ticks[-1]), color=GREY, ls="--", label="as promised")
    for which in "xy":
        factors(axes, which, ticks)
    axes.set(xlabel="times as fast, by multiply-adds", ylabel="times as fast, on the clock")
    axes.figure.legend(fontsize=8, loc="outside lower center", ncols=2)


def losses(full: Any, loop: Any) -> None:
    """Set all losses beside one full-width loss, and beside a loop over prefixes."""
    rows = [row for row in stored("losses")["rows"] if row["framework"] in FRAMEWORKS]
    cases = list(dict.fromkeys(row["case"] for row in rows))[::-1]
    for row in rows:
        at, ours, colour = cases.index(row["case"]), row["cpu"]["ways"]["ours"], FRAMEWORKS[row["framework"]]
        full.plot(ours["ratio"], at, "o", color=colour, alpha=0.85)
        if "loop" in row["cpu"]["ways"]:
            loop.plot(ours["faster_than_loop"], at, "o", color=colour, alpha=0.85)
            loop.plot(row["multiply_adds"]["loop"] / row["multiply_adds"]["ours"], at, "k|", ms=12)
        if row["framework"] == "torch" and {"limit_s", "ratio"} <= set(ours):
            base = row["cpu"]["ways"]["full"]
            per = row["multiply_adds"]["ours"] / row["multiply_adds"]["full"] if row["per_multiply_add"] else 1
            full.plot(ours["limit_s"] / base["limit_s"] / per, at, "k|", ms=12)
    full.set_yticks(range(len(cases)), cases)
    loop.set_yticks(range(len(cases)), [""] * len(cases))
    loop.set_ylim(full.get_ylim())  # one row, one case
    factors(full, "x", (1, 1.5, 2, 3, 5))
    factors(loop, "x", (1, 2, 5, 10, 20))
    full.set(xlabel="CPU time, × one full-width loss")
    loop.set(xlabel="times as fast as a loop over prefixes")
    marks = [Line2D([], [], marker="o", ls="", color=colour) for colour in FRAMEWORKS.values()]
    marks.append(Line2D([], [], marker="|", ls="", color="k", ms=12))
    full.figure.legend(marks, ["PyTorch", "JAX", "NumPy", "in theory"], loc="outside lower center", ncols=4)


def retrieval_clock(axes: Any) -> None:
    """Set searches in stages beside what their multiply-adds promise."""
    rows = [row for row in stored("retrieval")["rows"] if row["group"] in {"ladder", "funnel"}]
    for clock, marker in (("cpu", "o"), ("wall", "^")):
        for batch, colour in ((1, OCHRE), (64, BLUE)):
            points = [
                (ways["matryoshka, exact"]["multiply_adds"] / way["multiply_adds"], 1 / way["ratio"])
                for row in rows
                if row["batch"] == batch
                for ways in [row[clock]["ways"]]
                for name, way in ways.items()
                if name in {"matryoshka, funnel", "matryoshka, adaptive"}
            ]
            time = "CPU time, one thread" if clock == "cpu" else "wall clock, two threads"
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=f"batch {batch}, {time}")
    as_promised(axes, (5, 10, 20, 50, 100, 200))


def recall_time(decaying: Any, real: Any) -> None:
    """Set recall against the time of a query, for every way that was measured."""
    records = stored("retrieval")["rows"]
    for axes, title, note in (
        (decaying, "Funnel: 100,000 x 768, best 10, batch 64", "100,000 × 768, decaying columns"),
        (real, "End to end: 1,000,000 x 768, real-like, best 10, batch 64", "1,000,000 × 768, like real text"),
    ):
        row = next(record for record in records if record["title"] == title)
        markers = cycle("os^DvP*X<>p")
        for name, way in sorted(row["cpu"]["ways"].items(), key=lambda named: named[1]["s"]):
            colour = BLUE if name.startswith("matryoshka") else OCHRE if name.startswith("faiss") else GREY
            time = 1e3 * way["s"] / row["batch"]
            axes.plot(time, way["recall"], next(markers), ms=6, color=colour, label=name)
        factors(axes, "x", (0.2, 0.5, 1, 2, 5, 10) if axes is decaying else (3, 5, 10, 20, 50), unit="")
        axes.set(title=note, xlabel="ms a query, in batches of 64 (one thread)", ylabel="recall@10")
        axes.legend(title="fastest first", fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)


def verdicts(ordered: Any, shuffled: Any) -> None:
    """Draw what the two audits of the page about audits compare."""
    rows = np.random.default_rng(0).normal(size=(400, 64)) * 0.95 ** np.arange(64)
    mixed = rows[:, np.random.default_rng(1).permutation(64)]
    for axes, embeddings, title in ((ordered, rows, "as they are: yes"), (shuffled, mixed, "columns shuffled: no")):
        found = audit(embeddings).rows
        dims = [row.dim for row in found]
        low, high = ([100 * getattr(row, name) for row in found] for name in ("random_low", "random_high"))
        axes.fill_between(dims, low, high, color=GREY, alpha=0.25)
        for name, style, colour, label in (
            ("kept", "o-", BLUE, "first columns"),
            ("random", "-", GREY, "random columns, and their range"),
            ("rotated", "o--", GREEN, "first columns after a rotation"),
        ):
            axes.plot(dims, [100 * getattr(row, name) for row in found], style, ms=3.5, color=colour, label=label)
        widths(axes, tuple(dims))
        axes.set(title=title, ylim=(0, 102))
    ordered.set_ylabel("of the 10 nearest neighbours, %")
    ordered.figure.legend(*ordered.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def quality(axes: Any) -> None:
    """Draw what the page about measures evaluates."""
    rng = np.random.default_rng(0)
    spread = 0.95 ** np.arange(64)
    rows = rng.normal(size=(500, 64)) * spread
    queries = rows[:100] + 0.3 * rng.normal(size=(100, 64)) * spread
    own = np.array([(query, query, 1) for query in range(100)])
    scores = evaluate(rows, queries, qrels=own, dims=(2, 4, 8, 16, 32, 64)).scores
    names = {"ndcg@10": ("nDCG@10", BLUE), "mrr@10": ("MRR@10", OCHRE), "recall@100": ("recall@100", GREEN)}
    for measure, (label, colour) in names.items():
        axes.plot(list(scores), [found[measure] for found in scores.values()], "o-", ms=3.5, color=colour, label=label)
    widths(axes, tuple(scores))
    axes.set(ylabel="found at this width", ylim=(0, 1.04))
    axes.legend()


CHARTS: dict[Callable[..., None], tuple[int, float]] = {
    overview: (3, 2.9),
    ladders: (2, 3.4),
    fine_tuning: (1, 3.4),
    calibration_rows: (2, 4.2),
    drift: (1, 2.8),
    cascade_clock: (1, 4.6),
    losses: (2, 4.4),
    retrieval_clock: (1, 4.6),
    recall_time: (2, 5.4),
    verdicts: (2, 3.2),
    quality: (1, 2.8),
}
"""How many axes a chart has side by side, and its height in inches."""


def draw(app: Any) -> None:
    """Draw all charts into docs/generated/charts."""
    folder = Path(app.srcdir, "generated", "charts")
    folder.mkdir(parents=True, exist_ok=True)
    for chart, (columns, height) in CHARTS.items():
        with rc_context(STYLE):
            figure = Figure(figsize=((5.6, 9.2, 11.4)[columns - 1], height), layout="constrained")
            chart(*figure.subplots(1, columns, squeeze=False)[0])
            figure.savefig(folder / f"{chart.__name__}.svg", metadata={"Date": None})


def setup(app: Any) -> dict[str, bool]:
    """Draw before pages are read."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
