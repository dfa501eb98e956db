"""What each part reports, and what a corpus answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from matryoshka import Corpus, Funnel
from matryoshka.faiss import FaissCorpus

PLAN = Funnel((8, 16, 32), (60, 20))
"""For the corpora that are saved; an index of faiss stands at its first width."""


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


def results(corpus: Corpus | FaissCorpus) -> list[bytes]:
    """Return what a corpus answers to some queries, exactly and through a funnel."""
    rows = np.random.default_rng(9).normal(size=(5, corpus.dim)).astype(np.float32)
    plans = (None, PLAN)
    return [
        len(corpus).to_bytes(4),
        *(part.tobytes() for plan in plans for part in corpus.search(rows, 7, funnel=plan)),
    ]
