"""Section 4: corrupted rows, few shots, a long tail of classes, and superclasses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Record, Study
from benchmarks.study.page.section import Section, by_width, percent, points, range_of, title
from benchmarks.study.page.series import Curve, Seeds, last, less, minus
from benchmarks.study.page.verdicts import Case, Claim, cases

POINT = 0.01
SHARE = "right (%, stretched axis)"
WIDTHS = "numbers kept of each embedding"
GROUPS = ("head", "middle", "tail")
FEW_SHOT = ("MRL", "FF", "rotation", "raw rotation")
TAILED = ("MRL", "FF", "rotation")


def section(studies: Sequence[Study]) -> Section:
    """Return what happens to prefixes off the beaten track."""
    made = Section("4. Corrupted rows, few shots, rare classes, superclasses")
    made.say("""**Asked.** Do short prefixes, and embeddings trained for them, break sooner where rows or classes are
not those of the training?""")
    _robustness(made, made.missing(studies, "robustness"))
    _few_shot(made, made.missing(studies, "few_shot"))
    _long_tail(made, made.missing(studies, "long_tail"))
    _superclass(made, made.missing(studies, "superclass"))
    return made


def kinds(record: Record) -> list[str]:
    """Return the parts of corrupted rows that a record of robustness has, "test/KIND/SEVERITY"."""
    return [part for part in record.found if part.startswith("test/")]


def corrupted(study: Study, system: str, judge: str = "linear") -> Curve:
    """Return the accuracy by width in the mean over all corruptions and severities."""
    found: Curve = {}
    for seed, record in study.of("robustness", system).items():
        parts = [record.pairs(("dims",), (part, judge)) for part in kinds(record) if judge in record.get(part)]
        for x in parts[0] if parts else ():
            found.setdefault(x, {})[seed] = sum(part[x] for part in parts) / len(parts)
    return found


def _robustness(made: Section, studies: Sequence[Study]) -> None:
    if not studies:
        return
    made.say("""### Corrupted rows

The networks, trained on clean rows, classify test rows that were made worse in three severities: images with noise, a
blur, less contrast, or shifted; texts with words dropped or swapped. Shown is the mean over all of these.""")
    panels = []
    for study in studies:
        found = [Line(name, corrupted(study, name)) for name in ("MRL", "MRL-E", "FF", "rotation")]
        clean = [
            Line(f"{name}, clean", study.curve("robustness", name, "test", "linear"), name, "--")
            for name in ("MRL", "FF")
        ]
        panels.append(Panel(title(study), [*found, *clean], list(corrupted(study, "MRL"))))
    image = curves(panels, xlabel=WIDTHS, ylabel=SHARE)
    made.show("robustness", "Linear accuracy on corrupted test rows, and on the same rows clean", image, ["robustness"])
    gaps = {title(study): range_of(less(corrupted(study, "MRL"), corrupted(study, "FF"))) for study in studies}
    made.seen("MRL minus FF on corrupted rows, in points:", gaps)
    for study in studies:
        records = study.of("robustness", "MRL")
        parts = kinds(next(iter(records.values()))) if records else []
        rows = []
        for kind in dict.fromkeys(part.split("/")[1] for part in parts):
            of_kind = [part for part in parts if part.split("/")[1] == kind]
            rows += [
                [f"{name}, {kind}", *(percent(_widest(study, name, part)) for part in of_kind)]
                for name in study.systems("robustness", "MRL", "MRL-E", "FF", "rotation")
            ]
        made.table(f"{title(study)}: full width, linear, right in percent by severity", ["", "1", "2", "3"], rows)


def _widest(study: Study, system: str, part: str) -> Seeds:
    return {
        seed: record.numbers(part, "linear")[-1]
        for seed, record in study.of("robustness", system).items()
        if "linear" in record.get(part)
    }


def shots(study: Study, system: str) -> dict[int, Curve]:
    """Return accuracy of nearest class means by shots and width."""
    found: dict[int, Curve] = {}
    for seed, record in study.of("few_shot", system).items():
        for i, n_shots in enumerate(record.numbers("shots")):
            for x, value in record.pairs(("dims",), ("accuracy", i)).items():
                found.setdefault(int(n_shots), {}).setdefault(x, {})[seed] = value
    return found


def _few_shot(made: Section, studies: Sequence[Study]) -> None:
    if not studies:
        return
    made.say("""### Few shots

