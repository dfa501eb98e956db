"""The plan of a search in stages: at which widths, and how many candidates each stage hands on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from matryoshka import _checks, costs
from matryoshka._typing import Array
from matryoshka.retrieval import _calibration
from matryoshka.retrieval._calibration import FunnelPoint, RecallCertificate

if TYPE_CHECKING:
    from matryoshka.retrieval.corpus import Corpus

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
    certificate : RecallCertificate, optional
        What `calibrate` promised; no part of what funnels are compared by.

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
    certificate: RecallCertificate | None = field(compare=False)

    def __init__(
        self, dims: Iterable[int], keep: Iterable[int], *, certificate: RecallCertificate | None = None
    ) -> None:
        widths = _checks.dims(dims)
        lists = _checks.keep(keep, len(widths))
        _check_certificate(certificate, widths, lists)
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "keep", lists)
        object.__setattr__(self, "certificate", certificate)

    @classmethod
    def halving(cls, dim: int, *, smallest: int = 16, keep: int = 200, last: int = 10) -> Self:
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
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            `text` is not the JSON of a funnel.
        """
        record = _checks.record(text, kind="funnel", keys=("dims", "keep", "certificate"))
        certificate = record["certificate"]
        with _checks.reading("funnel"):
            return cls(
                record["dims"],
                record["keep"],
                certificate=None if certificate is None else RecallCertificate.from_record(certificate),
            )

    @classmethod
    def calibrate(
        cls,
        corpus: Corpus,
        queries: Array,
        k: int,
        *,
        recall: float = 0.99,
        delta: float = 0.1,
        dims: Sequence[int] | None = None,
        longest: int = 1000,
        seed: int = 0,
    ) -> Self:
        """Find the cheapest funnel whose recall@k against the exact search is certified.

        Parameters
        ----------
        corpus : Corpus
            The rows that will be searched.
        queries : array (n_queries, dim), floating
            Independent draws of the queries to come. One half chooses candidates, the other tests them.
        k : int
            Results per query that the funnel is for.
        recall : float, default 0.99
            Share of the exact `k` nearest rows that is to be found, on average over queries; within (0, 1).
        delta : float, default 0.1
            Probability, over the draw of the tested queries, that the promise may be wrong; within (0, 1).
        dims : sequence of int, optional
            Widths that stages may have, the last that of the corpus. By default halved from there down to 8.
        longest : int, default 1000
            No list is longer than this.
        seed : int, default 0
            Splits the queries.

        Returns
        -------
        Funnel
            With a `certificate`. If no funnel passed the test it is the exact search, and the certificate says how
            many queries are needed at least.

        Raises
        ------
        TypeError
            `corpus` is no corpus, or an argument is of the wrong kind.
        ValueError
            A number is out of its range, `dims` do not end with the width of the corpus, or there are fewer than two
            queries.

        Notes
        -----
        The promise is on *expected* recall and holds with probability at least 1 - delta: with that probability over
        the tested queries, the mean recall@k over all queries of their kind is at least `recall`. It is about this
        corpus as it stands, and about queries drawn like these.

        Recall is not monotone in the list lengths, so a whole funnel is tested and not its stages: Learn then Test
        (Angelopoulos et al., 2021) with a betting p-value, along a fixed sequence from the safest candidate to the
        cheapest, which ends at the first that fails and so needs no correction for their number. Candidates are the
        Pareto front, on the first half, of funnels that double the width for a while and then jump to the full one,
        with lists as short as a given share of lost neighbours allows.

        To calibrate costs an exact search for all queries, one search per width considered as a start, and one per
        funnel tested. Blocks of prefixes built on the way are dropped again, except those of the result.
        """
        search = _calibration.Search.of(corpus, k, dims, longest)
        return _calibration.calibrate(cls, corpus, queries, search, recall, delta, seed)

    @classmethod
    def pareto(
        cls,
        corpus: Corpus,
        queries: Array,
        k: int,
        *,
        dims: Sequence[int] | None = None,
        longest: int = 1000,
    ) -> list[FunnelPoint]:
        """List the funnels that no other one beats in both multiply-adds and recall@k on these queries.

        Parameters
        ----------
        corpus, queries, k, dims, longest
            As for `calibrate`; all queries are used to choose, and nothing is promised for others.

        Returns
        -------
        list of FunnelPoint
            Cheapest first; the last is the exact search.
        """
        return _calibration.pareto(cls, corpus, queries, _calibration.Search.of(corpus, k, dims, longest))

    def to_json(self) -> str:
        """Return the funnel as JSON text, its certificate included.

        Examples
        --------
        >>> Funnel.from_json(Funnel((8, 16), (50,)).to_json()) == Funnel((8, 16), (50,))
        True
        """
        certificate = None if self.certificate is None else self.certificate.to_record()
        return json.dumps(
            {"kind": "funnel", "version": 1, "dims": self.dims, "keep": self.keep, "certificate": certificate}
        )

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


def _check_certificate(certificate: object, dims: tuple[int, ...], keep: tuple[int, ...]) -> None:
    if certificate is None:
        return
    if not isinstance(certificate, RecallCertificate):
        msg = f"`certificate` must be what `Funnel.calibrate` made, got {type(certificate).__name__}; leave it out."
        raise TypeError(msg)
    if (certificate.dims, certificate.keep) != (dims, keep):
        msg = (
            f"`certificate` must be about this funnel, {dims} with {keep}, got one about {certificate.dims} with "
            f"{certificate.keep}; calibrate anew."
        )
        raise ValueError(msg)
