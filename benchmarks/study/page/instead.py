"""Section 7: where training for prefixes does not pay, beside a rotation of a plain embedding."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.page import modes
from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, by_width, listed, range_of, title
from benchmarks.study.page.series import Curve, last, less
from benchmarks.study.page.verdicts import interval

SYSTEMS = ("MRL", "FF", "rotation", "SVD", "raw", "raw rotation")
PLACES = {
    "seen among all": "queries of trained classes among all rows",
    "unseen among all": "queries of new classes among all rows",
    "unseen": "queries of new classes among rows of new classes",
}
METRICS = {"nearest_neighbor": "1-NN accuracy", "map@10": "mAP@10"}
WIDTHS = "numbers kept of each embedding"
NEW = "new classes (a rotation of the raw features)"


def section(studies: Sequence[Study]) -> Section:
    """Return where one could have done with less."""
    made = Section("7. Where training for prefixes does not pay")
    made.say("""**Asked.** The cheapest thing a user could do instead is to take one finished embedding and rotate it so
that its directions are sorted by energy (`matryoshka.Rotation`; close to SVD, and fitted in seconds). Where is that as
good as training for prefixes, on the same rows, and on classes that training has not seen?""")
    _same_rows(made, made.missing(studies, "accuracy"))
    _new_classes(made, made.missing(studies, "unseen"))
    _other_losses(made, studies)
    return made


def summary(studies: Sequence[Study]) -> str:
    """Return in words where a rotation of what nobody trained to be cut is surely ahead of MRL."""
    ahead = []
    for study in studies:
        for where, gap in _gaps(study).items():
            below = [x for x, seeds in gap.items() if interval(seeds)[1] < 0]
            if below:
                ahead.append(f"{where} of {title(study)} at {len(below)} of {len(gap)} widths")
    if not ahead:
        return ""
    return f"The cheapest thing to do instead, a rotation, is ahead of MRL on {listed(ahead)} (section 7)."


def _gaps(study: Study) -> dict[str, Curve]:
    """Return how far MRL is ahead of a rotation, by width, wherever both were run."""
    new = unseen(study, "MRL seen", "unseen", "nearest_neighbor")
    return {
        "the trained rows": less(_neighbors(study, "MRL"), _neighbors(study, "rotation")),
        NEW: less(new, unseen(study, "raw rotation", "unseen", "nearest_neighbor")),
        **{mode.title.lower(): modes.gap(study, mode, "rotation") for mode in modes.MODES},
    }


def _same_rows(made: Section, studies: Sequence[Study]) -> None:
    panels = [
        Panel(
            title(study),
            [Line(name, _neighbors(study, name)) for name in SYSTEMS],
            sorted({*_neighbors(study, "MRL"), *last(_neighbors(study, "raw"))}),
        )
        for study in studies
    ]
    if not any(line.points for panel in panels for line in panel.lines if "rotation" in line.name):
        return
    made.say("""### The same rows

*Rotation* is that of the widest FF; *raw* are the features themselves, of texts the vectors of a pretrained sentence
encoder, and *raw rotation* these rotated. All by the nearest training row.""")
    image = curves(panels, xlabel=WIDTHS, ylabel="right (%, stretched axis)")
    caption = "MRL beside a rotation of a plainly trained network, and of the raw features; nearest training row"
    made.show("instead", caption, image, ["accuracy"])
    gaps = {title(study): less(_neighbors(study, "MRL"), _neighbors(study, "rotation")) for study in studies}
    made.seen("MRL minus the rotation, in points:", {name: decided(gap) for name, gap in gaps.items()})
    for study in studies:
        found = {name: _neighbors(study, name) for name in SYSTEMS}
        made.table(f"{title(study)}: right in percent, by the nearest training row", *by_width(found))


def decided(gap: Curve) -> str:
    """Return the range of a difference, and at which widths it lies above zero, below, or cannot be told from it."""
    if not gap:
        return ""
    above = [f"{x:g}" for x, seeds in gap.items() if interval(seeds)[0] > 0]
    below = [f"{x:g}" for x, seeds in gap.items() if interval(seeds)[1] < 0]
    rest = [f"{x:g}" for x in gap if f"{x:g}" not in (*above, *below)]
    said = [
        f"{words} at {listed(where)}"
        for words, where in (("training for prefixes pays", above), ("it does not pay", below), ("undecided", rest))
        if where
    ]
    return f"{range_of(gap)}; {', '.join(said)}."


def _neighbors(study: Study, system: str) -> Curve:
    return study.curve("accuracy", system, "nearest_neighbor")


def unseen(study: Study, system: str, place: str, metric: str) -> Curve:
    """Return a metric by width where training left classes out: `place` is one of `PLACES`."""
    return study.curve("unseen", system, place, metric)


def _other_losses(made: Section, studies: Sequence[Study]) -> None:
    """Say it of pairs, images with text, and masked words, whose tables stand in section 5."""
    said = {
        mode.title: {title(study): decided(modes.gap(study, mode, "rotation")) for study in studies}
        for mode in modes.MODES
    }
    if any(found for by_study in said.values() for found in by_study.values()):
        made.say("""### Other losses

Of the networks of section 5, the rotation is that of the plain one.""")
    for what, by_study in said.items():
        made.seen(f"{what}: MRL minus the rotation, in points:", by_study)


def _new_classes(made: Section, studies: Sequence[Study]) -> None:
    if not studies:
        return
    made.say("""### New classes

Three classes in ten are left out of training, and of the fit of the rotation (that of the raw features sees all rows).
Their test rows ask for their nearest rows, among those of the new classes only or among all.""")
    names = {name: name if name.startswith("raw") else f"{name} seen" for name in SYSTEMS if name != "SVD"}
    for metric, what in METRICS.items():
        panels = [
            Panel(
                title(study),
                [Line(name, unseen(study, system, "unseen", metric), name) for name, system in names.items()],
                list(unseen(study, "MRL seen", "unseen", metric)),
            )
            for study in studies
        ]
        if any(line.points for panel in panels for line in panel.lines):
            image = curves(panels, xlabel=WIDTHS, ylabel=f"{what} (%, stretched axis)")
            slug = "unseen-" + metric.replace("_", "-").replace("@", "-")
            made.show(slug, f"{what} on classes that training has not seen, among rows of these", image, ["unseen"])
    for place, where in PLACES.items():
        both = [
            (title(study), *(unseen(study, f"{name} seen", place, "nearest_neighbor") for name in ("MRL", "rotation")))
            for study in studies
        ]
        made.seen(f"MRL minus the rotation, 1-NN, {where}, in points:", {n: decided(less(*c)) for n, *c in both})
    raw = {title(study): decided(_gaps(study)[NEW]) for study in studies}
    made.seen("MRL minus the rotation of the raw features, 1-NN, new classes among themselves, in points:", raw)
    for study in studies:
        found = {
            f"{name}, {short}": unseen(study, system, place, "nearest_neighbor")
            for place, short in (("unseen", "new"), ("seen among all", "trained"))
            for name, system in names.items()
        }
        made.table(
            f"{title(study)}: 1-NN accuracy in percent; *new*: new classes among themselves, *trained*: trained "
            "classes among all",
            *by_width(found),
        )
