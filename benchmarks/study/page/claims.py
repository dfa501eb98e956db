"""The last section: each claim of the paper beside what the stored runs saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.study.page import ablations, cascades, modes, retrieval, robust, widths
from benchmarks.study.page.records import Study
from benchmarks.study.page.section import Section, title
from benchmarks.study.page.verdicts import NOT_RUN, RULE, Claim, overall, seen

CLAIMS: Sequence[Claim] = (
    *widths.CLAIMS,
    *cascades.CLAIMS,
    *retrieval.CLAIMS,
    *robust.CLAIMS,
    *modes.CLAIMS,
    *ablations.CLAIMS,
)


def section(studies: Sequence[Study]) -> Section:
    """Return a table of the claims, and the rule by which they are judged."""
    made = Section("8. The paper's claims, one by one")
    verdicts = []
    rows = []
    for claim in CLAIMS:
        by_study = [list(claim.cases(study)) for study in studies]
        verdicts.append(overall(case for cases in by_study for case in cases))
        rows.append(
            [
                f"{claim.text} ({claim.source}). *Asked: {claim.asked}*",
                claim.paper,
                *(seen(claim, cases) for cases in by_study),
                f"**{verdicts[-1]}**",
            ]
        )
    counts = Counter(verdicts)
    judged = ", ".join(f"{verdict}: {n}" for verdict, n in counts.most_common() if verdict != NOT_RUN)
    made.say(RULE, f"Of {len(CLAIMS)} claims {len(CLAIMS) - counts[NOT_RUN]} were run. {judged}.")
    header = ["claim", "in the paper", *map(title, studies), "verdict"]
    made.say("\n".join(lines(header, rows)))
    return made


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table of words."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