Every class is known from few rows that no network was trained with: a test row is given the class with the nearest mean
of these. The classes themselves were trained; section 6 has new ones.""")
    panels = []
    for study in studies:
        lines = []
        for name in ("MRL", "FF"):
            by_shots = shots(study, name)
            some = [n for n in by_shots if n in (1, 5, max(by_shots))]
            lines += [
                Line(
                    f"{name}, {n} shot{'s' * (n > 1)}",
                    by_shots[n],
                    ("MRL", "SVD", "PCA")[i],
                    "--" if name == "FF" else "-",
                )
                for i, n in enumerate(some)
            ]
        ticks = list(lines[0].points) if lines else []
        panels.append(Panel(title(study), lines, ticks))
    image = curves(panels, xlabel=WIDTHS, ylabel=SHARE)
    made.show("few-shot", "Accuracy of nearest class means by width and number of rows a class", image, ["few_shot"])
    for study in studies:
        found = {name: shots(study, name) for name in study.systems("few_shot", *FEW_SHOT)}
        few = {f"{name}, {n}": by_shots.get(n, {}) for n in (1, 9) for name, by_shots in found.items()}
        made.table(f"{title(study)}: right in percent, by system and rows a class", *by_width(few))
    said = {}
    for study in studies:
        ours, yardstick = shots(study, "MRL"), shots(study, "FF")
        gaps = {n: range_of(less(ours[n], yardstick[n])) for n in ours if n in yardstick}
        said[title(study)] = "; ".join(f"with {n} {gap}" for n, gap in gaps.items() if n in (1, max(gaps)))
    made.seen("MRL minus FF by the number of shots, in points:", said)


def tail(study: Study, system: str, group: str, judge: str = "linear") -> Curve:
    """Return accuracy by width on the frequent ("head"), middling or rare ("tail") classes."""
    found: Curve = {}
    for seed, record in study.of("long_tail", system).items():
        if judge in record.get(group):
            for x, value in record.pairs(("dims",), (group, judge)).items():
                found.setdefault(x, {})[seed] = value
    return found


def _long_tail(made: Section, studies: Sequence[Study]) -> None:
    if not studies:
        return
    made.say("""### Rare classes

Training rows are thinned out so that classes go from frequent to rare as in Zipf's law, the rarest keeping one row in
fifty. Test rows are those of the most frequent third of the classes (*head*), the next third (*middle*) and the rarest
(*tail*).""")
    panels = []
    for study in studies:
        lines = [
            Line(f"{name}, {group}", tail(study, f"{name} long tail", group), style, "--" if name == "FF" else "-")
            for name in ("MRL", "FF")
            for group, style in zip(GROUPS, ("MRL", "SVD", "PCA"), strict=True)
        ]
        panels.append(Panel(title(study), lines, list(lines[0].points)))
    if any(line.points for panel in panels for line in panel.lines):
        image = curves(panels, xlabel=WIDTHS, ylabel=SHARE)
        made.show("long-tail", "Linear accuracy on frequent, middling and rare classes", image, ["long_tail"])
    for study in studies:
        rows = [
            [f"{group}, {how}", *(percent(_last(tail(study, f"{name} long tail", group, judge))) for name in TAILED)]
            for group in GROUPS
            for judge, how in (("linear", "linear"), ("nearest_neighbor", "1-NN"))
        ]
        made.table(f"{title(study)}: full width, right in percent", ["", *TAILED], rows)
    both = [(title(study), *(tail(study, f"{name} long tail", "tail") for name in ("MRL", "FF"))) for study in studies]
    made.seen("MRL minus FF on the rarest third of the classes, in points:", {n: range_of(less(*c)) for n, *c in both})


def _last(curve: Curve) -> Seeds:
    return next(iter(last(curve).values()), {})


def kin(study: Study, system: str, what: str, judge: str = "linear") -> Curve:
    """Return accuracy by width over classes or superclasses: `what` is "class" or "superclass"."""
    found: Curve = {}
    for seed, record in study.of("superclass", system).items():
        if judge in record:
            for x, value in record.pairs(("dims",), (judge, what)).items():
                found.setdefault(x, {})[seed] = value
    return found


def _superclass(made: Section, studies: Sequence[Study]) -> None:
    if not studies:
        return
    made.say("""### Superclasses

