"""Section 1: how good each width is, by its head and by the nearest neighbour, trained and between trained ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log2

from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, by_width, listed, points, range_of, title
from benchmarks.study.page.series import Curve, after, best, head, less, mean, short_half
from benchmarks.study.page.verdicts import Case, Claim, cases

SYSTEMS = ("MRL", "MRL-E", "FF", "SVD", "PCA", "Rand", "Slim")
JUDGES = {"linear": "by a linear classifier", "nearest_neighbor": "by the nearest training row"}
RIVALS = ("SVD", "PCA", "Rand", "Slim")
POINT = 0.01


def accuracy(study: Study, system: str, judge: str) -> Curve:
    """Return the share of test rows labelled rightly by width: `judge` is "linear" or "nearest_neighbor"."""
    return study.curve("accuracy", system, judge)


def section(studies: Sequence[Study]) -> Section:
    """Return what prefixes are worth by themselves."""
    made = Section("1. Each width by itself")
    made.say(
        """**Asked.** Is a prefix of one embedding that was trained for all prefixes as good as an embedding of that
width that a network of its own was trained for? And could the same be had by cutting a finished embedding?""",
        """**Done.** MRL and MRL-E are one network each and serve every width; under FF each width has a network of its
own. SVD, PCA and Rand shorten the widest FF after training. *By a linear classifier*: the head that was trained with
the network; PCA and Rand have one fitted anew, SVD cuts the rank of FF's head and still reads the whole embedding, as
in the paper. *By the nearest training row*: the label of the nearest one by cosine; here SVD projects to so many
numbers.""",
    )
    there = made.missing(studies, "accuracy")
    if not there:
        return made
    for judge, how in JUDGES.items():
        panels = [Panel(title(study), lines(study, judge), ticks(study)) for study in there]
        if any(line.points for panel in panels for line in panel.lines):
            image = curves(panels, xlabel="numbers kept of each embedding", ylabel="right (%, stretched axis)")
            made.show(f"widths-{judge.replace('_', '-')}", f"Accuracy {how}, by width", image, ["accuracy"])
        made.seen(
            "MRL minus FF, and minus the best of what is cut or slimmed, in points:",
            {title(study): _against_ff(study, judge) for study in there},
        )
        for study in there:
            header, rows = by_width({system: accuracy(study, system, judge) for system in SYSTEMS})
            made.table(f"{title(study)}: right in percent, {how}, mean ± deviation over seeds", header, rows)
    _between(made, there)
    return made


def lines(study: Study, judge: str) -> list[Line]:
    """Return a curve for each system of this section."""
    return [Line(system, accuracy(study, system, judge)) for system in SYSTEMS]


def ticks(study: Study) -> list[float]:
    """Return the widths of the ladder."""
    return list(accuracy(study, "MRL", "nearest_neighbor") or accuracy(study, "FF", "nearest_neighbor"))


def _against_ff(study: Study, judge: str) -> str:
    ours, yardstick = accuracy(study, "MRL", judge), accuracy(study, "FF", judge)
    if not (gap := less(ours, yardstick)):
        return ""
    text = f"{range_of(gap)} of FF"
    rivals = {name: curve for name in RIVALS if (curve := less(ours, accuracy(study, name, judge)))}
    if rivals:
        short = min(min(curve) for curve in rivals.values())
        near = min((name for name in rivals if short in rivals[name]), key=lambda name: mean(rivals[name][short]))
        passed = [x for x in gap if any(x in curve and mean(curve[x]) < 0 for curve in rivals.values())]
        text += f"; {points(rivals[near][short])} of {near} at {short:g}, and "
        text += (
            f"one is ahead of MRL at {listed([f'{x:g}' for x in passed])}" if passed else "none is ever ahead of MRL"
        )
    return f"{text}."


def _between(made: Section, studies: Sequence[Study]) -> None:
    """Add the widths between those that were trained."""
    panels = []
    for study in studies:
        found = []
        for system in ("MRL", "MRL-E"):
            found.append(Line(f"{system}, trained", accuracy(study, system, "nearest_neighbor"), system))
            found.append(Line(f"{system}, between", between(study, system), system, "none"))
        panels.append(Panel(title(study), [line for line in found if line.points], ticks(study)))
    if not any(line.joined == "none" for panel in panels for line in panel.lines):
        return
    made.say("""**Between the widths.** The loss names only some widths. Nothing keeps one from cutting elsewhere; the
