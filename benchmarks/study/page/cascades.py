"""Section 2: cascades, where the shortest prefix that is sure enough answers, and how widths differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Record, Study
from benchmarks.study.page.section import Section, number, percent, points, title
from benchmarks.study.page.series import Curve, Seeds, mean, minus
from benchmarks.study.page.verdicts import Case, Claim

NETWORKS = ("MRL", "MRL-E")
WAYS = ("published", "certified", "without labels")
NUMBERS = ("accuracy", "gap", "expected_dim", "cumulative_dim")
POINT = 0.01


def section(studies: Sequence[Study]) -> Section:
    """Return what stopping early saves, and how widths differ."""
    made = Section("2. Stopping early")
    made.say(
        """**Asked.** Most rows are easy. How many numbers does a row need on average if each is answered by the
shortest prefix that is sure enough, and what does that cost in accuracy?""",
        """**Done.** A row starts at the shortest prefix; if the largest probability exceeds a threshold, that is the
answer, else the next prefix is asked. Thresholds come from rows held out of training, in three ways. *Published*: the
rule of the paper, for each pair of neighbouring prefixes the smallest threshold with the best accuracy; it promises
nothing about new rows. *Certified*: the cheapest thresholds that keep a promise, that with 90 % probability at most 1 %
of new rows lose an answer that the full width gets right. *Without labels*: the same for answers other than the full
width's. *Expected* is the mean width at which rows stop, what one shared head pays; *cumulative* adds up all prefixes
asked on the way, what a head of its own for each width pays.""",
    )
    there = made.missing(studies, "cascade")
    panels = [_panel(study) for study in there]
    if any(panel.lines for panel in panels):
        image = curves(
            panels,
            xlabel="expected width: numbers used per row, on average",
            ylabel="right (%, stretched axis)",
            labels="end",
        )
        caption = (
            "Cascades of MRL, one point for each width at which rows have to stop at the latest, and networks of one "
            "fixed width (FF)"
        )
        made.show("cascades", caption, image, ["cascade"])
    made.seen("What the cascades of MRL reach and use:", {title(study): _seen(study) for study in there})
    for study in there:
        _table(made, study)
    _differences(made, there)
    return made


def alone(study: Study, system: str) -> Curve:
    """Return the accuracy of each width of a system by itself, on the rows on which cascades are judged."""
    return study.curve("cascade", system, "alone")


def chosen(study: Study, system: str, way: str, *keys: str) -> Seeds:
    """Return a number of the cascade whose thresholds were chosen in some way, for each seed."""
    there = {seed: record for seed, record in study.of("cascade", system).items() if "cascades" in record}
    return {seed: record.number("cascades", way, *keys) for seed, record in there.items()}


def rival(study: Study, reached: Seeds) -> float | None:
    """Return the narrowest FF that is as good in the mean; None if none is."""
    fixed = alone(study, "FF")
    return next((dim for dim, seeds in fixed.items() if mean(seeds) >= mean(reached)), None)


def _panel(study: Study) -> Panel:
    fixed = alone(study, "FF")
    found = [Line("FF", fixed, "FF")]
    for way, style in (("published", "MRL"), ("certified", "SVD"), ("without labels", "PCA")):
        found.append(Line(f"MRL, {way}", _by_cap(study, "MRL", way), style))
    return Panel(title(study), [line for line in found if line.points], list(fixed))


def _by_cap(study: Study, system: str, way: str) -> Curve:
    """Return accuracy by expected width (its mean over the seeds), a point a cap."""
    records = {seed: record for seed, record in study.of("cascade", system).items() if "cascades" in record}
    found: Curve = {}
    for i in range(min((len(record.get("cascades", way, "curve")) for record in records.values()), default=0)):
        at = {s: record.number("cascades", way, "curve", i, "expected_dim") for s, record in records.items()}
        reached = {s: record.number("cascades", way, "curve", i, "accuracy") for s, record in records.items()}
        found[mean(at)] = reached
    return found


def _seen(study: Study) -> str:
    reached, full, used = (
        chosen(study, "MRL", "published", key) for key in ("accuracy", "full_accuracy", "expected_dim")
    )
    if not reached:
        return ""
    text = (
        f"by the published rule {percent(reached)} % right with {number(used)} numbers per row, "
        f"{points(minus(reached, full))} points against all numbers"
    )
    if fixed := alone(study, "FF"):
        needs = rival(study, reached)
        text += f"; an FF as good needs {needs:g} numbers" if needs else "; no FF is as good"
        text += f", the widest ({max(fixed):g}) gets {percent(fixed[max(fixed)])} %"
    return f"{text}; with the certified promise {number(chosen(study, 'MRL', 'certified', 'expected_dim'))} numbers."


def _table(made: Section, study: Study) -> None:
    rows = []
    for system in study.systems("cascade", *NETWORKS):
        for way in WAYS:
            found = {key: chosen(study, system, way, key) for key in NUMBERS}
            if not found["accuracy"]:
                continue
            full, needs = max(alone(study, system)), rival(study, found["accuracy"])
            rows.append(
                [
                    f"{system}, {way}",
                    percent(found["accuracy"]),
                    percent(chosen(study, system, way, "full_accuracy")),
                    percent(found["gap"], 2),
                    *_cost(found["expected_dim"], full),
                    *_cost(found["cumulative_dim"], full),
                    f"{needs:g}" if needs else "none",
                ]
            )
    header = [
        "",
        "right %",
        "full width %",
        "lost %",
        "expected width",
        "saves",
        "cumulative width",
        "saves",
        "FF as good",
    ]
    made.table(
        f"{title(study)}: cascades. *Lost*: rows that the full width alone gets right; *saves*: times fewer numbers "
        "than the full width; *FF as good*: the narrowest network of one width that is as good in the mean",
        header,
        rows,
    )


def _cost(used: Seeds, full: float) -> list[str]:
    return [number(used), f"{full / mean(used):.1f} ×"]


def _differences(made: Section, studies: Sequence[Study]) -> None:
    """Add what an oracle would reach, how much widths disagree, and how classes go as prefixes widen."""
    rows = []
    for study in studies:
        for system in study.systems("cascade", "MRL", "MRL-E", "FF"):
            records = study.of("cascade", system)
            rows.append(
                [
                    f"{title(study)}, {system}",
                    percent(study.value("cascade", system, "oracle", "accuracy")),
                    percent(study.value("cascade", system, "oracle", "only_shorter")),
                    percent(study.value("cascade", system, "oracle", "shares", 0)),
                    percent(study.value("cascade", system, "oracle", "disagreement", 0)),
                    percent(study.value("cascade", system, "oracle", "disagreement", -2)),
                    *(percent({s: trend(r, name) for s, r in records.items()}, 0) for name in TRENDS),
                ]
            )
    if not rows:
        return
    made.say("""**How widths differ.** An *oracle* that sends each row to a width that gets it right, if there is one,
