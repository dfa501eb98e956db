"""Section 6: how much each width counts, which widths to train, and what fine-tuning gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, by_width, range_of, title
from benchmarks.study.page.series import Curve, after, head, less
from benchmarks.study.page.verdicts import Case, Claim, cases

POINT = 0.01
SHARE = "right (%, stretched axis)"
WIDTHS = "numbers kept of each embedding"
BOOSTS = ("MRL 8boost", "MRL 8+16boost")
FIRST = ("MRL from 2", "MRL from 4", "MRL from 6", "MRL from 8")
LADDERS = ("MRL", "MRL uniform", "MRL every 16")
FINE_TUNED = ("fine-tune 0", "fine-tune 1", "fine-tune 2", "fine-tune all")
TASKS = ("accuracy", "ablation")
JUDGES = {"linear": "by the linear head", "nearest_neighbor": "by the nearest training row"}


def section(studies: Sequence[Study]) -> Section:
    """Return what follows from choices made in training."""
    made = Section("6. Choices in training")
    names = (*BOOSTS, *FIRST, *LADDERS[1:], *FINE_TUNED)
    there = [study for study in studies if any(everywhere(study, name) for name in names)]
    if not there:
        made.say("*Not run: there are no stored records of these systems.*")
        return made
    made.say("""**Asked.** How much does it matter how much each width counts in the loss, at which widths the loss
looks, and whether a network that was trained plainly can be made nested afterwards?""")
    _weights(made, there)
    _ladders(made, there)
    _first(made, there)
    _fine_tuning(made, there)
    return made


def everywhere(study: Study, system: str, judge: str = "nearest_neighbor") -> Curve:
    """Return accuracy by width, at those a system was trained at and between them."""
    found: Curve = {}
    for task in TASKS:
        for seed, record in study.of(task, system).items():
            by_dim = record.pairs(("dims",), (judge,)) if judge in record else {}
            if "untrained" in record and judge in record.get("untrained"):
                by_dim |= record.pairs(("untrained", "dims"), ("untrained", judge))
            for x, value in by_dim.items():
                found.setdefault(x, {})[seed] = value
    return dict(sorted(found.items()))


def trained(study: Study, system: str, judge: str = "linear") -> Curve:
    """Return accuracy at the widths that a system was trained at."""
    return study.curve("accuracy", system, judge) or study.curve("ablation", system, judge)


def gains(study: Study, system: str, judge: str = "linear") -> Curve:
    """Return what a system gains on MRL at the widths that both were trained at."""
    return less(trained(study, system, judge), trained(study, "MRL", judge))


def _figure(
    made: Section, studies: Sequence[Study], name: str, caption: str, systems: Sequence[str], judge: str
) -> bool:
    """Add a figure of the accuracy of some systems, and a table for each data set; return whether there was any."""
    of = trained if judge == "linear" else everywhere
    panels = [
        Panel(
            title(study),
            [
                Line(system, of(study, system, judge), "MRL" if system == "MRL" else f"{i}")
                for i, system in enumerate(systems)
            ],
            list(trained(study, "MRL", "nearest_neighbor")),
        )
        for study in studies
    ]
    if not any(line.points for panel in panels for line in panel.lines if line.name != "MRL"):
        return False
    made.show(name, caption, curves(panels, xlabel=WIDTHS, ylabel=SHARE), ["accuracy"])
    for study in studies:
        header, rows = by_width({system: of(study, system, judge) for system in systems})
        shared = [row for row in rows if sum(map(bool, row[1:])) > 1]
        made.table(f"{title(study)}: right in percent, {JUDGES[judge]}", header, shared)
    return True


def _weights(made: Section, studies: Sequence[Study]) -> None:
    panels = []
    for study in studies:
        lines = [
            Line(
                f"{name.removeprefix('MRL ')}, {how}",
                _in_points(gains(study, name, judge)),
                style,
                "-" if judge == "linear" else "--",
            )
            for judge, how in (("linear", "linear"), ("nearest_neighbor", "1-NN"))
            for name, style in zip(BOOSTS, ("MRL", "FF"), strict=True)
        ]
        panels.append(Panel(title(study), lines, list(trained(study, "MRL"))))
    if not any(line.points for panel in panels for line in panel.lines):
        return
    made.say("""### What each width counts

The losses of all prefixes are added up with equal weight. Here the shortest counts twice (*8boost*, as the paper calls
it, whose shortest is 8), or the shortest twice and the next one and a half times (*8+16boost*).""")
    image = curves(panels, xlabel=WIDTHS, ylabel="points gained on equal weights", share=False)
    made.show("weights", "What it gains or costs to let short prefixes count more", image, ["accuracy"])
    said = {title(study): range_of(gains(study, "MRL 8boost")) for study in studies}
    made.seen("8boost minus equal weights, linear, in points:", said)


def _in_points(curve: Curve) -> Curve:
    return {x: {seed: 100 * value for seed, value in seeds.items()} for x, seeds in curve.items()}


def _ladders(made: Section, studies: Sequence[Study]) -> None:
    made.say("""### Which widths

