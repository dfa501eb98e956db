"""The report: what was done, what each table says and what it does not, for readers who have not seen the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.demo import figures, tables
from benchmarks.demo.retrieval import BATCH, SHORTLIST, K
from benchmarks.study.page.section import listed, wrapped
from matryoshka import costs
from matryoshka._files import write_all

Record = dict[str, Any]

FIGURES = {
    "accuracy.png": figures.accuracy,
    "cascade.png": figures.cascade,
    "retrieval.png": figures.retrieval,
    "clock.png": figures.clock,
}
CLOSE = 0.005
"""What counts as "as good as exact search" in the summary: half a point of mAP@10."""

AS_FAST = 0.9
"""Share of the speed of another plan from which on a simpler one does as well."""

CROWDED = 2
"""Rows that score alike, as a multiple of those wanted, that explain a slow choice among them."""

WAYS = "alone", "batch"

SMALL_CORPUS = 10_000
"""Rows below which a search takes hardly longer than the call."""

ALIKE = 0.01
"""What counts as a difference between methods: a point of accuracy."""


def write(record: Record, folder: Path) -> list[Path]:
    """Write figures, report.md and results.json into `folder`, each whole or not at all; return their paths."""
    contents = {folder / name: draw(record) for name, draw in FIGURES.items()}
    contents[folder / "report.md"] = text(record).encode()
    contents[folder / "results.json"] = (json.dumps(record, indent=1) + "\n").encode()
    write_all(contents)
    return list(contents)


def console(record: Record) -> str:
    """Return the tables and the summary as aligned text."""
    every = [*_accuracy_tables(record), tables.cascades(record), *_retrieval_tables(record)]
    lines = "\n".join(f"- {line.replace('*', '')}" for line in _summary(record))
    return "\n\n".join([*(table.text() for table in every), f"In short\n{lines}"])


def text(record: Record) -> str:
    """Return the report in Markdown."""
    sections = (_opening, _method, _prefixes, _cascades, _retrieval, _limits, _how)
    blocks = "\n\n".join(section(record) for section in sections).split("\n\n")
    return "\n\n".join(map(wrapped, blocks)) + "\n"


def _opening(record: Record) -> str:
    lines = "\n".join(f"- {line}" for line in _summary(record))
    return f"""# One embedding, many widths: {record["data"]["name"]}

A network usually turns an item into a fixed number of numbers, its *embedding*. Matryoshka representation learning
(MRL) trains the embedding so that its first 2, 4, 8, … numbers are good embeddings by themselves. One network then
serves every budget: short prefixes where speed counts, the whole where accuracy does. This report trains such networks
and measures three uses of them.

