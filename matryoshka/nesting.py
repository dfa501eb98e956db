"""Which prefixes of an embedding are trained, and how much each counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from matryoshka import _checks
from matryoshka._values import JsonValue

__all__ = ["Nesting"]


@dataclass(frozen=True, init=False)
class Nesting(JsonValue):
    """A ladder of prefix widths with the relative importance of each.

    Parameters
    ----------
    dims : sequence of int
        Widths of the prefixes, positive and strictly increasing; the last is the width of the embedding.
    importance : sequence of float, optional
        Weight c_m >= 0 of each prefix in a loss, not all 0. All 1 by default, as in the paper.

    Raises
    ------
    TypeError
        A width is no integer, or an importance is no number.
    ValueError
        The widths are empty, not positive or not strictly increasing; the importances are negative, not finite,
        all 0, or not one per width.

    Notes
    -----
    The set M and the weights c_m of Kusupati et al. (2022), section 3, equation 1. A nesting compares by value,
    is hashable, and iterates over its widths.

    Examples
    --------
    >>> nesting = Nesting((8, 16, 32), importance=(2, 1, 1))
    >>> nesting
    Nesting((8, 16, 32), importance=(2.0, 1.0, 1.0))
    >>> nesting.dim, len(nesting), list(nesting)
    (32, 3, [8, 16, 32])
    >>> Nesting.from_json(nesting.to_json()) == nesting
    True
    """

    _kind: ClassVar[str] = "nesting"

    dims: tuple[int, ...]
    importance: tuple[float, ...]

    def __init__(self, dims: Iterable[int], importance: Iterable[float] | None = None) -> None:
        widths = _checks.dims(dims)
        weights = (1.0,) * len(widths) if importance is None else _importance(importance, len(widths))
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "importance", weights)

    @classmethod
    def halving(cls, dim: int, *, smallest: int = 8, importance: Sequence[float] | None = None) -> Nesting:
        """Halve `dim` down to `smallest`, the paper's ladder.

        Parameters
        ----------
        dim : int
            Width of the embedding.
        smallest : int, default 8
            The ladder begins with the first halving that is still at least this wide: 384 with smallest 8 begins with
            12, since 6 would be narrower. Odd widths round down when halved.
        importance : sequence of float, optional
            As for `Nesting`, from the narrowest prefix to the widest.

        Returns
        -------
        Nesting
            For 2048: 8, 16, 32, …, 2048. For 768 with smallest 12: 12, 24, …, 768.

        Examples
        --------
        >>> Nesting.halving(100, smallest=10).dims
        (12, 25, 50, 100)
        """
        dim = _checks.integer(dim, "dim", minimum=1)
        smallest = _checks.integer(smallest, "smallest", minimum=1, maximum=dim)
        widths = []
        while dim >= smallest:
            widths.append(dim)
            dim //= 2
        return cls(reversed(widths), importance)

    @classmethod
    def uniform(
        cls, dim: int, *, smallest: int = 8, count: int = 11, importance: Sequence[float] | None = None
    ) -> Nesting:
        """Space `count` widths evenly from `smallest` to `dim`, the ladder of the paper's ablation (Table 29).

        Parameters
        ----------
        dim : int
            Width of the embedding.
        smallest : int, default 8
            Width of the narrowest prefix.
        count : int, default 11
            Number of prefixes, at least 2; fractional widths round down.
        importance : sequence of float, optional
            As for `Nesting`, from the narrowest prefix to the widest.

        Returns
        -------
        Nesting
            For 2048: 8, 212, 416, …, 1844, 2048.

        Examples
        --------
        >>> Nesting.uniform(2048, count=3).dims
        (8, 1028, 2048)
        """
        dim = _checks.integer(dim, "dim", minimum=2)
        smallest = _checks.integer(smallest, "smallest", minimum=1, maximum=dim - 1)
        count = _checks.integer(count, "count", minimum=2, maximum=dim - smallest + 1)
        return cls((smallest + i * (dim - smallest) // (count - 1) for i in range(count)), importance)

    @property
    def dim(self) -> int:
        """Width of the embedding: the largest prefix."""
        return self.dims[-1]

    @property
    def blocks(self) -> tuple[slice, ...]:
        """Columns that each prefix adds to the one before; together they cover the embedding once."""
        return tuple(slice(start, stop) for start, stop in zip((0, *self.dims), self.dims, strict=False))

    def __len__(self) -> int:
        return len(self.dims)

    def __iter__(self) -> Iterator[int]:
        return iter(self.dims)

    def __repr__(self) -> str:
        plain = all(weight == 1.0 for weight in self.importance)
        return f"Nesting({self.dims})" if plain else f"Nesting({self.dims}, importance={self.importance})"


NestingLike: TypeAlias = Nesting | Sequence[int]
"""A `Nesting`, or the widths of its prefixes."""


def as_nesting(nesting: NestingLike) -> Nesting:
    """Return `nesting` itself, or the `Nesting` of a sequence of widths."""
    return nesting if isinstance(nesting, Nesting) else Nesting(_checks.dims(nesting, "nesting"))


def _importance(values: Iterable[float], count: int) -> tuple[float, ...]:
    weights = _checks.numbers(values, "importance", count, "one weight per prefix", minimum=0.0)
    if not any(weights):
        msg = "`importance` must hold at least one weight above 0, got only zeros; give some prefix a weight."
        raise ValueError(msg)
    return weights
