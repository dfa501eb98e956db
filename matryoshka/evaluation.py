"""How well each width of the same embeddings retrieves what is known to be relevant.

`audit` measures from the embeddings alone what cutting them loses; here, people or labels say what should be found.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from matryoshka import _checks, _pictures, metrics
from matryoshka._array import is_integer, namespace, take_rows, to_numpy
from matryoshka._typing import Array
from matryoshka.audit import Audit
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Corpus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Evaluation", "EvaluationDisplay", "evaluate"]

MEASURES = ("ndcg@10", "mrr@10", "map@100", "recall@100")
"""The default measures; the first is the main one."""


@dataclass(frozen=True)
class Evaluation:
    """Quality of retrieval at each width of the same embeddings; printed, a table.

    Attributes
    ----------
    scores : dict of int to dict of str to float
        For each width, narrowest first, the value of each measure by its name: ``scores[64]["ndcg@10"]``.
    metric : {"cosine", "ip", "l2"}
        The similarity of two prefixes.
    n_rows, n_queries : int
        Rows searched, and queries that have a relevant row: means are over these.
    """

    scores: dict[int, dict[str, float]]
    metric: str
    n_rows: int
    n_queries: int

    @property
    def dims(self) -> tuple[int, ...]:
        """The widths, narrowest first."""
        return tuple(self.scores)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, the main one first."""
        return tuple(self.scores[self.dims[-1]])

    @property
    def kept(self) -> dict[int, float]:
        """The main measure at each width as a share of that at the widest; NaN if that is 0."""
        main = self.measures[0]
        widest = self.scores[self.dims[-1]][main]
        return {dim: of[main] / widest if widest else float("nan") for dim, of in self.scores.items()}

    def to_json(self) -> str:
        """Return scores and settings as JSON text.

        Returns
        -------
        str
            An object of kind "evaluation".
        """
        return json.dumps({"kind": "evaluation", "version": 1, **vars(self)})

    def to_markdown(self, audit: Audit | None = None) -> str:
        """Return a section for a model card: what the model may be cut to, and what that costs.

        Parameters
        ----------
        audit : Audit, optional
            An audit of embeddings of the model, whose verdict is cited.

        Returns
        -------
        str
            Markdown that starts with a second-level heading and ends with a newline. It holds a table of widths and
            measures, the verdict, and the entries ``is_matryoshka`` and ``matryoshka_dimensions`` for the model's
            ``config.json``, which tell vLLM that clients may ask for these widths. If the verdict is no, the entries
            are left out.

        Raises
        ------
        TypeError
            `audit` is no `Audit`.
        """
        if not (audit is None or isinstance(audit, Audit)):
            msg = f"`audit` must be what `matryoshka.audit` returned, got {_checks.describe(audit)}; pass that."
            raise TypeError(msg)
        header, *rows = self._cells()
        lines = [header, ["---:"] * len(header), *rows]
        parts = [
            "## Matryoshka dimensions",
            f"The first numbers of an embedding are an embedding by themselves. {_CUT[self.metric]}",
            "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
            f"{self._of()} `kept` is the share of {_titled(self.measures[0])} at {self.dims[-1]} dimensions.",
        ]
        if audit is not None:
            parts.append(f"Audit of {audit.n_audited:,} embeddings without labels. {audit.verdict}")
        if audit is None or audit.truncates:
            entries = json.dumps({"is_matryoshka": True, "matryoshka_dimensions": self.dims})
            parts += ["In `config.json`, for servers that cut:", f"```json\n{entries}\n```"]
        return "\n\n".join(parts) + "\n"

    def _cells(self) -> list[list[str]]:
        """Return the table: a header, and a row of text for each width."""
        header = ["dim", *map(_titled, self.measures), "kept"]
        rows = [
            [str(dim), *(f"{value:.4f}" for value in of.values()), f"{100 * self.kept[dim]:.1f} %"]
            for dim, of in self.scores.items()
        ]
        return [header, *rows]

    def _of(self) -> str:
        return f"{self.n_queries:,} queries among {self.n_rows:,} rows, by {_METRICS[self.metric]}."

    def __str__(self) -> str:
        return "\n".join((self._of(), "", *_pictures.table(self._cells())))

    def _repr_html_(self) -> str:
        """Return what is printed, as HTML for a notebook."""
        return "\n".join((_pictures.html_lines([self._of()]), _pictures.html_table(self._cells())))