{lines}"""


def _summary(record: Record) -> list[str]:
    cascades = [_cascade_line(record, found) for found in record["cascades"] if found["network"] == "MRL"]
    return [_prefix_line(record), *cascades, *_search_lines(record)]


def _prefix_line(record: Record) -> str:
    linear, dims = record["linear"], record["settings"]["dims"]
    behind = {dim: _mean(linear["FF"], dim) - _mean(linear["MRL"], dim) for dim in dims}
    worst = max(dims, key=lambda dim: behind[dim])
    where = f" (at {worst} numbers)" if behind[worst] > 0 else ""
    return (
        f"**Prefixes.** One MRL network stands in for {len(dims)} networks trained for one width each: at no width is "
        f"it more than {100 * max(behind[worst], 0):.1f} points of accuracy behind the network of that width{where}."
    )


def _cascade_line(record: Record, found: Record) -> str:
    used, reached, full = found["expected_dim"]["mean"], found["accuracy"]["mean"], max(record["settings"]["dims"])
    fixed = record["linear"]["FF"]
    rivals = [int(dim) for dim in fixed if fixed[dim]["mean"] >= reached]
    need = f"needs {min(rivals)} numbers for that" if rivals else "does not get there at any width"
    return (
        f"**Stopping early** (thresholds: {found['calibration']}). Answering from the shortest prefix that is sure "
        f"enough gets {100 * reached:.1f}% right with {used:.1f} numbers per row on average, {full / used:.0f} times "
        f"fewer than all {full}, which get {100 * found['full_accuracy']['mean']:.1f}%. "
        f"A network trained for one width {need}."
    )


def _search_lines(record: Record) -> list[str]:
    """Name the simplest plan that does as well as any, and say which are slow for what they count."""
    plans, n = record["plans"]["large"], record["settings"]["large"]
    full = tables.full_width(plans)
    good = [plan for plan in plans if plan is not full and plan["map"] >= full["map"] - CLOSE]
    if not good:
        return [f"**Searching.** No other plan came within {100 * CLOSE:g} points of exact search in {n:,} rows."]
    cheapest = min(good, key=lambda plan: plan["multiply_adds"])
    as_fast = [plan for plan in good if all(tables.faster(cheapest, plan, way) >= AS_FAST for way in WAYS)]
    simplest = min(as_fast, key=lambda plan: (len(plan["dims"]), plan["multiply_adds"]))
    line = (
        f"**Searching.** Among {n:,} rows, the plan *{tables.name(simplest)}* finds neighbours as good as exact search "
        f"at {full['dims'][0]} dimensions (mAP@10 {100 * simplest['map']:.1f} against {100 * full['map']:.1f}%) with "
        f"{_fewer(full, simplest)} times fewer multiply-adds; the clock says {_faster(full, simplest)}."
    )
    if simplest is not cheapest:
        line += (
            f" *{tables.name(cheapest)}* counts {_fewer(full, cheapest)} times fewer in more steps, but is hardly "
            f"faster: {_faster(full, cheapest)}."
        )
    return [line, *_slow_lines(plans)]


def _slow_lines(plans: list[Record]) -> list[str]:
    """Explain exact searches that take longer than a wider one in batches: by rows that score the same."""
    exact = [plan for plan in plans if plan["kind"] == "exact"]
    lines = []
    for plan in exact:
        quickest = min(exact, key=lambda other: other["seconds"]["batch"])
        crowded = plan["near_ties"] >= CROWDED * K
        if crowded and quickest["dims"] > plan["dims"] and tables.faster(plan, quickest, "batch") > 1 / AS_FAST:
            lines.append(
                f"**Not faster.** *{tables.name(plan)}* counts less than *{tables.name(quickest)}* and takes "
                f"{tables.faster(plan, quickest, 'batch'):.1f} times as long in batches: for a query, "
                f"{plan['near_ties']:,.0f} rows score like the last of the best {K} to six digits, and are to be told "
                "apart."
            )
    return lines


def _fewer(full: Record, plan: Record) -> str:
    return f"{full['multiply_adds'] / plan['multiply_adds']:.1f}"


def _faster(full: Record, plan: Record) -> str:
    alone, batch = (f"{tables.faster(full, plan, way):.1f}" for way in WAYS)
    return f"{alone} times faster for single queries and {batch} times in batches of {BATCH}"


def _method(record: Record) -> str:
    data, settings = record["data"], record["settings"]
    dims = listed([*map(str, settings["dims"])])
    cut = "The test rows came with the set." if data["own_test_rows"] else "Each run cuts them anew."
    return f"""## What was done

**Data.** {data["name"]}: {data["n_features"]} features per row, {data["n_classes"]} classes; {data["train"]:,} rows to
train on, {data["calibration"]:,} held out to choose thresholds, {data["test"]:,} to test. {cut} Every number below is
measured on test rows{_over_runs(record)}.

**Networks.** All are the same small one: two linear layers with batch normalisation, giving
{max(settings["dims"])} numbers, and a linear classifier on top. They differ in what the classifier reads in training:

- **MRL**: {len(settings["dims"])} classifiers read the first {dims} numbers; their losses are added up.
- **MRL-E**: the same with a single classifier, of which each prefix uses the leading columns: no more
  parameters than a plain classifier has.
- **FF** (fixed feature): {len(settings["dims"])} separate networks, each trained for one width only. What MRL has to
  match.

Three more baselines shrink the widest FF network *after* training: **SVD** and **PCA** project it on its strongest
directions, **random columns** keeps some of its numbers. PCA and random columns get a classifier fitted anew; SVD for
the linear classifier cuts the rank of its weights and still reads all {max(settings["dims"])} numbers, and from rank
{data["n_classes"]} on it changes nothing."""


def _prefixes(record: Record) -> str:
    linear, neighbor = _accuracy_tables(record)
    return f"""## 1. Each prefix by itself

**{linear.title}**

{linear.markdown()}

**{neighbor.title}**

{neighbor.markdown()}

The columns MRL and MRL-E each come from one network that serves all widths; every number under FF comes from a network
of its own. Where MRL keeps up with FF, training for many widths at once cost nothing. Where SVD, PCA and random columns
fall behind, short embeddings have to be learned and cannot be cut from a finished network.

![Accuracy against the numbers kept, for the linear classifier and the nearest neighbour](accuracy.png)"""


def _cascades(record: Record) -> str:
    full = max(record["settings"]["dims"])
    return f"""## 2. Stopping early: a cascade

Each row starts at the shortest prefix. If the most likely class is likely enough, that is the answer; otherwise the
next prefix is asked. The thresholds are chosen on the held-out rows, in two ways. *Published*, the rule of the paper:
for each pair of neighbouring prefixes, the smallest threshold with the best accuracy. *Certified*: the lowest
thresholds whose promise survives an exact test, that with 90% certainty at most 1% of new rows are answered wrongly
although all {full} numbers would have been right.

{tables.cascades(record).markdown()}

*Expected dim* is the mean width at which rows stop: what one shared classifier (MRL-E) pays, because it only adds
columns. *Summed dim* adds up all prefixes asked on the way: what separate classifiers (MRL) pay. *Saved* compares each
with always reading {full}. The published rule promises nothing about new rows; compare *accuracy* with *full width* to
see what it gave away here. *Certified* loses the full width's right answer on at most 1 % of new rows, *without labels*
answers otherwise than the full width on at most 1 %, each with 90 % probability. With as few held-out rows as here a
promise costs savings.

![Accuracy of the cascades against the numbers they use](cascade.png)

Each cascade is drawn once for every width at which it has to stop at the latest, from {record["settings"]["dims"][1]}
to {full}; the points bunch where hardly a row goes on."""


def _retrieval(record: Record) -> str:
    small, large = _retrieval_tables(record)
    settings = record["settings"]
    short, full = settings["dims"][len(settings["dims"]) // 2 - 1], max(settings["dims"])
    stored = costs.index_bytes(settings["large"], full) / 1e6
    separate = costs.separate_indexes_bytes(settings["large"], settings["dims"]) / 1e6
    return f"""## 3. Searching with prefixes

Test rows ask for the ten nearest rows by cosine; a neighbour is right if it has the label of the query. Three kinds of
plans share one MRL network: *exact {short}* compares with every row on {short} numbers; *adaptive {short} > {full}*
takes the {SHORTLIST} best of that and orders them by {full} numbers; a *funnel* gets to {full} in steps while its list
shrinks to ten.
mAP@10 is the mean over queries of 1/10 Σ (precision up to each right neighbour): 100% if all ten are right.

**{small.title}**

{small.markdown()}

**{large.title}**

{large.markdown()}

*Theory* and *clock* say how many times less, and faster, than exact search at {full} dimensions: by
multiply-adds, and by the median time per query, asked one by one (*alone*) or {BATCH} at once (*in batch*). One
store of {stored:.0f} MB serves all widths, where separate networks would fill {separate:.0f} MB.