The widths of MRL double (a logarithmic ladder). *Uniform* has as many or one more, equally far apart;
*every 16* starts at 16. Widths that were not trained are measured too, by the nearest training row.""")
    caption = "Ladders of widths: doubling, uniform, every sixteenth; accuracy by the nearest training row"
    if not _figure(made, studies, "ladders", caption, LADDERS, "nearest_neighbor"):
        made.blocks.pop()
        return
    made.seen("MRL minus uniform, in points:", {title(study): range_of(_over_uniform(study)) for study in studies})


def _over_uniform(study: Study) -> Curve:
    ladder = trained(study, "MRL", "nearest_neighbor")
    return less(ladder, everywhere(study, "MRL uniform"))


def _first(made: Section, studies: Sequence[Study]) -> None:
    made.say("""### Where to start

The shortest width that the loss looks at, and what a shorter one costs the longer ones.""")
    caption = "The shortest trained width; accuracy by the nearest training row"
    if not _figure(made, studies, "first-width", caption, FIRST, "nearest_neighbor"):
        made.blocks.pop()


def _fine_tuning(made: Section, studies: Sequence[Study]) -> None:
    made.say("""### Fine-tuning

The widest FF network is given heads on all prefixes, and these are trained for half as many steps again with its
last 0, 1, 2 or all blocks. (The paper takes a quarter as many.)""")
    caption = "A plainly trained network made nested afterwards, by the number of blocks that learn; linear accuracy"
    if not _figure(made, studies, "fine-tuning", caption, ("MRL", *FINE_TUNED), "linear"):
        made.blocks.pop()
        return
    said = {}
    for study in studies:
        found = {
            how: range_of(gains(study, f"fine-tune {n}")) for n, how in ((0, "heads alone"), ("all", "all blocks"))
        }
        said[title(study)] = "; ".join(f"{how} {gap}" for how, gap in found.items() if gap)
    made.seen("Fine-tuned minus MRL trained from the start, in points:", said)


def _more_blocks(study: Study) -> Iterator[Case]:
    more = less(trained(study, "fine-tune all"), trained(study, "fine-tune 0"))
    yield from cases(head(more), least=0)


def _longer(study: Study) -> Iterator[Case]:
    """Return a case for each width from the third on that starting at the shortest costs, against starting later."""
    there = [name for name in FIRST if everywhere(study, name)]
    if len(there) > 1:
        gap = less(everywhere(study, there[0]), trained(study, there[-1], "nearest_neighbor"))
        yield from cases(gap, least=-POINT)


CLAIMS = (
    Claim(
        "Fine-tuning more blocks rescues the shortest prefixes, which new heads alone do not",
        "table 26",
        "at 8: 5.2 with the head alone, 60.0 with the last blocks, 66.6 trained from the start",
        "all blocks − heads alone, linear, > 0 at the shortest width",
        _more_blocks,
    ),
    Claim(
        "Longer prefixes come within 1.5 points by fine-tuning",
        "table 26",
        "within 1.5 above 64 of 2048",
        "fine-tune all − MRL, linear, ≥ −1.5 from the third width on",
        lambda study: cases(after(gains(study, "fine-tune all"), 2), least=-1.5 * POINT),
    ),
    Claim(
        "Letting the shortest prefix count twice makes it better",
        "table 27",
        "8boost: 69.5 against 66.6 at 8",
        "8boost − MRL, linear, > 0 at the shortest width",
        lambda study: cases(head(gains(study, "MRL 8boost")), least=0),
    ),
    Claim(
        "Letting the shortest prefix count twice does not cost the other widths",
        "table 27",
        "gains from 16 to 256, at most −0.1 above",
        "8boost − MRL, linear, ≥ −0.5 at all other widths",
        lambda study: cases(after(gains(study, "MRL 8boost"), 1), least=-POINT / 2),
    ),
    Claim(
        "A shorter first width costs the longer ones little",
        "table 28",
        "a small dip at high widths when starting at 4 or 6 instead of 8",
        "shortest start − latest start, 1-NN, ≥ −1 at the widths of the latter",
        _longer,
    ),
    Claim(
        "Widths that double are better than equally many at equal distances, where prefixes are short",
        "table 29",
        "at 8: 62.2 against 58.4; at 16: 67.9 against 61.1",
        "doubling − uniform, 1-NN, > 0 at the three shortest widths",
        lambda study: cases(head(_over_uniform(study), 3), least=0),
    ),
)