_METRICS = {"cosine": "cosine similarity", "ip": "inner product", "l2": "Euclidean distance"}
_CUT = {
    "cosine": "Cut it, then bring it back to unit length.",
    "ip": "Cut it, and compare what is left as it is.",
    "l2": "Cut it, and compare what is left as it is.",
}


_COLOURS = (_pictures.BLUE, _pictures.RED, _pictures.GREEN, _pictures.VIOLET, _pictures.OCHRE, _pictures.GREY)


class EvaluationDisplay(_pictures.Display):
    """The picture of evaluations: one measure of each, width by width.

    Parameters
    ----------
    evaluations : Evaluation, or dict of str to Evaluation
        What `evaluate` returned; several are drawn beside each other, under their names.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes that `plot` drew on last.
    figure_ : matplotlib.figure.Figure
        The figure of these axes.

    Raises
    ------
    TypeError
        The argument is no evaluation and no dict of them, or a name is no text.
    ValueError
        There is no evaluation, or no measure that all of them have.

    Examples
    --------
    >>> from matryoshka.evaluation import EvaluationDisplay
    >>> rows = np.random.default_rng(0).normal(size=(50, 16))
    >>> cut, reversed_ = (evaluate(r, r + 1, qrels=np.arange(50)[:, None] + [0, 0]) for r in (rows, rows[:, ::-1]))
    >>> display = EvaluationDisplay({"first columns": cut, "last columns": reversed_}).plot()
    >>> display.ax_.get_ylabel()
    'nDCG@10'
    """

    def __init__(self, evaluations: Evaluation | Mapping[str, Evaluation]) -> None:
        named = {"": evaluations} if isinstance(evaluations, Evaluation) else evaluations
        if not isinstance(named, Mapping):
            got = _checks.describe(named)
            msg = f"`evaluations` must be an Evaluation or a dict of them, got {got}; pass what `evaluate` returns."
            raise TypeError(msg)
        _checks.instances(tuple(named.values()), "evaluations", Evaluation, "what `evaluate` returns")
        self.evaluations = {_checks.text(name, "evaluations"): found for name, found in named.items()}
        if not self._measures:
            msg = "`evaluations` must have a measure in common, got none; evaluate all with the same `measures`."
            raise ValueError(msg)

    def plot(self, ax: Axes | None = None, *, measure: str | None = None) -> EvaluationDisplay:
        """Draw a line for each evaluation, without showing it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, by default on a new figure of pyplot. The legend stands below the axes: if the figure has no
            layout, such as ``layout="constrained"``, they give up some of their height for it.
        measure : str, optional
            What to draw, one of those that all evaluations have, by default the main one: ``"recall@100"``.

        Returns
        -------
        EvaluationDisplay
            Itself, with `ax_` and `figure_`.

        Raises
        ------
        TypeError
            `ax` is no Axes.
        ValueError
            There is no such measure.
        ImportError
            matplotlib is not installed.
        """
        measure = self._measures[0] if measure is None else _checks.choice(measure, "measure", self._measures)
        axes = self._on(ax, purpose="the picture of an evaluation")
        for (name, found), colour in zip(self.evaluations.items(), itertools.cycle(_COLOURS), strict=False):
            axes.plot(found.dims, [of[measure] for of in found.scores.values()], "o-", color=colour, label=name)
        _pictures.width_axis(axes, sorted({dim for found in self.evaluations.values() for dim in found.dims}))
        _pictures.light_frame(axes)
        axes.set_xlabel("columns kept")
        axes.set_ylabel(_titled(measure))
        titles = {found._of().rstrip(".") for found in self.evaluations.values()}
        axes.set_title(titles.pop() if len(titles) == 1 else "", fontsize=10)
        if any(self.evaluations):
            _pictures.legend(axes)
        return self

    @property
    def _measures(self) -> tuple[str, ...]:
        """The measures that all evaluations have, in the order of the first."""
        first, *others = self.evaluations.values()
        return tuple(name for name in first.measures if all(name in other.measures for other in others))


