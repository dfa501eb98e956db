"""The last section: each claim of the paper beside what the stored runs saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.study.page import ablations, cascades, modes, retrieval, robust, widths
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, listed, title
from benchmarks.study.page.verdicts import (
    AGREES,
    DIFFERS,
    IN_PART,
    NOT_RUN,
    RULE,
    UNDECIDED,
    Claim,
    overall,
    seen,
    within,
)

CLAIMS: Sequence[Claim] = (
    *widths.CLAIMS,
    *cascades.CLAIMS,
    *retrieval.CLAIMS,
    *robust.CLAIMS,
    *modes.CLAIMS,
    *ablations.CLAIMS,
)

WORDS = {
    AGREES: ("agrees", "agree"),
    IN_PART: ("agrees in part", "agree in part"),
    DIFFERS: ("differs", "differ"),
    UNDECIDED: ("is undecided", "are undecided"),
}
"""Of one claim, and of several."""


def section(studies: Sequence[Study]) -> Section:
    """Return a table of the claims, and the rule by which they are judged."""
    made = Section("8. The paper's claims, one by one")
    rows = [
        [
            f"{claim.text} (its {claim.source}). *Asked: {claim.asked}*",
            claim.paper,
            *(seen(claim, list(claim.cases(study))) for study in studies),
            f"**{verdict}**",
        ]
        for claim, verdict in judged(studies)
    ]
    header = ["claim of the paper", "its numbers", *map(title, studies), "verdict"]
    made.say(RULE, "\n".join(lines(header, rows)))
    return made


def judged(studies: Sequence[Study]) -> list[tuple[Claim, str]]:
    """Return each claim with its verdict over all data sets."""
    return [(claim, overall(within(claim.cases(study)) for study in studies)) for claim in CLAIMS]


def summary(studies: Sequence[Study]) -> str:
    """Return in words how many claims agree, and which do not."""
    verdicts = judged(studies)
    counts = Counter(verdict for _, verdict in verdicts if verdict != NOT_RUN)
    parts = [f"{counts[verdict]} {words[counts[verdict] > 1]}" for verdict, words in WORDS.items() if counts[verdict]]
    text = f"Of {counts.total()} claims of the paper {listed(parts)} (section 8)."
    apart = [
        f"- The paper: {claim.text[0].lower() + claim.text[1:]} (its {claim.source}). {title(study)} "
        f"{seen(claim, found)}."
        for claim, _ in verdicts
        for study in studies
        if within(found := list(claim.cases(study))) == DIFFERS
    ]
    return f"{text} Data sets that differ:\n\n" + "\n".join(apart) if apart else text


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table of words."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