bounds what routing can reach; what it gains over the full width are rows that only a shorter prefix gets right.
Networks of their own (FF) stand beside it: they were trained apart, so that part of what they disagree about is chance.
Classes are sorted by how their accuracy goes as prefixes widen: it never falls (*rises*); rises and then dips a little;
falls and then recovers; or none of these (*unclear*).""")
    header = ["", "oracle", "it gains", "shortest is right", "shortest ≠ full", "next ≠ full", *TRENDS]
    made.table("Share of test rows, and of classes, in percent", header, rows)


TRENDS = ("rises", "dips", "recovers", "unclear")


def trend(record: Record, name: str) -> float:
    """Return the share of classes whose accuracy goes so as prefixes widen."""
    total = sum(record.number("trends", kind) for kind in TRENDS)
    return record.number("trends", name) / total if total else 0.0


def _loss(study: Study) -> Iterator[Case]:
    reached, fixed = chosen(study, "MRL", "published", "accuracy"), alone(study, "FF")
    if reached and fixed:
        yield Case("", minus(reached, fixed[max(fixed)]), least=-0.8 * POINT)


def _fewer(study: Study, cost: str, least: float) -> Iterator[Case]:
    """Return a case for how many times fewer numbers a cascade uses than the FF that is as good, or than the widest."""
    reached, fixed = chosen(study, "MRL", "published", "accuracy"), alone(study, "FF")
    if reached and fixed:
        width = rival(study, reached) or max(fixed)
        used = chosen(study, "MRL", "published", cost)
        yield Case(f"against FF-{width:g}", {s: width / x for s, x in used.items()}, least=least)


def _value(study: Study, system: str, *keys: str | int, least: float) -> Iterator[Case]:
    if values := study.value("cascade", system, *keys):
        yield Case("", values, least=least)


def _trends(study: Study) -> Iterator[Case]:
    shares = [{s: trend(r, "rises") for s, r in study.of("cascade", name).items()} for name in ("MRL", "FF")]
    if all(shares):
        yield Case("", minus(*shares), least=0)


CLAIMS = (
    Claim(
        "A cascade loses less than a point against the widest network of one width",
        "table 3, figure 6",
        "76.3 against 77.1 %",
        "published MRL cascade − widest FF ≥ −0.8",
        _loss,
    ),
    Claim(
        "A cascade uses many times fewer numbers than a network of one width that is as good",
        "table 3, figure 6",
        "37 against 512: 14 ×",
        "FF width as good ÷ expected width ≥ 2",
        lambda study: _fewer(study, "expected_dim", 2.0),
        "×",
    ),
    Claim(
        "A cascade saves numbers even if every head asked on the way is paid for",
        "appendix D.1",
        "62 against 512: 8.2 ×",
        "FF width as good ÷ cumulative width ≥ 2",
        lambda study: _fewer(study, "cumulative_dim", 2.0),
        "×",
    ),
    Claim(
        "Perfect routing would gain points: some rows only a shorter prefix gets right",
        "tables 22, 23",
        "81.5 against 76.9 %: +4.6",
        "oracle − full width ≥ 1",
        lambda study: _value(study, "MRL", "oracle", "only_shorter", least=POINT),
    ),
    Claim(
        "Most rows need the shortest prefix only",
        "table 22",
        "67 % at 8 of 2,048",
        "right at the shortest width ≥ 50 %",
        lambda study: _value(study, "MRL", "oracle", "shares", 0, least=0.5),
        "%",
    ),
    Claim(
        "Classes go one way as prefixes of MRL widen, and no clear way across separate networks",
        "figure 12",
        "MRL: 244 of 1,000 never fall; FF: 950 unclear",
        "share of classes that never fall, MRL − FF, > 0",
        _trends,
    ),
)