def evaluate(
    embeddings: Array,
    queries: Array,
    /,
    *,
    qrels: Array | None = None,
    labels: Array | None = None,
    query_labels: Array | None = None,
    dims: Iterable[int] | None = None,
    measures: Iterable[str] = MEASURES,
    metric: str = "cosine",
) -> Evaluation:
    """Measure at each width what a search finds of what is relevant, all from one encoding.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        The rows to search, at full width; they may be memory-mapped.
    queries : array (n_queries, dim), floating
        What to search for, of the library, device and dtype of `embeddings`.
    qrels : array (m, 2) or (m, 3), integer, optional
        Relevance judgements: a query, a row, and the grade of that row for that query, at least 0; without a third
        column, all grades are 1. No pair may occur twice; pairs that do not occur are not relevant.
    labels, query_labels : array (n,), (n_queries,), integer, optional
        Instead of `qrels`: the rows with the label of a query are relevant to it, with grade 1.
    dims : sequence of int, optional
        Widths in ascending order; by default halvings of the full width down to 8.
    measures : sequence of str, default ("ndcg@10", "mrr@10", "map@100", "recall@100")
        What to measure, the main measure first: "ndcg", "mrr", "map", "recall", "precision" or "accuracy" (whether any
        of the first k is relevant), followed by @ and the number k of results that count.
    metric : {"cosine", "ip", "l2"}, default "cosine"
        Similarity of two prefixes, as for `Corpus`.

    Returns
    -------
    Evaluation
        Each measure at each width; printed, a table.

    Raises
    ------
    TypeError
        Arrays of other kinds or of two libraries; neither or both of `qrels` and the pair of labels.
    ValueError
        Shapes, widths, names or numbers that do not fit; or no query has a relevant row.

    Notes
    -----
    Means are over the queries that have a relevant row; the others are not searched. Names and definitions are those of
    sentence-transformers (MTEB writes ndcg_at_10): "map" is divided by min(k, relevant rows), where trec_eval divides
    by the number of relevant rows. Only "ndcg" uses the size of a grade, as it is; for the others, a grade above 0 is
    relevant. Equal scores are ordered by row. A query that is also a row of the corpus finds itself: leave it out of
    one of the two.

    Each width is searched exactly: sum(`dims`) · n · n_queries multiply-adds, and memory for the prefixes of one width
    at a time.

    References
    ----------
    Thakur et al. (2021), "BEIR", arXiv 2104.08663; Muennighoff et al. (2022), "MTEB", arXiv 2210.07316: nDCG@10 as the
    main measure. The functions are those of `matryoshka.metrics`.

    Examples
    --------
    >>> rows = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.8, 0.0, 0.6]])
    >>> qrels = np.array([[0, 0], [1, 1], [2, 2]])
    >>> found = evaluate(rows, rows + 0.01, qrels=qrels, dims=(1, 2, 3), measures=["mrr@2"])
    >>> print(found)
    3 queries among 3 rows, by cosine similarity.
    <BLANKLINE>
    dim   MRR@2     kept
      1  0.5000   50.0 %
      2  0.8333   83.3 %
      3  1.0000  100.0 %
    >>> found.scores[2]
    {'mrr@2': 0.8333333333333334}
    """
    asked = cutoffs(measures)
    optional = [("qrels", qrels), ("labels", labels), ("query_labels", query_labels)]
    xp = namespace(("embeddings", embeddings), ("queries", queries), optional=optional)
    corpus = Corpus(embeddings, metric=metric)
    _checks.shape(queries, "queries", (*queries.shape[:1], corpus.dim), "(n_queries, dim)")
    _checks.same_dtype(xp, ("embeddings", embeddings), ("queries", queries))
    halvings = Nesting.halving(corpus.dim, smallest=min(8, corpus.dim)).dims
    widths = halvings if dims is None else _checks.dims(dims, most=corpus.dim)
    k = min(len(corpus), max(k for _, k in asked.values()))
    shape = (queries.shape[0], len(corpus))
    judged = _of_qrels(qrels, labels, query_labels, shape, k) or _of_labels(labels, query_labels, shape, k)
    rows = take_rows(queries, judged.queries, xp)
    scores = {}
    for dim in widths:
        _, ids = copy.copy(corpus).search(rows, k, dim=dim)  # a copy, which takes its prefix block with it
        gains = judged.gains(to_numpy(ids))
        scores[dim] = {name: _measured(*which, gains, judged) for name, which in asked.items()}
    return Evaluation(scores, corpus.metric, len(corpus), len(judged.queries))


