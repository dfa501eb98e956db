"""This library's searches, as `peers` has those of others. Rows have unit length: where prefixes need not be brought to
it, "ip" is the metric."""

from __future__ import annotations

import copy

from benchmarks.retrieval.data import Data, unit
from benchmarks.retrieval.peers import Build, Search, shortlists, taking_turns
from matryoshka import Corpus, Funnel

_CORPORA: dict[tuple[int, str], tuple[Data, Corpus]] = {}


def corpus(data: Data, metric: str) -> Corpus:
    """Return a corpus that knows the lengths of its rows and nothing of what other searches have built."""
    if (id(data), metric) not in _CORPORA:
        _CORPORA[id(data), metric] = data, Corpus(data.rows, metric=metric)
    return copy.copy(_CORPORA[id(data), metric][1])


def full_pass(data: Data, k: int) -> Search:
    """The exact search that reads every number."""
    searched = corpus(data, "ip")
    return lambda queries: searched.search(queries, k)[1]


def by_bounds(width: int) -> Build:
    """The exact search of a corpus that has a prefix at hand."""

    def built(data: Data, k: int) -> Search:
        searched = Corpus(data.rows, metric="ip", search_dims=(width,))
        return lambda queries: searched.search(queries, k)[1]

    return built


def staged(funnel: Funnel) -> Build:
    """A funnel."""

    def built(data: Data, k: int) -> Search:
        searched = corpus(data, "cosine")
        return lambda queries: searched.search(queries, k, funnel=funnel)[1]

    return built


def rotated(build: Build) -> Build:
    """Do the same on rotated rows: queries are rotated within the clock."""

    def built(data: Data, k: int) -> Search:
        search = build(data.rotated, k)
        return lambda queries: search(data.rotation.apply(queries))

    return built


def behind(short: Build, width: int, funnel: Funnel) -> Build:
    """An index on short prefixes, then the later stages of a funnel."""

    def built(data: Data, k: int) -> Search:
        leading = Data.empty(data.n, width)
        leading.rows[:] = unit(data.rows[:, :width])
        find, searched = short(leading, funnel.keep[0]), corpus(data, "cosine")
        return lambda queries: searched.search(
            queries, k, funnel=funnel, first_stage=lambda prefixes, _: find(prefixes)
        )[1]

    return built


def reranked(metric: str) -> Build:
    """The candidates of the next shortlists, at full width."""

    def built(data: Data, k: int) -> Search:
        searched, lists = corpus(data, metric), taking_turns(shortlists(data))
        return lambda queries: searched.rerank(queries, lists(len(queries)), k, dim=data.dim)[1]

    return built
