"""What a rotation keeps, measured on rows on which it was not fitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from matryoshka import costs
from matryoshka._typing import Array, Namespace
from matryoshka.audit import _neighbours, _rule
from matryoshka.audit._sample import Sample, draw_others, read
from matryoshka.rotation import Rotation

_ROWS = 4
"""Rows to fit on, in multiples of the columns: more would change the figures by one point at most."""


class Trial(NamedTuple):
    """A rotation, and rows on which it was not fitted."""

    sample: Sample
    rotation: Rotation | None
    """None where there are too few rows to fit one."""
    n_fitted: int


def trial(embeddings: Array, sample: Sample, k: int, *, rng: np.random.Generator, xp: Namespace) -> Trial:
    """Fit a rotation on rows that are not audited, and if these are too few, also on half of those that are.

    It is fitted on the rows as they are, not normalised, as a user of `Rotation.fit` would do it.
    """
    n, dim = sample.rows.shape
    others = draw_others(embeddings, sample, _ROWS * dim, rng=rng, xp=xp)
    if len(others) >= dim:
        return Trial(sample, Rotation.fit(others), len(others))
    half = n // 2
    if len(others) + n - half < dim or half <= 2 * k:
        return Trial(sample, None, 0)
    fitted = np.concatenate((others, read(embeddings, sample.ids[half:], xp)))
    labels = None if sample.labels is None else sample.labels[:half]
    measured = sample._replace(rows=sample.rows[:half], labels=labels, n_queries=min(half, sample.n_queries))
    return Trial(measured, Rotation.fit(fitted), len(fitted))


def measure(
    tried: Trial, dims: tuple[int, ...], k: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], list[_rule.FirstStage]]:
    """Return the columns of the table about the rotation, and the possible first stages of a search.

    First stages are measured only if their lists hold at most a tenth of the rows.
    """
    rows, rotation = tried.sample.rows, tried.rotation
    exact = _neighbours.neighbours(tried.sample, k)
    length = _rule.CANDIDATES * k
    lists = (k, length) if len(rows) >= 10 * length else (k,)
    plain = _neighbours.kept_among(rows, dims, exact, lists)
    variants, columns = [(rows, plain)], {}
    if rotation is not None:
        turned = rotation.apply(rows)
        rotated = _neighbours.kept_among(turned, dims, exact, lists)
        variants.append((turned, rotated))
        gain = rotated[0] - plain[0]
        columns = {"rotated": rotated[0].mean(axis=1), "gain": gain.mean(axis=1)}
        columns["gain_low"], columns["gain_high"] = _rule.interval(gain, rng)
        if tried.sample.labels is not None:
            nearest = _neighbours.nearest_rows(turned, dims, len(exact))
            right = _neighbours.neighbour_accuracies(nearest, tried.sample.labels)
            columns["rotated_nearest_neighbor_accuracy"] = np.array(right)
    stages: list[_rule.FirstStage] = []
    if len(lists) > 1:
        for is_rotated, (each, kept) in zip((False, True), variants, strict=False):
            bits = _neighbours.kept_by_bits(each, dims, exact, length)
            stages += _stages("bits", is_rotated, dims, bits, length)
            stages += _stages("float", is_rotated, dims[:-1], kept[1].mean(axis=1), length)
    return columns, stages


def _stages(
    code: str, rotated: bool, dims: tuple[int, ...], kept: np.ndarray, length: int
) -> Iterator[_rule.FirstStage]:
    for dim, share in zip(dims, kept.tolist(), strict=False):
        yield _rule.FirstStage(dim, code, rotated, costs.index_bytes(1, dim, code=code), share, length)
