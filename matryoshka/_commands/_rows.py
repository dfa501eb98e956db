"""Rows of a cascade as the commands read them: what every prefix says and, where it is known, what is true."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._commands._inputs import bad_rows, load_array

ONE_IN = 5
"""Where no other rows judge, one in so many does, and chooses nothing."""

_LARGE = 2**27


class Rows(NamedTuple):
    """Probabilities (prefixes, rows, classes), and labels and groups (rows,) or None."""

    probabilities: np.ndarray
    labels: np.ndarray | None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.probabilities.shape[1])

    @property
    def ids(self) -> set[int]:
        """Which groups there are."""
        return set() if self.groups is None else set(self.groups.tolist())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What a cascade is asked with."""
        return (self.probabilities,) if self.labels is None else (self.probabilities, self.labels)

    def doing(self, what: str) -> None:
        """Say, on a terminal, what is being done with these rows, if there are so many that it takes a while."""
        if self.probabilities.nbytes >= _LARGE and sys.stderr.isatty():
            print(f"matryoshka: {what} {len(self):,} rows ...", file=sys.stderr, flush=True)

    def split(self, seed: int) -> tuple[Rows, Rows]:
        """Return a random four fifths and the others, in order: the file is read once."""
        n = len(self)
        if n < ONE_IN:
            msg = (
                f"PROBS.npy must have at least {ONE_IN} rows, of which one in {ONE_IN} judges, got {n}; "
                "add rows, or name others with --test."
            )
            raise ValueError(msg)
        order = np.random.default_rng(_checks.seed(seed, "--seed")).permutation(n)
        self.doing("reading")
        return self._take(np.sort(order[n // ONE_IN :])), self._take(np.sort(order[: n // ONE_IN]))

    def labelled(self) -> Rows:
        """Leave out rows whose label is -1, unknown: they may fit a cascade, and cannot judge one."""
        known = None if self.labels is None else self.labels != -1
        if known is None or known.all():
            return self
        if not known.any():
            msg = (
                f"LABELS.npy must hold a label for some row that judges, got -1 for all {len(self)}; "
                "name labelled rows, or leave it out."
            )
            raise ValueError(msg)
        return self._take(np.flatnonzero(known))

    def of(self, group: int | None) -> Rows:
        """Return the rows of a group; None stands for all rows."""
        return self if group is None else self._take(np.flatnonzero(self.groups == group))

    def count(self, group: int | None) -> int:
        """Return how many rows `of` would."""
        return len(self) if group is None else int(np.count_nonzero(self.groups == group))

    def _take(self, rows: np.ndarray) -> Rows:
        labels, groups = (None if each is None else each[rows] for each in (self.labels, self.groups))
        return Rows(self.probabilities[:, rows], labels, groups)


def load(
    path: str, labels: str | None, dims: tuple[int, ...] | None, groups: str | None = None, *, name: str = "PROBS.npy"
) -> Rows:
    """Map one file and read the other; a file of probabilities must have a prefix for each of the widths."""
    probabilities = load_array(path, name, mmap=True)
    _checks.ndim(probabilities, "probabilities", 3, "(prefixes, rows, classes)")
    n_prefixes, n, _ = probabilities.shape
    if dims is None:
        rule = f"--dims must name the widths of the {n_prefixes} prefixes in {path}"
        msg = f"{rule}, got none; name them from the narrowest on, as in --dims 8,16,32."
        raise ValueError(msg)
    if len(dims) != n_prefixes:
        msg = f"{path} must hold a prefix for each of the {len(dims)} widths, got {n_prefixes}; name its own ladder."
        raise ValueError(msg)
    if probabilities.dtype.kind == "f":  # before rows are drawn from it: their numbers are those in the file
        for i, rows in enumerate(probabilities):
            _checks.no_bad_rows(bad_rows(rows), n, f"{path}[{i}]")
    groups_name, labels_name = ("GROUPS.npy", "LABELS.npy") if name == "PROBS.npy" else (name, name)
    ids = None if groups is None else load_array(groups, groups_name)
    if ids is not None and (ids.shape != (n,) or ids.dtype.kind not in "iu"):
        got = f"{ids.dtype} {ids.shape}"
        msg = f"{groups_name} must hold an integer for each of {n} rows, got {got}; number the groups."
        raise ValueError(msg)
    if labels is None:
        return Rows(probabilities, None, ids)
    truth = load_array(labels, labels_name)
    _checks.labels(truth, "labels", (n,), np)
    return Rows(probabilities, truth, ids)
