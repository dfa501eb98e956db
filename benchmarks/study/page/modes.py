"""Section 5: other ways to train: pairs without classes, images with text, masked words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.study.page.draw import Line, Panel, curves
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, by_width, range_of, title
from benchmarks.study.page.series import Curve, last, less, short_half
from benchmarks.study.page.verdicts import Case, Claim, cases

POINT = 0.01
NAMES = {"MRL": "MRL", "MRL-E": "MRL", "FF": "FF", "cut": "cut", "rotation": "rotation"}
"""Names by system: what is nested is called MRL, though with masked words it has one head for all (MRL-E)."""


@dataclass(frozen=True)
class Mode:
    """A task, the number that judges it, its title and what was done."""

    task: str
    judge: str
    title: str
    what: str
    done: str


MODES = (
    Mode(
        "contrastive",
        "nearest_neighbor",
        "Pairs",
        "right by the nearest training row",
        """A network learns to find the partner of each row among those of a batch (symmetric InfoNCE, as ALIGN does):
of an image two views, shifted, turned, scaled and noisy, without any label; of questions two with the same intent. The
label of the nearest training row is the answer.""",
    ),
    Mode(
        "image_text",
        "zero_shot",
        "Images with text",
        "right by the nearest description",
        """A network for images and a layer on vectors of a pretrained sentence encoder learn to bring images of clothes
and descriptions of their class together. A test image is given the class whose description, in words that training has
not seen, is nearest.""",
    ),
    Mode(
        "masked_language",
        "masked_words",
        "Masked words",
        "masked words guessed",
        """A transformer of two layers guesses hidden words of questions, as BERT does; every prefix has the same head,
whose rows are the vectors of the words (MRL-E).""",
    ),
)


def section(studies: Sequence[Study]) -> Section:
    """Return what prefixes are worth when something else than classes trains them."""
    made = Section("5. Without classes: pairs, images with text, masked words")
    made.say("""**Asked.** Is what holds for classifiers true of other losses? *Cut* is the network for the full width,
whose prefixes nobody trained; *rotation* the same after `matryoshka.Rotation`; under FF each width has a network of its
own.""")
    for mode in MODES:
        _show(made, made.missing(studies, mode.task, only=True), mode)
    return made


def found(study: Study, mode: Mode) -> dict[str, Curve]:
    """Return the curves of the systems that a task was run on, by name."""
    return {name: curve for system, name in NAMES.items() if (curve := study.curve(mode.task, system, mode.judge))}


def gap(study: Study, mode: Mode, other: str) -> Curve:
    """Return how far MRL is ahead of another system."""
    there = found(study, mode)
    return less(there.get("MRL", {}), there.get(other, {}))


def _show(made: Section, studies: Sequence[Study], mode: Mode) -> None:
    if not studies:
        return
    made.say(f"### {mode.title}", mode.done)
    panels = []
    for study in studies:
        there = found(study, mode)
        lines = [Line(name, curve, "raw" if name == "cut" else name) for name, curve in there.items()]
        panels.append(Panel(title(study), lines, list(there.get("MRL", {}))))
    image = curves(panels, xlabel="numbers kept of each embedding", ylabel="% (stretched axis)")
    slug = mode.task.replace("_", "-")
    made.show(slug, f"{mode.title}: {mode.what}, by width", image, [mode.task])
    said = {}
    for study in studies:
        ahead = {other: range_of(gap(study, mode, other)) for other in ("FF", "cut", "rotation")}
        said[title(study)] = "; ".join(f"of {other} {found}" for other, found in ahead.items() if found)
    made.seen("How far MRL is ahead, in points:", said)
    for study in studies:
        made.table(f"{title(study)}: {mode.what}, in percent", *by_width(found(study, mode)))


def _as_good(study: Study, mode: Mode) -> Iterator[Case]:
    yield from cases(gap(study, mode, "FF"), least=-POINT)


CLAIMS = (
    Claim(
        "Trained on pairs, short prefixes are far better than those of a network that was not trained for them",
        "table 4",
        "ALIGN, 1-NN: 43.6 against 11.9 at 12, 62.3 against 51.3 at 48",
        "MRL − cut, 1-NN, > 0 in the shorter half of the widths",
        lambda study: cases(short_half(gap(study, MODES[0], "cut")), least=0),
    ),
    Claim(
        "Training on pairs for all prefixes costs nothing at full width",
        "table 4",
        "ALIGN at 768: 67.9 against 68.0; JFT: 71.9 against 72.1",
        "MRL − cut, 1-NN, ≥ −1 at full width",
        lambda study: cases(last(gap(study, MODES[0], "cut")), least=-POINT),
    ),
    Claim(
        "Images and descriptions are matched by short prefixes as well as by networks of that width",
        "tables 4, 18",
        "zero-shot numbers of ALIGN were not at hand",
        "MRL − FF, zero-shot, ≥ −1 at every width",
        lambda study: _as_good(study, MODES[1]),
    ),
    Claim(
        "Masked words are guessed as well as by a network for each width",
        "table 7",
        "BERT, MRL − FF: −0.2 at 12, −0.5 at 48, −0.5 at 768",
        "MRL-E − FF, masked words, ≥ −1 at every width",
        lambda study: _as_good(study, MODES[2]),
    ),
)
