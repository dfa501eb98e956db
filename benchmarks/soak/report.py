"""What each part reports, what is saved for it, and what that answers once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from matryoshka import Cascade, Corpus, Funnel, Rotation
from matryoshka.faiss import FaissCorpus

PLAN = Funnel((8, 16, 32), (60, 20))
"""For the corpora that are saved; an index of faiss stands at its first width."""

Saved = Corpus | FaissCorpus | Rotation
"""What is saved as a folder."""


@dataclass
class Report:
    """What was tried of one kind, what held, and what did not."""

    name: str
    tried: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, outcome: str, *, times: int = 1) -> None:
        self.tried += times
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + times


def results(saved: Saved) -> list[bytes]:
    """Return how rows are rotated, or what a corpus answers to them, exactly and through a funnel in each code."""
    rows = np.random.default_rng(9).normal(size=(5, saved.dim)).astype(np.float32)
    if isinstance(saved, Rotation):
        return [saved.apply(rows).tobytes(), saved.energy.tobytes()]
    plans = (None, *(Funnel(PLAN.dims, PLAN.keep, code=code) for code in saved.codes))
    return [
        len(saved).to_bytes(4),
        *(part.tobytes() for plan in plans for part in saved.search(rows, 7, funnel=plan)),
    ]


def certified(seed: int) -> list[Cascade]:
    """Return the cascades of three groups of rows, with their certificates."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=900)
    logits = np.eye(4)[labels] * 6 + rng.normal(size=(2, 900, 4))
    groups = np.arange(900) % 3
    found = Cascade.certify(logits, labels, nesting=(4, 8), max_gap=0.05, groups=groups, from_logits=True)
    return list(found.values())
