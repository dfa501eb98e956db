"""Losses and an evaluator for `SentenceTransformerTrainer`: all prefixes for hardly more than the price of one.

The losses replace `MatryoshkaLoss` around a `MultipleNegativesRankingLoss`, cached or not, with the same values and
gradients. They take the embeddings that the model returns, and never patch the model. The evaluator replaces one
`InformationRetrievalEvaluator` per width.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from matryoshka import _checks
from matryoshka._optional import require
from matryoshka.evaluation import MEASURES, Evaluation, cutoffs, evaluate
from matryoshka.nesting import Nesting, NestingLike, as_nesting

for _module in ("torch", "sentence_transformers"):
    require(_module, extra="sentence-transformers", purpose="`matryoshka.sentence_transformers`")

import torch  # noqa: E402 (only now is its absence explained)
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.evaluation import SentenceEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from matryoshka.torch import InfoNCE  # noqa: E402

__all__ = [
    "CachedMatryoshkaMultipleNegativesRankingLoss",
    "MatryoshkaInformationRetrievalEvaluator",
    "MatryoshkaMultipleNegativesRankingLoss",
]

_CITATION = """
@inproceedings{kusupati2022matryoshka,
    title = {Matryoshka Representation Learning},
    author = {Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and Wallingford, Matthew and Sinha, Aditya and
              Ramanujan, Vivek and Howard-Snyder, William and Chen, Kaifeng and Kakade, Sham and Jain, Prateek and
              Farhadi, Ali},
    booktitle = {Advances in Neural Information Processing Systems},
    volume = {35},
    year = {2022},
    eprint = {2205.13147},
    archivePrefix = {arXiv},
}
"""


_DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
_PARTITION_MODES = ("joint", "per_direction")


class _Nested:
    """What both losses share: a mixin that comes before a loss of sentence-transformers."""

    def _build(
        self,
        model: SentenceTransformer,
        nesting: NestingLike,
        scale: float,
        symmetric: bool,
        gather: bool,
        directions: Sequence[str],
        partition_mode: str,
        **others: Any,
    ) -> None:
        nesting = as_nesting(nesting)
        scale = _checks.real(scale, "scale", minimum=0.0, open_minimum=True)
        gather = _checks.flag(gather, "gather_across_devices")
        symmetric = _checks.flag(symmetric, "symmetric")
        symmetric |= _is_symmetric(directions, partition_mode)
        is_narrower = _is_narrower(nesting, model)
        said = {"directions": _DIRECTIONS[: 1 + symmetric], "partition_mode": _PARTITION_MODES[symmetric]}
        super().__init__(model, scale=scale, gather_across_devices=gather, **said, **others)  # type: ignore[call-arg]
        self.nesting, self.symmetric, self._is_narrower = nesting, symmetric, is_narrower
        self.info_nce = InfoNCE(nesting, temperature=1.0 / scale, symmetric=symmetric, gather=gather)

    def _losses(self, embeddings: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss () and that of each prefix (G,), given the embeddings of all columns."""
        if len(embeddings) < 2:
            msg = (
                f"the dataset must have columns for anchors and positives, got {len(embeddings)} column(s); "
                "add positives."
            )
            raise ValueError(msg)
        if embeddings[0].shape[-1] < self.nesting.dim:
            msg = (
                f"embeddings must have the {self.nesting.dim} columns of the nesting, got {embeddings[0].shape[-1]}; "
                "a MatryoshkaLoss around this loss cuts them: leave it out, the prefixes are here."
            )
            raise ValueError(msg)
        if self._is_narrower:
            embeddings = [rows[..., : self.nesting.dim] for rows in embeddings]
        anchors, *candidates = embeddings
        total, parts = self.info_nce(anchors, torch.cat(candidates), return_parts=True)
        return total, parts

    def _named(self, total: torch.Tensor, parts: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the weighted loss of each prefix by its name; only the last entry has a gradient, that of the sum."""
        weighted = [
            part * importance if importance else torch.zeros_like(part)
            for part, importance in zip(parts, self.nesting.importance, strict=True)
        ]
        weighted[-1] = total - sum(weighted[:-1])
        return {f"dim_{m}": loss for m, loss in zip(self.nesting, weighted, strict=True)}

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says about this loss."""
        return {
            "matryoshka_dims": self.nesting.dims,
            "matryoshka_weights": self.nesting.importance,
            "scale": self.scale,  # type: ignore[attr-defined]
            "symmetric": self.symmetric,
            "gather_across_devices": self.gather_across_devices,  # type: ignore[attr-defined]
        }

    @property
    def citation(self) -> str:
        """The BibTeX entries of the papers of both losses."""
        return f"{super().citation.rstrip()}{_CITATION}"  # type: ignore[misc]


class MatryoshkaMultipleNegativesRankingLoss(_Nested, MultipleNegativesRankingLoss):
    """Multiple negatives ranking loss (InfoNCE over the batch), summed over prefixes.

    Parameters
    ----------
    model : SentenceTransformer
        The model to train.
    nesting : Nesting or sequence of int
        Prefix widths in ascending order, and importances; the last width should be that of the embeddings.
    scale : float, default 20.0
        What cosine similarities are multiplied by: 1 / temperature.
    symmetric : bool, default False
        Also let each positive find its anchor among all anchors, and take the mean of both directions.
    gather_across_devices : bool, default False
        Let every anchor see the candidates of all processes of `torch.distributed`, with gradients.
    directions, partition_mode
        As for `MultipleNegativesRankingLoss`: ``("query_to_doc",)``, or, instead of `symmetric`,
        ``("query_to_doc", "doc_to_query")`` with ``"per_direction"``.
    return_parts : bool, default True
        Return the loss of each prefix by its name, for the trainer to log. False: their sum, a tensor (), which
        `AdaptiveLayerLoss` and other losses around a loss need.

    Raises
    ------
    TypeError, ValueError
        When the loss is built: a bad nesting or option, a last width above that of the model, or a softmax over several
        directions at once, which this loss does not have.

    Warns
    -----
    UserWarning
        The last width is smaller than that of the model: the columns after it are not trained.

    Notes
    -----
    Takes what `MultipleNegativesRankingLoss` takes: columns (anchor, positive, negative, …), any number of negatives,
    no labels. A call returns what the trainer adds up and logs: a dictionary of the loss of each prefix times its
    importance, such as `dim_64` for the prefix of 64. Only the last entry has a gradient, which is that of the sum; in
    your own training loop call `sum(loss(features, labels).values()).backward()`.

    Cost: the multiply-adds of one full-width loss, whatever the number of prefixes, and the memory of a few rows of the
    similarities. `n_dims_per_step` and `hardness_mode` have no counterpart here.

    Examples
    --------
    >>> from sentence_transformers import SentenceTransformer
    >>> from sentence_transformers.sentence_transformer.modules import BoW
    >>> from matryoshka.sentence_transformers import MatryoshkaMultipleNegativesRankingLoss
    >>> model = SentenceTransformer(modules=[BoW(["warm", "sunny", "car", "drive"])], device="cpu")
    >>> loss = MatryoshkaMultipleNegativesRankingLoss(model, (2, 4))
    >>> features = [model.preprocess(texts) for texts in (["warm", "car"], ["sunny", "drive"])]
    >>> {name: round(float(value), 3) for name, value in loss(features, None).items()}
    {'dim_2': 0.693, 'dim_4': 0.693}
    """

    def __init__(
        self,
        model: SentenceTransformer,
        nesting: NestingLike,
        *,
        scale: float = 20.0,
        symmetric: bool = False,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        return_parts: bool = True,
    ) -> None:
        return_parts = _checks.flag(return_parts, "return_parts")
        self._build(model, nesting, scale, symmetric, gather_across_devices, directions, partition_mode)
        self.return_parts = return_parts

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], labels: Any = None
    ) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the weighted loss of each prefix by its name, or their sum without `return_parts`.

        Parameters
        ----------
        embeddings : list of tensor (n, dim)
            Of the anchors, of the positives, and of any number of negatives.
        labels : None
            Not used: row i of the positives belongs to row i of the anchors.

        Returns
        -------
        dict of tensor (), or tensor ()
            Their sum is the loss; only the last entry has a gradient, which is that of the sum.

        Raises
        ------
        ValueError
            There are no positives, or the embeddings do not have the width of the model.
        """
        total, parts = self._losses(embeddings)
        return self._named(total, parts) if self.return_parts else total


class CachedMatryoshkaMultipleNegativesRankingLoss(_Nested, CachedMultipleNegativesRankingLoss):
    """The same loss with gradient caching, for batches whose activations do not fit into memory.

    Parameters
    ----------
    model, nesting, scale, symmetric, gather_across_devices, directions, partition_mode
        As for `MatryoshkaMultipleNegativesRankingLoss`.
    mini_batch_size : int, default 32
        Texts embedded at a time. More of them need more memory and are faster.
    mini_batch_num_tokens, show_progress_bar
        As for `CachedMultipleNegativesRankingLoss`.
    return_parts : bool, default False
        Return the loss of each prefix by its name, for the trainer to log.

    Raises
    ------
    TypeError, ValueError
        As `MatryoshkaMultipleNegativesRankingLoss`; also for a model whose inputs cannot be cut into pieces
        (`StaticEmbedding`).

    Warns
    -----
    UserWarning
        The last width is smaller than that of the model: the columns after it are not trained.

    Notes
    -----
    A drop-in replacement for `MatryoshkaLoss` around a `CachedMultipleNegativesRankingLoss`, and like that a single
    number, unless parts are asked for. Pieces are embedded by sentence-transformers, with every option and model that
    it supports. The loss of all embeddings is `InfoNCE`, in the memory of a few rows of one similarity matrix.

    References
    ----------
    Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.

    Examples
    --------
    >>> from sentence_transformers import SentenceTransformer
    >>> from sentence_transformers.sentence_transformer.modules import BoW
    >>> from matryoshka.sentence_transformers import CachedMatryoshkaMultipleNegativesRankingLoss
    >>> model = SentenceTransformer(modules=[BoW(["warm", "sunny", "car", "drive"])], device="cpu")
    >>> loss = CachedMatryoshkaMultipleNegativesRankingLoss(model, (2, 4), mini_batch_size=1)
    >>> features = [model.preprocess(texts) for texts in (["warm", "car"], ["sunny", "drive"])]
    >>> round(loss(features, None).item(), 3)
    1.386
    """

    def __init__(
        self,
        model: SentenceTransformer,
        nesting: NestingLike,
        *,
        mini_batch_size: int = 32,
        scale: float = 20.0,
        symmetric: bool = False,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        return_parts: bool = False,
    ) -> None:
        return_parts = _checks.flag(return_parts, "return_parts")
        others = {} if mini_batch_num_tokens is None else {"mini_batch_num_tokens": mini_batch_num_tokens}  # since 6.0
        self._build(
            model,
            nesting,
            scale,
            symmetric,
            gather_across_devices,
            directions,
            partition_mode,
            mini_batch_size=_checks.integer(mini_batch_size, "mini_batch_size", minimum=1),
            show_progress_bar=show_progress_bar,
            **others,
        )
        self.return_parts = return_parts

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Any = None
    ) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the loss of a batch, or with `return_parts` the weighted loss of each prefix by its name.

        Parameters
        ----------
        sentence_features : iterable of dict
            For each column, the input of the model.
        labels : None
            Not used.

        Returns
        -------
        tensor (), or dict of tensor ()
            Their sum is the loss; only the last entry has a gradient, which is that of the sum.
        """
        total = super().forward(sentence_features, labels)
        return self._named(total, self._parts) if self.return_parts else total

    def calculate_loss(
        self, reps: list[list[torch.Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> torch.Tensor:
        """Return the loss of embeddings in pieces; called by the caching of sentence-transformers.

        Parameters
        ----------
        reps : list of list of tensor (rows, dim)
            The pieces of each column.
        labels : None
            Not used.
        with_backward : bool, default False
            Leave the gradients in the pieces, and return the loss detached.

        Returns
        -------
        tensor ()
            The weighted sum over prefixes.
        """
        total, self._parts = self._losses([torch.cat(pieces) for pieces in reps])
        if with_backward:
            total.backward()  # type: ignore[no-untyped-call]
            total = total.detach()
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says about this loss."""
        return super().get_config_dict() | {"mini_batch_size": self.mini_batch_size}


class MatryoshkaInformationRetrievalEvaluator(SentenceEvaluator):
    """Evaluate retrieval at each width, encoding texts only once.

    Parameters
    ----------
    queries : dict of str to str
        Queries by id.
    corpus : dict of str to str
        Documents by id.
    relevant_docs : dict of str to set of str, or to dict of str to int
        For each query id the ids of relevant documents, alone or with grades of at least 0. Queries without a relevant
        document are left out; entries for other queries are ignored.
    dims : sequence of int
        Widths in ascending order, at most that of the embeddings.
    measures : sequence of str, default ("ndcg@10", "mrr@10", "map@100", "recall@100")
        What to measure, the main measure first, as for `matryoshka.evaluate`.
    name : str, default ""
        Name of the data, with which the names of metrics begin.
    query_prompt, corpus_prompt : str, optional
        Put before queries and documents; by default the prompts of the model.
    batch_size : int, default 32
        Texts embedded at a time.
    show_progress_bar : bool, default False
        Show a progress bar while texts are embedded.

    Attributes
    ----------
    evaluation : matryoshka.Evaluation or None
        The result of the last call: a table when printed, and `to_markdown` for a model card.
    primary_metric : str or None
        Name of the main measure at the largest width; None before the first call.

    Raises
    ------
    TypeError, ValueError
        When it is built: arguments of other kinds, relevant documents that are not in the corpus, no relevant document
        at all. When it is called: a width above that of the model, or a model that compares by Manhattan distance.

    Notes
    -----
    It replaces a `SequentialEvaluator` of one `InformationRetrievalEvaluator` with a `truncate_dim` per width. The
    values are the same, from the similarity function of the model on the first columns of the embeddings, but texts
    are encoded once instead of once per width. A call returns ``dim_64_cosine_ndcg@10`` and so on; the trainer logs
    ``eval_dim_64_cosine_ndcg@10``, a name that `metric_for_best_model` takes, and writes the values into the model
    card. Equal scores come in the order of `corpus`.

    Examples
    --------
    >>> from sentence_transformers import SentenceTransformer
    >>> from sentence_transformers.sentence_transformer.modules import BoW
    >>> from matryoshka.sentence_transformers import MatryoshkaInformationRetrievalEvaluator
    >>> model = SentenceTransformer(modules=[BoW(["warm", "sunny", "car", "drive"])], device="cpu")
    >>> corpus = {"a": "warm sunny", "b": "sunny car", "c": "car drive"}
    >>> evaluator = MatryoshkaInformationRetrievalEvaluator(
    ...     {"q": "drive sunny"}, corpus, {"q": {"c"}}, dims=(2, 4), measures=["mrr@10"]
    ... )
    >>> {name: round(value, 3) for name, value in evaluator(model).items()}
    {'dim_2_cosine_mrr@10': 0.333, 'dim_4_cosine_mrr@10': 0.333}
    """

    def __init__(
        self,
        queries: Mapping[Any, Any],
        corpus: Mapping[Any, Any],
        relevant_docs: Mapping[Any, Collection[Any]],
        dims: Iterable[int],
        *,
        measures: Iterable[str] = MEASURES,
        name: str = "",
        query_prompt: str | None = None,
        corpus_prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        self.dims, self.measures = _checks.dims(dims), tuple(cutoffs(measures))
        self.name = _checks.text(name, "name")
        self.query_prompt, self.corpus_prompt = query_prompt, corpus_prompt
        self.batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
        self.show_progress_bar = _checks.flag(show_progress_bar, "show_progress_bar")
        self.queries, self.corpus, self.qrels = _judgements(queries, corpus, relevant_docs)
        self.evaluation: Evaluation | None = None

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Encode queries and documents, and measure every width.

        Parameters
        ----------
        model : SentenceTransformer
            The model to evaluate.
        output_path : str, optional
            Not used: nothing is written.
        epoch, steps : int
            How far the training is, for the logs in the model card.

        Returns
        -------
        dict of str to float
            Each measure at each width: ``dim_64_cosine_ndcg@10``, with `name` before it if there is one.
        """
        similarity = str(model.similarity_fn_name)
        if similarity not in _METRICS:
            msg = f"`model` must compare by one of {', '.join(_METRICS)}, got {similarity!r}; set similarity_fn_name."
            raise ValueError(msg)
        options = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        with model.truncate_embeddings(None):  # the widths are cut here
            queries = model.encode_query(self.queries, prompt=self.query_prompt, convert_to_tensor=True, **options)
            corpus = model.encode_document(self.corpus, prompt=self.corpus_prompt, convert_to_tensor=True, **options)
        qrels = torch.tensor(self.qrels, device=corpus.device)
        self.evaluation = evaluate(
            corpus, queries, qrels=qrels, dims=self.dims, measures=self.measures, metric=_METRICS[similarity]
        )
        self.primary_metric = f"dim_{self.dims[-1]}_{similarity}_{self.measures[0]}"
        scores = {
            f"dim_{dim}_{similarity}_{measure}": value
            for dim, of in self.evaluation.scores.items()
            for measure, value in of.items()
        }
        scores = self.prefix_name_to_metrics(scores, self.name)
        self.store_metrics_in_model_card_data(model, scores, epoch, steps)
        return scores

    @property
    def description(self) -> str:
        """The task, as the model card names it."""
        return "Information Retrieval"

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says about this evaluation."""
        prompts = {"query_prompt": self.query_prompt, "corpus_prompt": self.corpus_prompt}
        return {"matryoshka_dims": self.dims, **{key: text for key, text in prompts.items() if text is not None}}


_METRICS = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}
"""The similarities of sentence-transformers, and the metrics of a `Corpus` that they are."""


def _judgements(
    queries: Mapping[Any, Any], corpus: Mapping[Any, Any], relevant_docs: Mapping[Any, Collection[Any]]
) -> tuple[list[Any], list[Any], list[tuple[int, int, int]]]:
    """Return the queries with a relevant document, the documents, and triples (query, document, grade) of positions."""
    for value, argument in ((queries, "queries"), (corpus, "corpus"), (relevant_docs, "relevant_docs")):
        if not isinstance(value, Mapping):
            msg = f"`{argument}` must be a dict by id, got {_checks.describe(value)}; pass a dict."
            raise TypeError(msg)
    rows = {document: row for row, document in enumerate(corpus)}
    asked: list[Any] = []
    qrels: list[tuple[int, int, int]] = []
    unknown = 0
    for query in queries:
        judged = relevant_docs.get(query, {})
        if isinstance(judged, str) or not isinstance(judged, Collection):
            msg = f"`relevant_docs` must hold sets or dicts of ids, got {_checks.describe(judged)}; pass these."
            raise TypeError(msg)
        graded = dict(judged) if isinstance(judged, Mapping) else dict.fromkeys(judged, 1)
        graded = {document: _checks.integer(grade, "relevant_docs", minimum=0) for document, grade in graded.items()}
        if not any(graded.values()):
            continue
        unknown += sum(document not in rows for document in graded)
        qrels += [(len(asked), rows.get(document, -1), grade) for document, grade in graded.items()]
        asked.append(queries[query])
    if unknown:
        msg = f"`relevant_docs` must name documents of `corpus`, got {unknown} others; add these, or drop them."
        raise ValueError(msg)
    if not qrels:
        msg = "`relevant_docs` must name a document for at least one of `queries`, got none; check the ids."
        raise ValueError(msg)
    return asked, list(corpus.values()), qrels


def _is_symmetric(directions: Sequence[str], partition_mode: str) -> bool:
    """Tell whether both directions are asked for; refuse other combinations, which `InfoNCE` cannot compute."""
    named = _checks.sequence(directions, "directions", "names", 'for instance ("query_to_doc",)', unordered=True)
    found = {_checks.choice(name, f"directions[{i}]", _DIRECTIONS) for i, name in enumerate(named)}
    mode = _checks.choice(partition_mode, "partition_mode", _PARTITION_MODES)
    if found == {"query_to_doc"}:
        return False
    if found == {"query_to_doc", "doc_to_query"} and mode == "per_direction":
        return True
    msg = (
        '`directions` must be ("query_to_doc",), or ("query_to_doc", "doc_to_query") with '
        f'`partition_mode` "per_direction", got {named} with {mode!r}; keep MatryoshkaLoss around a loss of '
        "sentence-transformers for others."
    )
    raise ValueError(msg)


def _is_narrower(nesting: Nesting, model: SentenceTransformer) -> bool:
    """Warn and return True if the nesting is narrower than the embeddings of the model; it must not be wider."""
    with model.truncate_embeddings(None):  # truncation is for encoding: training sees the whole width
        width = model.get_embedding_dimension()
    if width is None or width == nesting.dim:  # None: the model does not say
        return False
    if width < nesting.dim:
        msg = (
            f"`nesting` must end with the width of the model's embeddings, {width}, got {nesting.dim}; "
            f"make {width} its last width."
        )
        raise ValueError(msg)
    msg = (
        f"`nesting` ends with {nesting.dim}, the model's embeddings with {width}: the columns behind {nesting.dim} are "
        f"not trained; add {width}, or cut embeddings to {nesting.dim} wherever they are used."
    )
    warnings.warn(msg, UserWarning, stacklevel=4)  # the line that builds the loss
    return True