Answers are mapped to coarser classes, without new training: four kinds of clothes, ten domains of questions. If short
prefixes lose detail first, they should still know the superclass.""")
    panels = [
        Panel(
            title(study),
            [
                Line(f"{name}, {what}", kin(study, name, what), style, "--" if name == "FF" else "-")
                for name in ("MRL", "FF")
                for what, style in (("class", "MRL"), ("superclass", "SVD"))
            ],
            list(kin(study, "MRL", "class")),
        )
        for study in studies
    ]
    if any(line.points for panel in panels for line in panel.lines):
        image = curves(panels, xlabel=WIDTHS, ylabel=SHARE)
        made.show("superclass", "Linear accuracy over classes and over superclasses", image, ["superclass"])
    said = {}
    for study in studies:
        fall = {what: list(kin(study, "MRL", what).values()) for what in ("class", "superclass")}
        if all(fall.values()):
            lost = [points(minus(fall[what][0], fall[what][-1])) for what in ("class", "superclass")]
            said[title(study)] = f"{lost[0]} of classes, {lost[1]} of superclasses."
    made.seen("From the full to the shortest width MRL changes by points:", said)


def _shots(study: Study) -> Iterator[Case]:
    ours, yardstick = shots(study, "MRL"), shots(study, "FF")
    for n in ours:
        if n in yardstick:
            yield from cases(less(ours[n], yardstick[n]), least=-POINT, what=f"{n} shots,")


def _short_shot(study: Study) -> Iterator[Case]:
    for curve in [shots(study, "MRL").get(1, {})]:
        widths = list(curve)
        if len(widths) > 1:
            middle = widths[len(widths) // 2]
            yield Case(f"at {middle:g}", minus(curve[middle], curve[widths[-1]]), least=-POINT)


def _kin(study: Study) -> Iterator[Case]:
    """Return a case for how much less superclasses lose than classes, from the full to the shortest width."""
    what = {name: list(kin(study, "MRL", name).values()) for name in ("class", "superclass")}
    if all(what.values()):
        lost = {name: minus(found[-1], found[0]) for name, found in what.items()}
        yield Case("", minus(lost["class"], lost["superclass"]), least=0)


CLAIMS = (
    Claim(
        "On shifted and corrupted rows MRL is at least as good as FF",
        "table 17",
        "ImageNet-V2, -R, -A, -Sketch: as good or better, +0.6 on -A",
        "MRL − FF, linear, mean of all corruptions, ≥ −1 at every width",
        lambda study: cases(less(corrupted(study, "MRL"), corrupted(study, "FF")), least=-POINT),
    ),
    Claim(
        "With few shots MRL is as good as FF at every width",
        "table 15",
        "the same in all cells",
        "MRL − FF, nearest class mean, ≥ −1 for every number of shots and width",
        _shots,
    ),
    Claim(
        "With one shot a short prefix is as good as the full width",
        "table 15",
        "1 shot: 41.4 at 32, 41.2 at 2048",
        "MRL, 1 shot, middle width − full width ≥ −1",
        _short_shot,
    ),
    Claim(
        "MRL helps on rare classes",
        "table 16",
        "about +2 on new classes of the tail",
        "MRL − FF, linear, rarest third of the classes, > 0 at full width",
        lambda study: cases(
            last(less(tail(study, "MRL long tail", "tail"), tail(study, "FF long tail", "tail"))), least=0
        ),
    ),
    Claim(
        "Short prefixes lose classes before superclasses",
        "table 25, figure 10",
        "2048 to 8: superclasses −4.6, classes −10.2",
        "points lost by classes − by superclasses, full to shortest width, > 0",
        _kin,
    ),
)