![mAP@10 against multiply-adds per query](retrieval.png)

Along each line the width of the first comparison grows from {settings["dims"][0]}. Among many rows reordering a short
list costs next to nothing, so *adaptive* and *funnel* pay hardly more than *exact* at the width they start from.

![Theory beside clock](clock.png)"""


def _limits(record: Record) -> str:
    data, settings, alike = record["data"], record["settings"], _alike_from(record)
    lines = []
    if alike is not None:
        lines.append(
            f"""{data["name"].capitalize()} is too easy to tell the methods apart from {alike} numbers on: all but
            random columns lie within a point of each other, where one test row is {100 / data["test"]:.2g} points."""
        )
    if data["train"] < SMALL_CORPUS:
        lines.append(
            f"""A search among {data["train"]:,} rows takes hardly longer than the call itself, so there the clock
            cannot show what theory says."""
        )
    lines += [
        f"""The {settings["large"]:,} rows give the clock something to do, but they are not real: each lies at a random
        point between two training rows of one class and went through the network of the first run. Their mAP@10, of one
        run and a few queries, is fit only for comparing the plans with each other.""",
        f"""The clock is that of one machine with {record["environment"]["threads"]} threads. Choosing the best
        candidates and reading memory take time but no multiply-adds, and with {max(settings["dims"])} numbers per row
        there is little else to save; the embeddings of the paper have 2,048.""",
        f"""All networks are small, and {data["calibration"]:,} rows chose the thresholds. Differences no larger than
        the spread between runs mean nothing.""",
    ]
    return "## What this does not show\n\n" + "\n".join(f"- {line}" for line in lines)


def _alike_from(record: Record) -> int | None:
    """Return the width from which on all methods but random columns lie within `ALIKE`, by both judges; or None."""
    alike = None
    for dim in reversed(record["settings"]["dims"]):
        for judge in ("linear", "nearest_neighbor"):
            shares = [_mean(found, dim) for method, found in record[judge].items() if method != "random columns"]
            if max(shares) - min(shares) > ALIKE:
                return alike
        alike = dim
    return alike


def _how(record: Record) -> str:
    settings, machine = record["settings"], record["environment"]
    return f"""## How it was run

Seed{"s" * (settings["runs"] > 1)} {listed([*map(str, settings["seeds"])])}; each network saw
{settings["training"]["steps"]:,} batches or {settings["training"]["epochs"]} passes over the rows, whichever is more.
Python {machine["python"]}, NumPy {machine["numpy"]}, PyTorch {machine["torch"]}, matryoshka {machine["matryoshka"]},
{machine["machine"]}; one thread for training, {machine["threads"]} for the timed searches; {record["seconds"]:.0f} s in
all. All numbers, with those of each run, are in [results.json](results.json). The same seed gives the same accuracies
on the same machine; the times are the clock's.

Kusupati et al., *Matryoshka Representation Learning*, NeurIPS 2022, [arXiv:2205.13147](https://arxiv.org/abs/2205.13147)."""


def _accuracy_tables(record: Record) -> list[tables.Table]:
    return [
        tables.accuracy(record, "linear", f"Accuracy of a linear classifier (%){_over_runs(record)}"),
        tables.accuracy(record, "nearest_neighbor", f"Accuracy of the nearest neighbour (%){_over_runs(record)}"),
    ]


def _retrieval_tables(record: Record) -> list[tables.Table]:
    small, large = record["data"]["train"], record["settings"]["large"]
    return [
        tables.retrieval(record, "small", f"Search among the {small:,} training rows"),
        tables.retrieval(record, "large", f"Search among {large:,} mixtures of training rows"),
    ]


def _over_runs(record: Record) -> str:
    n = record["settings"]["runs"]
    return f", mean ± standard deviation of {n} runs" if n > 1 else ""


def _mean(found: Record, dim: int) -> float:
    return found[str(dim)]["mean"]
