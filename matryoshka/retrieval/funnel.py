"""The plan of a search in stages: at which widths, and how many candidates each stage hands on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from matryoshka import _checks, costs

__all__ = ["Funnel"]


@dataclass(frozen=True, init=False)
class Funnel:
    """Search at the narrowest width, then rerank ever shorter lists at ever wider prefixes.

    Parameters
    ----------
    dims : sequence of int
        Widths of the stages, positive and strictly increasing: the exact search, then each reranking.
    keep : sequence of int
        Candidates handed from each stage to the next, one fewer than `dims`, positive and never growing. The last
        bounds how many results a search can return.

    Raises
    ------
    TypeError
        A width or a count is no integer.
    ValueError
        The widths do not increase, the lists grow, or their numbers do not fit.

    Notes
    -----
    Section 4.3.1 of Kusupati et al. (2022). ``Funnel((16, 2048), (200,))`` is the paper's adaptive retrieval,
    ``Funnel((2048,), ())`` a single shot. A funnel compares by value and is hashable. On a corpus of n rows, lists
    longer than n count as n.

    Examples
    --------
    >>> funnel = Funnel((16, 32, 64, 128, 256, 2048), (200, 100, 50, 25, 10))
    >>> funnel == Funnel.halving(2048)
    True
    >>> round(funnel.speedup(1_281_167), 1)
    127.7
    """

    dims: tuple[int, ...]
    keep: tuple[int, ...]

    def __init__(self, dims: Iterable[int], keep: Iterable[int]) -> None:
        widths = _checks.dims(dims)
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "keep", _checks.keep(keep, len(widths)))

    @classmethod
    def halving(cls, dim: int, *, smallest: int = 16, keep: int = 200, last: int = 10) -> Funnel:
        """Halve the list and double the width from stage to stage, then jump to `dim`.

        Parameters
        ----------
        dim : int
            Width of the last reranking.
        smallest : int, default 16
            Width of the search, at most `dim`. Widths double as long as twice the new one fits into `dim`.
        keep : int, default 200
            Candidates of the search.
        last : int, default 10
            Candidates of the last reranking, at most `keep`; a list is halved (rounding down) while at least twice
            `last` remains. Where the widths reach `dim` first, the last list stays longer than `last`.

        Returns
        -------
        Funnel
            For 2048: the paper's funnel, widths 16, 32, 64, 128, 256, 2048 and lists 200, 100, 50, 25, 10.

        Examples
        --------
        >>> Funnel.halving(2048, smallest=32)
        Funnel((32, 64, 128, 256, 512, 2048), (200, 100, 50, 25, 10))
        >>> Funnel.halving(96, smallest=24)
        Funnel((24, 48, 96), (200, 100))
        """
        dim = _checks.integer(dim, "dim", minimum=1)
        width = _checks.integer(smallest, "smallest", minimum=1, maximum=dim)
        count = _checks.integer(keep, "keep", minimum=1)
        last = _checks.integer(last, "last", minimum=1, maximum=count)
        dims, lists = [width], []
        while width < dim:
            lists.append(count)
            width = dim if count == last or 4 * width > dim else 2 * width
            count = count // 2 if count >= 4 * last else last
            dims.append(width)
        return cls(dims, lists)

    @classmethod
    def from_json(cls, text: str) -> Funnel:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            `text` is not the JSON of a funnel.
        """
        record = _checks.record(text, kind="funnel", keys=("dims", "keep"))
        return cls(record["dims"], record["keep"])

    def to_json(self) -> str:
        """Return the funnel as JSON text.

        Examples
        --------
        >>> Funnel.from_json(Funnel((8, 16), (50,)).to_json()) == Funnel((8, 16), (50,))
        True
        """
        return json.dumps({"kind": "funnel", "version": 1, "dims": self.dims, "keep": self.keep})

    def multiply_adds(self, n: int, *, executed: bool = False) -> int:
        """Count the multiply-adds of one query on `n` rows.

        Parameters
        ----------
        n : int
            Rows of the corpus.
        executed : bool, default False
            Count as executed, where each stage reuses the products of the one before, instead of as published.

        Returns
        -------
        int
            As `costs.funnel`, which says how both ways count.

        Examples
        --------
        >>> Funnel((16, 2048), (200,)).multiply_adds(1_281_167)
        20908272
        """
        return costs.funnel(n, self.dims, self.keep, executed=executed)

    def speedup(self, n: int, *, executed: bool = False) -> float:
        """Divide the multiply-adds of a single shot at the last width by those of this funnel.

        Parameters
        ----------
        n : int
            Rows of the corpus.
        executed : bool, default False
            As for `multiply_adds`.

        Returns
        -------
        float
            How many times fewer multiply-adds; 1 for a single shot. On the clock it is less: choosing candidates
            takes time as well.
        """
        return costs.search(n, self.dims[-1]) / self.multiply_adds(n, executed=executed)

    def __repr__(self) -> str:
        return f"Funnel({self.dims}, {self.keep})"