class _Judged(NamedTuple):
    """What is known to be relevant."""

    queries: np.ndarray
    """(q,): the queries that have a relevant row."""
    n_relevant: np.ndarray
    """(q,): how many relevant rows each has."""
    ideal: np.ndarray
    """(q, k): the largest gains, largest first."""
    gains: Callable[[np.ndarray], np.ndarray]
    """Maps ids (q, k) to their gains (q, k)."""


def _of_labels(labels: Array | None, query_labels: Array | None, shape: tuple[int, int], k: int) -> _Judged:
    """Judge by labels: rows with the label of a query are relevant to it. `shape` is (queries, rows)."""
    for name, array, count in (("labels", labels, shape[1]), ("query_labels", query_labels, shape[0])):
        if array is None:
            msg = "`qrels`, or both `labels` and `query_labels`, must say what is relevant, got neither; pass one."
            raise TypeError(msg)
        _checks.labels(array, name, (count,), namespace((name, array)))
    of_rows, of_queries = to_numpy(labels), to_numpy(query_labels)
    counts = metrics.count_relevant(of_rows, of_queries)
    known = _known(counts > 0, "labels")
    wanted, counts = of_queries[known], counts[known]
    ideal = np.arange(k) < counts[:, None]
    return _Judged(known, counts, ideal, lambda ids: metrics.relevance(ids, of_rows, wanted))


def _of_qrels(
    qrels: Array | None, labels: Array | None, query_labels: Array | None, shape: tuple[int, int], k: int
) -> _Judged | None:
    """Judge by `qrels`; None if there are none. A pair is looked up as a single number, query · rows + row."""
    if qrels is None:
        return None
    if labels is not None or query_labels is not None:
        msg = "`qrels` must stand alone, got `labels` or `query_labels` beside it; pass one or the other."
        raise TypeError(msg)
    pairs, grades = _pairs(qrels, shape)
    keys = pairs[:, 0] * shape[1] + pairs[:, 1]
    order = np.lexsort((-grades, pairs[:, 0]))
    counts = np.bincount(pairs[grades > 0, 0], minlength=shape[0])
    starts = np.searchsorted(pairs[order, 0], np.arange(shape[0]))
    known = _known(counts > 0, "qrels")
    place = np.arange(k)
    best = grades[order][np.minimum(starts[known, None] + place, len(order) - 1)]
    ideal = np.where(place < counts[known, None], best, 0)
    order = np.argsort(keys)
    keys, grades = keys[order], grades[order]

    def gains(ids: np.ndarray) -> np.ndarray:
        asked = known[:, None] * shape[1] + ids
        at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        return np.where(keys[at] == asked, grades[at], 0)

    return _Judged(known, counts[known], ideal, gains)


