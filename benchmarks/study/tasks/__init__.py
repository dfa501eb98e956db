"""What the study measures: functions (bench, system, seed, **options of the grid) -> record of numbers, text and lists.

One module a subject; `TASKS` names them for the grids. What a task asks of `bench` is described in `cells.Bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.study import towers
from benchmarks.study.tasks import (
    accuracy,
    cascade,
    clock,
    contrastive,
    few_shot,
    image_text,
    long_tail,
    masked_language,
    retrieval,
    robustness,
    superclass,
)

TASKS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "accuracy": accuracy.measure,
    "cascade": cascade.measure,
    "retrieval": retrieval.measure,
    "clock": clock.measure,
    "robustness": robustness.measure,
    "few_shot": few_shot.measure,
    "long_tail": long_tail.measure,
    "unseen": long_tail.unseen,
    "superclass": superclass.measure,
    "contrastive": contrastive.measure,
    "image_text": image_text.measure,
    "masked_language": masked_language.measure,
}

TIMED = frozenset({"clock"})
"""Tasks whose records hold seconds: run one by one, after all others."""

TRAIN_THEMSELVES: Mapping[str, Iterable[str]] = {
    "contrastive": towers.SYSTEMS,
    "image_text": towers.SYSTEMS,
    "masked_language": masked_language.SYSTEMS,
}
"""The systems of tasks that use none of the grid's."""
