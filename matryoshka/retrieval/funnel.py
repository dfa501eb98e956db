"""The plan of a search in stages: at which widths, and how many candidates each stage hands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from matryoshka import _checks, costs
from matryoshka._promises.certificates import RecallCertificate
from matryoshka._typing import Array
from matryoshka._values import JsonValue

__all__ = ["Funnel", "FunnelPoint", "Searchable"]


@runtime_checkable
class Searchable(Protocol):
    """What a funnel can run on and be calibrated on: rows to search, in memory, behind an index or anywhere else.

    Attributes
    ----------
    dim : int
        Width of the embeddings.
    metric : str
        The similarity: "cosine", "ip" or "l2".
    search_dims : tuple of int, or None
        Widths at which funnels may start; None: at any. A `Corpus` names those it has ready, and takes any other too.
    codes : tuple of str, or None
        Codes in which a funnel may search its first width; None: any. A `Funnel` says which there are.

    Notes
    -----
    `search` and `rerank` mean what they mean for `Corpus`, and `len` is the number of rows. Without a funnel a search
    is exact, and with the full width alone too, unless `search_dims` names that: an index of the full width.
    An engine whose stages can have certain widths only may name them as `dims`; calibration then tries no others.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import Corpus, Searchable
    >>> isinstance(Corpus(np.eye(3)), Searchable)
    True
    """

    @property
    def dim(self) -> int:
        """Width of the embeddings."""

    @property
    def metric(self) -> str:
        """The similarity."""

    @property
    def search_dims(self) -> tuple[int, ...] | None:
        """Widths at which funnels may start; None: at any."""

    @property
    def codes(self) -> tuple[str, ...] | None:
        """Codes in which a funnel may search its first width; None: any."""

    def __len__(self) -> int: ...

    def search(self, queries: Array, k: int, *, funnel: Funnel | None = None) -> tuple[Array, Array]:
        """Return scores and ids (n_queries, k), best first."""

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Return scores and ids (n_queries, k) of the best among given ids (n_queries, m), -1 being padding."""