def _pairs(qrels: Array, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Check judgements; return queries and rows (m, 2), and grades (m,)."""
    axes = "(m, 2) or (m, 3), a query, a row and a grade"
    if not is_integer(qrels, namespace(("qrels", qrels))):
        msg = f"`qrels` must hold integers, a query, a row and a grade, got dtype {qrels.dtype}; cast it to int64."
        raise TypeError(msg)
    _checks.ndim(qrels, "qrels", 2, axes)
    if qrels.shape[1] not in (2, 3):
        msg = f"`qrels` must have shape {axes}, got {tuple(qrels.shape)}; give these columns."
        raise ValueError(msg)
    _checks.not_empty(qrels, "qrels")
    judged = to_numpy(qrels).astype(np.int64)
    for column, (of, stop) in enumerate((("queries", shape[0]), ("rows of `embeddings`", shape[1]))):
        if outside := int(((judged[:, column] < 0) | (judged[:, column] >= stop)).sum()):
            msg = f"`qrels` must name {of} within [0, {stop}), got {outside} outside it; count from 0, or drop these."
            raise ValueError(msg)
    pairs = judged[:, :2]
    grades = judged[:, 2] if judged.shape[1] == 3 else np.ones(len(judged), np.int64)
    if below := int((grades < 0).sum()):
        msg = f"`qrels` must hold grades of at least 0, got {below} below; give what is not relevant 0."
        raise ValueError(msg)
    if twice := len(pairs) - len(np.unique(pairs, axis=0)):
        msg = f"`qrels` must judge each pair of query and row once, got {twice} again; drop these."
        raise ValueError(msg)
    return pairs, grades


def _known(mask: np.ndarray, name: str) -> np.ndarray:
    """Return the numbers of the queries that have a relevant row, of which there must be some."""
    if not mask.any():
        msg = f"`{name}` must make a row relevant to at least one query, got none; there is nothing to find."
        raise ValueError(msg)
    return np.flatnonzero(mask)


def _measured(name: str, k: int, gains: np.ndarray, judged: _Judged) -> float:
    """Measure lists of gains (q, min(k, rows)), best neighbour first; a longer list would end in padding."""
    hits, length = gains > 0, min(k, len(gains[0]))
    if name == "ndcg":
        return metrics.ndcg_at_k(gains, length, ideal=judged.ideal)
    if name == "mrr":
        return metrics.mean_reciprocal_rank(hits, length)
    if name == "map":
        return metrics.mean_average_precision(hits, length, n_relevant=judged.n_relevant)
    if name == "recall":
        return metrics.label_recall_at_k(hits, length, judged.n_relevant)
    if name == "precision":  # in which padding counts
        return metrics.precision_at_k(hits, length) * length / k
    return metrics.hit_rate_at_k(hits, length)


_NAMES = ("ndcg", "mrr", "map", "recall", "precision", "accuracy")
_TITLES = {"ndcg": "nDCG", "mrr": "MRR", "map": "mAP"}


def _titled(measure: str) -> str:
    """Return a measure as it is written in tables."""
    name, _, k = measure.partition("@")
    return f"{_TITLES.get(name, name)}@{k}"


def cutoffs(measures: Any) -> dict[str, tuple[str, int]]:
    """Return for each measure, by its full name, what it is and how many results count: {"ndcg@10": ("ndcg", 10)}."""
    names = _checks.sequence(measures, "measures", "names", 'for instance ("ndcg@10", "mrr@10")')
    if not names:
        msg = '`measures` must hold at least one name, got none; pass for instance ("ndcg@10",).'
        raise ValueError(msg)
    found = {}
    for i, name in enumerate(names):
        name = _checks.text(name, f"measures[{i}]")
        match = re.fullmatch(rf"({'|'.join(_NAMES)})@([1-9][0-9]{{0,8}})", name, flags=re.ASCII)
        if match is None:
            msg = (
                f"`measures[{i}]` must be one of {', '.join(_NAMES)}, with @ and a number of results, got "
                f'{_checks.describe(name)}; write for instance "ndcg@10".'
            )
            raise ValueError(msg)
        found[name] = (match[1], int(match[2]))
    return found