open marks are cuts halfway between two that were trained.""")
    image = curves(panels, xlabel="numbers kept of each embedding", ylabel="right (%, stretched axis)", labels="end")
    caption = "Accuracy by the nearest training row at widths that were trained and between them"
    made.show("widths-between", caption, image, ["accuracy"])
    made.seen(
        "Cuts of MRL between two trained widths, minus the straight line between these:",
        {title(study): range_of(from_the_line(study, "MRL")) for study in studies},
    )


def between(study: Study, system: str) -> Curve:
    """Return 1-NN accuracy at widths that were not trained."""
    return study.curve("accuracy", system, "untrained", "nearest_neighbor", at=("untrained", "dims"))


def from_the_line(study: Study, system: str) -> Curve:
    """Return how far accuracies between trained widths lie above the line that joins the neighbours (log of width)."""
    trained, found = accuracy(study, system, "nearest_neighbor"), {}
    for x, seeds in between(study, system).items():
        for low, high in pairwise(trained):
            if low < x < high:
                share = log2(x / low) / log2(high / low)
                line = {s: (1 - share) * trained[low][s] + share * trained[high][s] for s in seeds}
                found[x] = {seed: value - line[seed] for seed, value in seeds.items()}
    return found


def _gap(study: Study, one: str, other: str, judge: str) -> Curve:
    return less(accuracy(study, one, judge), accuracy(study, other, judge))


def _over_cuts(study: Study, judge: str, names: Sequence[str]) -> Curve:
    return less(accuracy(study, "MRL", judge), best(accuracy(study, name, judge) for name in names))


def _fall(study: Study) -> Iterator[Case]:
    """Return a case for what the shortest width costs MRL-E beyond MRL, by both judges."""
    for judge, how in (("linear", "head"), ("nearest_neighbor", "1-NN")):
        for x, seeds in head(_gap(study, "MRL-E", "MRL", judge)).items():
            yield Case(f"at {x:g}, {how}", seeds, most=0)


CLAIMS = (
    Claim(
        "One MRL network classifies as well at each width as a network of that width",
        "table 1",
        "MRL − FF: +1.3 at 8, +0.5 at 64, −0.1 at 2048",
        "MRL − FF, linear, ≥ −1 at every width",
        lambda study: cases(_gap(study, "MRL", "FF", "linear"), least=-POINT),
    ),
    Claim(
        "Short linear classifiers cannot be had by cutting: SVD, random columns and slimmable networks stay behind",
        "table 1",
        "at 8: MRL 66.6, SVD 2.3, Rand 4.6, Slim 0.4",
        "MRL − best of SVD, Rand, Slim, linear, > 0 in the shorter half of the widths",
        lambda study: cases(short_half(_over_cuts(study, "linear", ("SVD", "Rand", "Slim"))), least=0),
    ),
    Claim(
        "One shared head (MRL-E) costs next to nothing but at the shortest widths",
        "table 1",
        "MRL-E − MRL: −1.6 at 16, −0.5 at 32 and 64, −0.3 at 2048",
        "MRL-E − MRL, linear, ≥ −1 from the third width on",
        lambda study: cases(after(_gap(study, "MRL-E", "MRL", "linear"), 2), least=-POINT),
    ),
    Claim(
        "At the shortest width a shared head is worse than one of its own",
        "tables 1, 2",
        "MRL-E − MRL at 8: −10.0 linear, −4.7 by 1-NN",
        "MRL-E − MRL < 0 at the shortest width",
        _fall,
    ),
    Claim(
        "By the nearest neighbour, too, MRL is as good as FF at every width",
        "table 2",
        "MRL − FF: +3.3 at 8, +0.8 at 64, −0.2 at 2048",
        "MRL − FF, 1-NN, ≥ −1 at every width",
        lambda study: cases(_gap(study, "MRL", "FF", "nearest_neighbor"), least=-POINT),
    ),
    Claim(
        "At the shortest widths MRL is better than FF by the nearest neighbour",
        "table 2",
        "MRL − FF: +3.3 at 8, +1.1 at 16",
        "MRL − FF, 1-NN, > 0 at the two shortest widths",
        lambda study: cases(head(_gap(study, "MRL", "FF", "nearest_neighbor"), 2), least=0),
    ),
    Claim(
        "Projections of a finished embedding are worse at short widths",
        "table 2",
        "at 8: MRL 62.2, SVD 19.1, Rand 2.4; at 64: 70.2, 67.0, 49.9",
        "MRL − best of SVD, Rand, 1-NN, > 0 in the shorter half of the widths",
        lambda study: cases(short_half(_over_cuts(study, "nearest_neighbor", ("SVD", "Rand"))), least=0),
    ),
    Claim(
        "Widths between the trained ones are as good as their neighbours let expect",
        "figure 5, table 8",
        "MRL at 8, 12, 16: 62.2, 65.9, 67.9; at 64, 96, 128: 70.2, 70.4, 70.5",
        "1-NN minus the line between the trained neighbours ≥ −0.5",
        lambda study: cases(from_the_line(study, "MRL"), least=-POINT / 2),
    ),
)
