"""Section 3: neighbours found with a short prefix first, by count and by the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study.page import clock
from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, by_width, percent, plan_name, points, range_of, title
from benchmarks.study.page.series import Curve, Seeds, after, less, mean, minus
from benchmarks.study.page.verdicts import Case, Claim, cases

SYSTEMS = ("MRL", "MRL-E", "FF", "SVD", "rotation", "Rand", "Slim")
SHORTLIST = 200
POINT = 0.01
MAP = "mAP@10 (%, stretched axis)"
Key = tuple[tuple[int, ...], tuple[int, ...]]
"""The widths of a plan and the lengths of its lists."""


def section(studies: Sequence[Study]) -> Section:
    """Return what neighbours are worth, and what finding them costs."""
    made = Section("3. Searching")
    made.say(
        """**Asked.** Test rows ask for their ten nearest training rows by cosine; a neighbour is right if it has the
label of the query. How good are neighbours at each width, and does it do to search with few numbers and to reorder what
was found with many?""",
        """**Done.** mAP@10 is the mean over queries of (1/10) Σ over right neighbours of the share of right ones up to
there; the divisor is always ten. *Exact* compares the query with every row at one width. *Adaptive* takes the 200 best
at a short width and orders them by the full one. A *funnel* gets there in steps while its list shrinks to ten. *Bits*
searches one bit a column first. All stages share the one MRL embedding; *adaptive, rotation* does the same with the
rotated FF. Multiply-adds are those of distances, one each,
as the paper counts them.""",
    )
    there = made.missing(studies, "retrieval")
    _widths(made, there)
    _staged(made, there)
    _lengths(made, there)
    clock.show(made, made.missing(studies, "clock"))
    return made


def quality(study: Study, system: str) -> Curve:
    """Return mAP@10 of exact search by width."""
    return study.curve("retrieval", system, "map")


def plans(study: Study, group: str, metric: str = "map", system: str = "MRL") -> dict[Key, Seeds]:
    """Return a number of each plan of a system in a group ("adaptive", "shortlists", "funnels", "bits"), by seed."""
    found: dict[Key, Seeds] = {}
    for seed, record in study.of("retrieval", system).items():
        if group in record:
            for i in range(len(record.get(group))):
                key = tuple(record.get(group, i, "dims")), tuple(record.get(group, i, "keep"))
                found.setdefault(key, {})[seed] = record.number(group, i, metric)
    return found


def _widths(made: Section, studies: Sequence[Study]) -> None:
    panels = [
        Panel(title(study), [Line(name, quality(study, name)) for name in SYSTEMS], list(quality(study, "MRL")))
        for study in studies
    ]
    if not any(line.points for panel in panels for line in panel.lines):
        return
    image = curves(panels, xlabel="numbers kept of each embedding", ylabel=MAP)
    made.show("retrieval-widths", "Quality of the ten nearest neighbours by width, exact search", image, ["retrieval"])
    gaps = {title(study): range_of(less(quality(study, "MRL"), quality(study, "FF"))) for study in studies}
    made.seen("MRL minus FF in mAP@10, in points:", gaps)
    for study in studies:
        made.table(
            f"{title(study)}: mAP@10 in percent, exact search", *by_width({s: quality(study, s) for s in SYSTEMS})
        )


def _staged(made: Section, studies: Sequence[Study]) -> None:
    panels = [panel for study in studies if (panel := _by_count(study)).lines]
    if not panels:
        return
    image = curves(
        panels,
        xlabel="KiB read per query: four bytes a multiply-add, one bit a column in bits",
        ylabel=MAP,
        labels="end",
    )
    caption = "Quality against work: along each curve the width of the first stage grows"
    made.show("retrieval-stages", caption, image, ["retrieval"])
    made.seen(
        "The cheapest plan within a tenth of a point of exact search at full width:",
        {title(study): _cheapest(study) for study in studies},
    )
    for study in studies:
        found = {key[0]: seeds for key, seeds in plans(study, "adaptive").items()}
        dims = sorted({dim for key in found for dim in key})
        rows = [
            [f"search at {a}", *(percent(found.get((a, b) if a < b else (a,)) if a <= b else None) for b in dims)]
            for a in dims
        ]
        made.table(
            f"{title(study)}: mAP@10 in percent, shortlist of {SHORTLIST} at one width, reordered at another",
            ["", *(f"order at {b}" for b in dims)],
            rows,
        )
        _funnels(made, study)


def _by_count(study: Study) -> Panel:
    """Return quality against bytes read: exact search, and what goes from a shortlist of 200 to the full width."""
    kinds = (
        ("exact", "MRL", "adaptive", "FF"),
        ("adaptive", "MRL", "adaptive", "MRL"),
        ("funnel", "MRL", "funnels", "SVD"),
        ("bits first", "MRL", "bits", "PCA"),
        ("adaptive, rotation", "rotation", "adaptive", "rotation"),
    )
    lines = []
    for kind, system, group, style in kinds:
        found, read = plans(study, group, "map", system), plans(study, group, "bytes", system)
        full = max((dims[-1] for dims, _ in found), default=0)
        chosen: Curve = {}
        for (dims, keep), seeds in found.items():
            if len(dims) == 1 if kind == "exact" else keep[:1] == (SHORTLIST,) and dims[-1] == full:
                known = chosen.setdefault(mean(read[dims, keep]) / 1024, seeds)
                chosen[mean(read[dims, keep]) / 1024] = max(known, seeds, key=mean)  # of those that read as much
        lines.append(Line(kind, dict(sorted(chosen.items(), key=lambda point: point[0])), style))
    return Panel(title(study), [line for line in lines if line.points])


def _cheapest(study: Study) -> str:
    """Say which plan is the cheapest that loses no more than a tenth of a point."""
    adaptive, funnels = plans(study, "adaptive"), plans(study, "funnels")
    if not adaptive:
        return ""
    full = max(dims for dims, _ in adaptive if len(dims) == 1)
    counts = plans(study, "adaptive", "multiply_adds") | plans(study, "funnels", "multiply_adds")
    exact = adaptive[full, ()]
    good = {key: seeds for key, seeds in (adaptive | funnels).items() if mean(seeds) >= mean(exact) - POINT / 10}
    key = min(good, key=lambda key: mean(counts[key]))
    saved = mean(counts[full, ()]) / mean(counts[key])
    quality = f"{percent(good[key])} against {percent(exact)} %"
    return f"{plan_name(*key)}: {quality} with {saved:.1f} times fewer multiply-adds."


def _funnels(made: Section, study: Study) -> None:
    found, counts = plans(study, "funnels"), plans(study, "funnels", "multiply_adds")
    exact = {key: seeds for key, seeds in plans(study, "adaptive").items() if len(key[0]) == 1}
    if not found or not exact:
        return
    full = max(exact)
    whole = mean(plans(study, "adaptive", "multiply_adds")[full])
    rows = [
        [plan_name(*key), percent(seeds), points(minus(seeds, exact[full])), f"{whole / mean(counts[key]):.1f} ×"]
        for key, seeds in found.items()
    ]
    header = ["funnel", "mAP@10 %", "against exact", "saves"]
    made.table(f"{title(study)}: funnels, and times fewer multiply-adds than exact search at full width", header, rows)


def _lengths(made: Section, studies: Sequence[Study]) -> None:
    panels = []
    for study in studies:
        by_width: dict[int, Curve] = {}
        for (dims, keep), seeds in plans(study, "shortlists").items():
            if keep:
                by_width.setdefault(dims[0], {})[keep[0]] = seeds
        lines = [Line(f"search at {dim}", curve, f"at {i}") for i, (dim, curve) in enumerate(by_width.items())]
        panels.append(Panel(title(study), lines, list(next(iter(by_width.values()), ()))))
    if not any(panel.lines for panel in panels):
        return
    image = curves(panels, xlabel="length of the shortlist", ylabel=MAP)
    caption = "How long a shortlist has to be: the three shortest widths, reordered at the full one"
    made.show("retrieval-shortlists", caption, image, ["retrieval"])
    longer = {title(study): longest_minus_shortlist(study) for study in studies}
    made.seen(
        f"Four times the {SHORTLIST} candidates of the paper change mAP@10, searched at the second width, by points:",
        {name: points(gain) for name, gain in longer.items() if gain},
    )


def longest_minus_shortlist(study: Study) -> Seeds:
    """Return what the longest shortlist gains on one of 200, searched at the second width."""
    found = {key: seeds for key, seeds in plans(study, "shortlists").items() if key[1]}
    widths = sorted({dims[0] for dims, _ in found})
    at = {keep[0]: seeds for (dims, keep), seeds in found.items() if len(widths) > 1 and dims[0] == widths[1]}
    return minus(at[max(at)], at[SHORTLIST]) if SHORTLIST in at and max(at) > SHORTLIST else {}


def _single(study: Study, group: str, start: int, length: int | None = None) -> Iterator[Case]:
    """Return a case for a plan that starts at the width number `start`, against exact search at full width."""
    exact = {dims[0]: seeds for (dims, _), seeds in plans(study, "adaptive").items() if len(dims) == 1}
    if not exact:
        return
    dims = sorted(exact)
    full = dims[-1]
    for (at, keep), seeds in plans(study, group).items():
        if len(at) > 1 and at[0] == dims[start] and at[-1] == full and keep[0] == (length or SHORTLIST):
            yield Case(plan_name(at), minus(seeds, exact[full]), least=-POINT / 2)


def _saved(study: Study) -> Iterator[Case]:
    """Return a case for how many times fewer multiply-adds the funnel from the second width needs."""
    counts = plans(study, "funnels", "multiply_adds")
    whole = {dims: seeds for (dims, _), seeds in plans(study, "adaptive", "multiply_adds").items() if len(dims) == 1}
    starts = sorted({dims[0] for dims, _ in counts})
    for (dims, keep), seeds in counts.items():
        if whole and len(starts) > 1 and dims[0] == starts[1] and keep[0] == SHORTLIST:
            saved = {seed: mean(whole[max(whole)]) / value for seed, value in seeds.items()}
            yield Case(f"{plan_name(dims)}, of {dims[-1] / dims[0]:g}", saved, least=0.9 * dims[-1] / dims[0])


def _lasting(study: Study) -> Iterator[Case]:
    if gain := longest_minus_shortlist(study):
        yield Case("", gain, most=POINT / 2)


CLAIMS = (
    Claim(
        "Neighbours are better with MRL than with FF of the same width",
        "table 8, figure 7",
        "mAP@10, MRL − FF: +3.3 at 8, +1.4 at 64, +2.3 at 2048",
        "MRL − FF, mAP@10, > 0 at every width",
        lambda study: cases(less(quality(study, "MRL"), quality(study, "FF")), least=0),
    ),
    Claim(
        "A shared head (MRL-E) costs nothing in neighbours but at the shortest width",
        "tables 8, 9",
        "mAP@10, MRL-E − FF: −1.6 at 8, 0.0 at 16, +0.6 at 64, +2.1 at 2048",
        "MRL-E − FF, mAP@10, ≥ −0.5 from the second width on",
        lambda study: cases(after(less(quality(study, "MRL-E"), quality(study, "FF")), 1), least=-POINT / 2),
    ),
    Claim(
        "A short search whose 200 best are reordered at full width loses nothing",
        "table 11, figure 8",
        "mAP@10, 16 > 2048: 65.27 against 65.20; 8 > 2048: 64.90",
        "from the second width > full − exact at full width, mAP@10, ≥ −0.5",
        lambda study: _single(study, "adaptive", 1),
    ),
    Claim(
        "A funnel whose first list has 200 rows loses nothing either",
        "table 13, figure 8",
        "mAP@10, from 16: 65.19 against 65.20; from 8: 64.62",
        "funnel from the second width − exact at full width, mAP@10, ≥ −0.5",
        lambda study: _single(study, "funnels", 1),
    ),
    Claim(
        "The work falls as the width of the first stage does, since reordering few rows hardly counts",
        "table 13, section 4.3",
        "2048 ÷ 16 = 128; counted with reordering 128 ×, of adaptive search 125 ×",
        "multiply-adds, exact ÷ funnel from the second width, ≥ 0.9 × full ÷ first width",
        _saved,
        "×",
    ),
    Claim(
        "A shortlist of 200 is enough",
        "table 30",
        "mAP@10 saturates at 200 of 1.3 million rows (not so among 4.2 million, table 31)",
        "shortlist of 800 − shortlist of 200, mAP@10, ≤ 0.5",
        _lasting,
    ),
    *clock.CLAIMS,
)
