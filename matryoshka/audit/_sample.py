"""The rows to audit: a random sample, normalised, each direction once, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import row_blocks, take_rows, to_numpy
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate

_BLOCK = 4096


class Sample(NamedTuple):
    """Audited rows, in random order; the first `n_queries` are the queries."""

    rows: np.ndarray
    """(n, dim), float32, unit length."""
    ids: np.ndarray
    """(n,): their row numbers in the embeddings."""
    labels: np.ndarray | None
    """(n,)."""
    n_queries: int
    n_total: int
    """Rows of the embeddings."""
    n_duplicates: int
    """Rows that were drawn and dropped, because an earlier one has the same direction."""


def draw(
    embeddings: Array,
    labels: Array | None,
    *,
    k: int,
    max_rows: int,
    max_queries: int,
    rng: np.random.Generator,
    xp: Namespace,
) -> Sample:
    """Check embeddings and labels, and draw the rows to audit."""
    _checks.signed_numbers(embeddings, "embeddings", xp)
    _checks.not_empty(embeddings, "embeddings")
    n_total = embeddings.shape[0]
    if labels is not None:
        _checks.labels(labels, "labels", (n_total,), xp)
    drawn = np.sort(rng.choice(n_total, size=min(n_total, max_rows), replace=False))
    rows = _unit(read(embeddings, drawn, xp))
    first = _first_of_each(rows)
    if len(first) <= 2 * k:
        msg = (
            f"`embeddings` must have more than 2 k = {2 * k} rows of different directions, got {len(first)}; "
            "pass more rows or a smaller k."
        )
        raise ValueError(msg)
    order = rng.permutation(first)
    return Sample(
        rows=rows[order],
        ids=drawn[order],
        labels=None if labels is None else to_numpy(take_rows(labels, drawn[order], xp)),
        n_queries=min(len(first), max_queries),
        n_total=n_total,
        n_duplicates=len(drawn) - len(first),
    )


def draw_others(embeddings: Array, sample: Sample, most: int, *, rng: np.random.Generator, xp: Namespace) -> np.ndarray:
    """Draw at most `most` rows, as they are, that are not zero, not audited, nor in the direction of an audited one."""
    audited = np.sort(sample.ids)
    n_others = sample.n_total - len(audited)
    drawn = np.sort(rng.choice(n_others, size=min(n_others, most), replace=False))
    drawn += np.searchsorted(audited - np.arange(len(audited)), drawn, side="right")  # skips the audited ones
    rows = read(embeddings, drawn, xp)
    seen = set(_directions(sample.rows))
    parts = row_blocks(len(rows), _BLOCK)
    new = [direction not in seen for part in parts for direction in _directions(_unit(rows[part]))]
    return np.asarray(rows[np.asarray(new, dtype=bool) & rows.any(axis=1)])


def read(embeddings: Array, ids: np.ndarray, xp: Namespace) -> np.ndarray:
    """Return some rows as they are, on the host, after checking that they are finite; integers as float64."""
    rows = to_numpy(take_rows(embeddings, ids, xp))
    rows = rows if np.issubdtype(rows.dtype, np.floating) else rows.astype(np.float64)
    bad = ids[~np.isfinite(rows).all(axis=1)].tolist()
    _checks.no_bad_rows(bad, len(ids), "embeddings", drawn_from=embeddings.shape[0])
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(truncate(rows.astype(np.float64, copy=False), rows.shape[1]), dtype=np.float32)


def _directions(rows: np.ndarray) -> Iterator[bytes]:
    """Yield the direction of each row of unit length, to six digits."""
    for row in rows:
        yield (np.round(row, 6) + np.float32(0.0)).tobytes()


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows whose direction no earlier row has."""
    seen: dict[bytes, int] = {}
    for i, direction in enumerate(_directions(rows)):
        seen.setdefault(direction, i)
    return np.fromiter(seen.values(), dtype=np.int64, count=len(seen))
