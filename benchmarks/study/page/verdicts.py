"""What a claim is, and the rule by which stored runs agree with it, differ from it, or cannot decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from scipy.stats import t

from benchmarks.study.page.records import Study
from benchmarks.study.page.series import Curve, mean, spread

CONFIDENCE = 0.95

AGREES, IN_PART, DIFFERS, UNDECIDED, NOT_RUN = "agrees", "agrees in part", "differs", "undecided", "not run"

RULE = f"""A claim is put as a number that should lie within bounds, mostly a difference between two systems, in points,
that should not fall below some value. It is taken for each seed, in each of its *cases* (a width, a data set, a number
of shots), and from the three seeds comes the interval that holds the mean over all seeds with {CONFIDENCE:.0%}
probability (Student's t: the mean ± 2.5 standard deviations). A case **agrees** if the whole interval lies within the
bounds, **differs** if it lies outside, and is **undecided** otherwise, as is a case with one seed. A data set is
undecided if fewer than half of its cases are decided; else it agrees, or differs, if all decided cases do, and **agrees
in part** if they are of both kinds. The verdict in the end is *agrees* if all data sets agree, *agrees in part* if only
some do or do so in part, *differs* if none agrees and any differs, and else *undecided*. Cases are not independent, and
nothing is corrected for their number: a verdict sums up what was seen and is no test."""


@dataclass(frozen=True)
class Case:
    """A number for each seed that should lie from `least` to `most`."""

    label: str
    values: Mapping[int, float]
    least: float = -math.inf
    most: float = math.inf

    @property
    def verdict(self) -> str:
        """Whether the interval of the mean lies within the bounds, outside, or neither."""
        low, high = interval(self.values)
        if self.least <= low and high <= self.most:
            return AGREES
        return DIFFERS if high < self.least or low > self.most else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, what it found, and how stored runs are asked.

    Parameters
    ----------
    text, source, paper
        The claim in own words, where it stands, and the numbers it rests on there.
    asked
        What is asked of the stored runs, in words, with the bounds.
    cases
        The cases of one study; none if it was not run.
    unit
        "points" or "%" (values are shares, shown times 100) or what follows a plain number, such as "×".
    """

    text: str
    source: str
    paper: str
    asked: str
    cases: Callable[[Study], Iterable[Case]] = field(repr=False)
    unit: str = "points"

    def shown(self, value: float) -> str:
        """Return a value without its unit."""
        if self.unit == "points":
            return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")  # no minus zero
        if self.unit == "%":
            return f"{100 * value:.1f}"
        return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def interval(values: Mapping[int, float]) -> tuple[float, float]:
    """Return the interval of the mean over all seeds; the whole line if there is one seed, from which none can come."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread(values) / math.sqrt(n)
    return mean(values) - half, mean(values) + half


def cases(curve: Curve, *, least: float = -math.inf, most: float = math.inf, what: str = "") -> Iterator[Case]:
    """Return a case for each width of a curve."""
    for x, seeds in curve.items():
        yield Case(f"{what} at {x:g}".lstrip(), seeds, least, most)


def within(cases: Iterable[Case]) -> str:
    """Return the verdict of one data set on its cases, by `RULE`."""
    verdicts = [case.verdict for case in cases if case.values]
    agree, differ = verdicts.count(AGREES), verdicts.count(DIFFERS)
    if not verdicts:
        return NOT_RUN
    if 2 * (agree + differ) < len(verdicts):
        return UNDECIDED
    return IN_PART if agree and differ else AGREES if agree else DIFFERS


def overall(verdicts: Iterable[str]) -> str:
    """Return the verdict on those of several data sets, by `RULE`."""
    run = set(verdicts) - {NOT_RUN}
    if not run:
        return NOT_RUN
    if run & {AGREES, IN_PART}:
        return AGREES if run == {AGREES} else IN_PART
    return DIFFERS if DIFFERS in run else UNDECIDED


def worst(cases: Sequence[Case]) -> Case:
    """Return the case that lies farthest outside its bounds, or nearest to leaving them."""
    return min(cases, key=lambda case: min(mean(case.values) - case.least, case.most - mean(case.values)))


def seen(claim: Claim, cases: Sequence[Case]) -> str:
    """Return in words what one data set says: its verdict, how many cases agree, and the number of the weakest."""
    cases = [case for case in cases if case.values]
    if not cases:
        return NOT_RUN
    least = worst(cases)
    unit = f" {claim.unit}" if claim.unit else ""
    number = f"{claim.shown(mean(least.values))} ± {_spread(claim, least.values)}{unit}"
    if len(cases) == 1:
        return f"{least.verdict}: {number}{least.label and f', {least.label}'}"
    counts = [case.verdict for case in cases]
    order = [AGREES, DIFFERS, UNDECIDED]
    words = [
        f"{len(list(group))} {'agree' if verdict == AGREES else 'differ' if verdict == DIFFERS else verdict}"
        for verdict, group in groupby(sorted(counts, key=order.index))
    ]
    return f"{within(cases)}: {', '.join(words)}; weakest {number}, {least.label}"


def _spread(claim: Claim, values: Mapping[int, float]) -> str:
    found = spread(values)
    return "?" if math.isnan(found) else claim.shown(found).lstrip("+")