@dataclass(frozen=True, init=False)
class Funnel(JsonValue):
    """Search at the narrowest width, then rerank ever shorter lists at ever wider prefixes.

    Parameters
    ----------
    dims : sequence of int
        Widths of the stages, positive and strictly increasing: the search, then each reranking. After a coded first
        stage the second width may be the first once more.
    keep : sequence of int, default ()
        Candidates handed from each stage to the next, one fewer than `dims`, positive and never growing. The last
        bounds how many results a search can return. A single width has none.
    code : {"float", "bits"}, default "float"
        How the first width is stored and searched: as it is, exactly; or one bit a column, the sign of what remains
        after the mean of the rows is subtracted, by the number of signs that differ, equal numbers by id. What a coded
        search found is scored in numbers by the next stage, or at the same width where there is none.
    certificate : RecallCertificate, optional
        What `calibrate` promised; no part of what funnels are compared by.

    Raises
    ------
    TypeError
        A width or a count is no integer.
    ValueError
        The widths do not increase, the lists grow, their numbers do not fit, or there is no such code.

    Notes
    -----
    Section 4.3.1 of Kusupati et al. (2022). ``Funnel((16, 2048), (200,))`` is the paper's adaptive retrieval,
    ``Funnel((2048,))`` a single shot. A funnel compares by value and is hashable. On a corpus of n rows, lists
    longer than n count as n.

    Examples
    --------
    >>> funnel = Funnel((16, 32, 64, 128, 256, 2048), (200, 100, 50, 25, 10))
    >>> funnel == Funnel.halving(2048)
    True
    >>> round(funnel.speedup(1_281_167), 1)
    127.7
    >>> Funnel.from_json(funnel.to_json()) == funnel
    True
    >>> coded = Funnel((512, 512, 2048), (200, 20), code="bits")
    >>> coded.bytes(1_000_000), Funnel((16, 2048), (200,)).bytes(1_000_000)
    (64532480, 65625600)
    """

    _kind: ClassVar[str] = "funnel"
    _before: ClassVar[dict[str, Any]] = {"code": "float", "best_recall": None}

    dims: tuple[int, ...]
    keep: tuple[int, ...]
    code: str
    certificate: RecallCertificate | None = field(compare=False)

    def __init__(
        self,
        dims: Iterable[int],
        keep: Iterable[int] = (),
        *,
        code: str = "float",
        certificate: RecallCertificate | None = None,
    ) -> None:
        code = _checks.choice(code, "code", _checks.CODES)
        widths = _checks.dims(dims, code=code)
        lists = _checks.keep(keep, len(widths))
        RecallCertificate.check(certificate, dims=widths, keep=lists, code=code)
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "keep", lists)
        object.__setattr__(self, "code", code)
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
    def calibrate(
        cls,
        corpus: Searchable,
        queries: Array,
        k: int,
        *,
        recall: float = 0.99,
        delta: float = 0.1,
        dims: Sequence[int] | None = None,
        longest: int = 1000,
        cost: str = "time",
        batch_size: int = 1,
        progress: Callable[[int, int], object] | None = None,
        seed: int = 0,
    ) -> Self:
        """Find the fastest funnel whose recall@k against the exact search is certified.

        Parameters
        ----------
        corpus : Searchable
            The rows that will be searched: a `Corpus`, or any other `Searchable` such as a `FaissCorpus`, as it is set.
        queries : array (n_queries, dim), floating
            Independent draws of the queries to come. One half chooses candidates, the other tests them.
        k : int
            Results per query that the funnel is for.
        recall : float, default 0.99
            Share of the exact `k` nearest rows that is to be found, on average over queries; within (0, 1).
        delta : float, default 0.1
            Probability, over the draw of the tested queries, that the promise may be wrong; within (0, 1).
        dims : sequence of int, optional
            Widths that stages may have, the last that of the corpus. By default halved from there down to 8, with those
            at which the corpus may start.
        longest : int, default 1000
            No list is longer than this.
        cost : {"time", "multiply_adds"}, default "time"
            What makes a funnel cheap: the time of a query on this machine, or `Funnel.multiply_adds`, which is the same
            on every machine and leaves codes out, since they multiply nothing.
        batch_size : int, default 1
            Queries that will be asked at once, for the time: large batches favour the exact search. More than 256, or
            than half of the queries, count as so many.
        progress : callable, optional
            Called with how many steps are done and how many there are at most.
        seed : int, default 0
            Splits the queries.

        Returns
        -------
        Funnel
            With a `certificate`. It is the exact search if no funnel takes less than nine tenths of its time, or if
            none passed the test: the certificate says which, and where queries were too few, how many it takes.

        Raises
        ------
        TypeError
            `corpus` is no corpus, or an argument is of the wrong kind.
        ValueError
            A number is out of its range, `dims` do not end with the width of the corpus or hold none at which it may
            start, or there are fewer than two queries.

        Notes
        -----
        The promise is on *expected* recall and holds with probability at least 1 - delta: with that probability over
        the tested queries, the mean recall@k over all queries of their kind is at least `recall`. It is about this
        corpus as it stands, and about queries drawn like these.

        Recall is not monotone in the list lengths, so a whole funnel is tested and not its stages: Learn then Test
        (Angelopoulos et al., 2021) with a betting p-value, along a fixed sequence from the safest candidate to the
        cheapest, which ends at the first that fails and so needs no correction for their number. Candidates are shaped
        on the first half: funnels that start at one of `dims` in one of the codes of the corpus, go on through the next
        widths or jump to the full one at once, with lists as short as a given share of lost neighbours allows, and
        single widths. Their order is fixed before the second half is looked at.

        Times are put together from parts: searches of one width for lists of several lengths, rerankings of random
        rows, and the exact search, by the clock. Each is measured once for a corpus and a batch size and kept with the
        corpus object, so that the same queries and seed give the same funnel again; another object, or another run, may
        decide otherwise between funnels that take about the same time.

        With a thousand queries, to calibrate costs about as much as ten exact searches for all of them: one search for
        all, lists for at most 256 of the queries at the widths that may pay, at most eight funnels on half of them, and
        the measurements, which cost the same for fewer queries. By multiply-adds it costs up to twice as much where
        rows are read from a file. Blocks of prefixes and codes built on the way are dropped again, except those of the
        result.
        """
        from matryoshka.retrieval import _calibration, _question  # which make funnels

        question = _question.Question.of(
            corpus, k, dims=dims, longest=longest, cost=cost, batch_size=batch_size, progress=progress
        )
        certificate = _calibration.certify(question, queries, recall=recall, delta=delta, seed=seed)
        return cls(certificate.dims, certificate.keep, code=certificate.code, certificate=certificate)

    @classmethod
    def pareto(
        cls,
        corpus: Searchable,
        queries: Array,
        k: int,
        *,
        dims: Sequence[int] | None = None,
        longest: int = 1000,
        cost: str = "time",
        batch_size: int = 1,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[FunnelPoint]:
        """List the funnels that no other one beats in both cost and recall@k on these queries.

        Parameters
        ----------
        corpus, queries, k, dims, longest, cost, batch_size, progress
            As for `calibrate`; at most 256 of the queries, spread evenly, are used, and nothing is promised for others.

        Returns
        -------
        list of FunnelPoint
            Cheapest first; the last is the exact search, alone where nothing beats it.
        """
        from matryoshka.retrieval import _calibration, _question  # which make funnels

        question = _question.Question.of(
            corpus, k, dims=dims, longest=longest, cost=cost, batch_size=batch_size, progress=progress
        )
        return _calibration.pareto(question, queries)

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
            As `costs.funnel`, which says how both ways count. A coded first stage multiplies nothing and counts 0,
            although it takes time: compare what codes are in with `bytes`, or by the clock.

        Examples
        --------
        >>> Funnel((16, 2048), (200,)).multiply_adds(1_281_167)
        20908272
        """
        return costs.funnel(n, self.dims, self.keep, code=self.code, executed=executed)

    def bytes(self, n: int, *, itemsize: int = 4) -> int:
        """Count the bytes of corpus that one query reads on `n` rows.

        Parameters
        ----------
        n : int
            Rows of the corpus.
        itemsize : int, default 4
            Bytes of a number that is no code.

        Returns
        -------
        int
            As `costs.funnel_bytes` counts what is executed.

        Examples
        --------
        >>> Funnel((256, 2048), (100,), code="bits").bytes(1_281_167)
        41816544
        """
        return costs.funnel_bytes(n, self.dims, self.keep, code=self.code, executed=True, itemsize=itemsize)

    def speedup(self, n: int, of: int | None = None, *, executed: bool = False) -> float:
        """Divide the multiply-adds of a single shot by those of this funnel.

        Parameters
        ----------
        n : int
            Rows of the corpus.
        of : int, optional
            Width of the single shot, the one that would be searched without this funnel; by default its last.
        executed : bool, default False
            As for `multiply_adds`.

        Returns
        -------
        float
            How many times fewer multiply-adds; 1 for a single shot against itself, infinity where nothing but a coded
            stage is counted. On the clock it is less: choosing candidates takes time as well, and so does a code.

        Examples
        --------
        >>> Funnel((48,)).speedup(1_000_000), Funnel((48,)).speedup(1_000_000, of=768)
        (1.0, 16.0)
        """
        width = self.dims[-1] if of is None else _checks.integer(of, "of", minimum=1)
        single, own = costs.search(n, width), self.multiply_adds(n, executed=executed)
        return single / own if own else math.inf

    def __repr__(self) -> str:
        code = "" if self.code == "float" else f", code={self.code!r}"
        return f"Funnel({self.dims}, {self.keep}{code})"

    @classmethod
    def _arguments(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {"certificate": RecallCertificate.from_record(fields["certificate"])}


@dataclass(frozen=True)
class FunnelPoint:
    """A funnel and how it did on some queries.

    Attributes
    ----------
    funnel : Funnel
        The plan.
    recall : float
        Mean share of the exact k nearest neighbours that it found.
    multiply_adds : int
        Its cost per query, as `Funnel.multiply_adds` counts it.
    seconds : float or None
        The time of a query, put together from measured parts; None where multiply-adds were compared.
    """

    funnel: Funnel
    recall: float
    multiply_adds: int
    seconds: float | None = None
