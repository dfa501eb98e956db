"""What sections of the page are made of: text, tables of means and spreads, and figures with their commands."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.study.page.records import Study
from benchmarks.study.page.series import Curve, Seeds, mean, spread
from benchmarks.table import lines

TITLES = {"digits": "digits", "fashion-mnist": "Fashion-MNIST", "clinc150": "CLINC150"}
"""Names of the data sets as they are written, in the order in which they are shown; others follow."""


LINE = 120
"""Characters to a line of text."""


def title(study: Study) -> str:
    """Return the name of the data set."""
    return TITLES.get(study.name, study.name)


def ordered(studies: Sequence[Study]) -> list[Study]:
    """Return the studies in the order of `TITLES`, others behind."""
    known = list(TITLES)
    return sorted(studies, key=lambda study: (known.index(study.name) if study.name in known else 99, study.name))


@dataclass
class Section:
    """A part of the page: text in Markdown, and its figures by file name."""

    title: str
    blocks: list[str] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)

    def say(self, *texts: str) -> None:
        """Add paragraphs; empty ones are left out."""
        self.blocks += [text for text in texts if text]

    def show(self, name: str, caption: str, image: bytes, tasks: Sequence[str]) -> None:
        """Add a figure with its caption and the commands that make it again."""
        self.figures[f"{name}.png"] = image
        run = " ".join(f"--task {task}" for task in tasks)
        self.say(
            f"![{caption}](study/{name}.png)",
            f"*{caption}*",
            f"`nox -s study -- --data DATA {run}` measures this (DATA being each data set in turn), "
            "`nox -s study -- page --store` draws it.",
        )

    def seen(self, subject: str, said: Mapping[str, str]) -> None:
        """Add what one sees: the subject, and what holds of it on each data set; nothing if there is nothing."""
        if there := {name: text for name, text in said.items() if text}:
            self.say(f"**Seen.** {subject}", "\n".join(f"- {name}: {text}" for name, text in there.items()))

    def table(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table under its caption, if it has rows."""
        if rows:
            self.say(f"**{caption}**", "\n".join(lines(header, rows)))

    def missing(self, studies: Sequence[Study], task: str, *, only: bool = False) -> list[Study]:
        """Return the studies that have records of `task`, and say of which there are none; if `only`, if of none."""
        there = [study for study in studies if study.systems(task)]
        if not there:
            self.say(f"*Not run: there are no stored records of the task `{task}`.*")
        elif not only and len(there) < len(studies):
            names = ", ".join(title(study) for study in studies if study not in there)
            self.say(f"*The task `{task}` was not run on {names}.*")
        return there

    def markdown(self) -> str:
        """Return heading and blocks."""
        return "\n\n".join([f"## {self.title}", *self.blocks])


def percent(seeds: Mapping[int, float] | None, digits: int = 1) -> str:
    """Return mean and spread of shares in percent; nothing if there are none."""
    return number({seed: 100 * value for seed, value in seeds.items()}, digits) if seeds else ""


def number(seeds: Mapping[int, float] | None, digits: int = 1) -> str:
    """Return mean and spread; nothing if there are none."""
    if not seeds:
        return ""
    around = spread(seeds)
    return f"{mean(seeds):,.{digits}f}" + ("" if math.isnan(around) else f" ± {around:,.{digits}f}")


def points(seeds: Mapping[int, float]) -> str:
    """Return mean and spread of a difference of shares, in points, with its sign."""
    around, middle = spread(seeds), round(100 * mean(seeds), 1) + 0.0  # no minus zero
    return f"{middle:+.1f}".replace("-", "−") + ("" if math.isnan(around) else f" ± {100 * around:.1f}")


def by_width(
    curves: Mapping[str, Curve], show: Callable[[Seeds | None], str] = percent, first: str = "width"
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table: a row a width, a column a curve; curves without points are left out."""
    curves = {name: curve for name, curve in curves.items() if curve}
    widths = sorted({x for curve in curves.values() for x in curve})
    rows = [[f"{x:g}", *(show(curve.get(x)) for curve in curves.values())] for x in widths]
    return [first, *curves], rows


def listed(words: Sequence[str]) -> str:
    """Return words as one would say them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def range_of(curve: Curve) -> str:
    """Return the smallest and the largest of some differences, in points, with their widths."""
    if not curve:
        return ""
    low, high = (choose(curve, key=lambda x: mean(curve[x])) for choose in (min, max))
    if low == high:
        return f"{points(curve[low])} (at {low:g})"
    return f"{points(curve[low])} (at {low:g}) to {points(curve[high])} (at {high:g})"


def plan_name(dims: Sequence[int], keep: Sequence[int] = ()) -> str:
    """Return a plan in words: "16 > 32 > 2048, keeping 200 > 100"."""
    return " > ".join(map(str, dims)) + (f", keeping {' > '.join(map(str, keep))}" if keep else "")


def wrapped(block: str) -> str:
    """Wrap a block of plain text; tables, lists, images, headings and comments keep their lines."""
    if re.match(r"\||!\[|#|```|<!--", block):
        return block
    if block.startswith("- "):
        return "\n".join(_filled(item, "  ") for item in re.split(r"\n(?=- )", block))
    return _filled(block)


def _filled(text: str, indent: str = "") -> str:
    words = re.sub("`[^`]*`", lambda code: code.group().replace(" ", "\0"), " ".join(text.split()))
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return textwrap.fill(words, LINE, **options).replace("\0", " ")
