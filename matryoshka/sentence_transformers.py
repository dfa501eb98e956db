"""Losses for `SentenceTransformerTrainer`: InfoNCE on every prefix, for hardly more than the price of one.

They stand in for `MatryoshkaLoss` around a `MultipleNegativesRankingLoss`, cached or not, have the same value and
gradients, and work on the embeddings as the model gives them: nothing of the model is replaced on the way.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from matryoshka import _checks
from matryoshka._optional import require
from matryoshka.nesting import Nesting, NestingLike, as_nesting
from matryoshka.torch import InfoNCE

require("sentence_transformers", extra="sentence-transformers", purpose="`matryoshka.sentence_transformers`")

from sentence_transformers import SentenceTransformer  # noqa: E402 (only now is its absence explained)
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

__all__ = ["CachedMatryoshkaMultipleNegativesRankingLoss", "MatryoshkaMultipleNegativesRankingLoss"]

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
    """What both losses share. It stands before a loss of sentence-transformers, from which they take the rest."""

    def _build(
        self,
        model: SentenceTransformer,
        nesting: NestingLike,
        *,
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

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says of this loss."""
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
        Prefix widths in ascending order, and importances; the last width should be that of the model's embeddings.
    scale : float, default 20.0
        What cosine similarities are multiplied by: 1 / temperature.
    symmetric : bool, default False
        Also ask each positive for its anchor among all anchors, and take the mean of both directions.
    gather_across_devices : bool, default False
        Let every anchor see the candidates of all processes of `torch.distributed`, with gradients.
    directions, partition_mode
        As for `MultipleNegativesRankingLoss`: ``("query_to_doc",)``, or, instead of `symmetric`,
        ``("query_to_doc", "doc_to_query")`` with ``"per_direction"``.
    return_parts : bool, default True
        Return the loss of each prefix by its name, for the trainer to log. False: their sum, a tensor (), as
        `AdaptiveLayerLoss` and others that call a loss within theirs need it.

    Raises
    ------
    TypeError, ValueError
        When the loss is built: a nesting or an option out of its range, a last width that is larger than the model's,
        or one softmax over several directions, which prefixes cannot share.

    Warns
    -----
    UserWarning
        The last width is smaller than the model's: the columns behind it are not trained.

    Notes
    -----
    Takes what `MultipleNegativesRankingLoss` takes: columns (anchor, positive, negative, …), any number of negatives,
    no labels. Called, it returns what the trainer adds up and logs: a dictionary of the loss of each prefix times its
    importance, `dim_64` for the prefix of 64. Their sum has the gradient of the whole loss, which is carried by the
    last entry; in a training loop of your own call `sum(loss(features, labels).values()).backward()`.

    Cost: the similarities of one full-width loss, whatever the number of prefixes, and the memory of some of their
    rows. `n_dims_per_step` and `hardness_mode` have no counterpart here.

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
        self._build(
            model,
            nesting,
            scale=scale,
            symmetric=symmetric,
            gather=gather_across_devices,
            directions=directions,
            partition_mode=partition_mode,
        )
        self.return_parts = return_parts

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], labels: Any = None
    ) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the weighted loss of each prefix by its name, or their sum without `return_parts`.

        Parameters
        ----------
        embeddings : list of tensor (n, dim)
            Those of the anchors, of the positives, and of any number of negatives.
        labels : None
            Not used: row i of the positives belongs to row i of the anchors.

        Returns
        -------
        dict of tensor (), or tensor ()
            Their sum is the loss, the last entry alone has a gradient: that of the sum.

        Raises
        ------
        ValueError
            There are no positives, or embeddings of another width than the nesting's.
        """
        total, parts = self._losses(embeddings)
        if not self.return_parts:
            return total
        weighted = [
            part * importance if importance else torch.zeros_like(part)
            for part, importance in zip(parts, self.nesting.importance, strict=True)
        ]
        weighted[-1] = total - sum(weighted[:-1])
        return {f"dim_{m}": loss for m, loss in zip(self.nesting, weighted, strict=True)}


class CachedMatryoshkaMultipleNegativesRankingLoss(_Nested, CachedMultipleNegativesRankingLoss):
    """The same loss for batches whose activations do not fit into memory, by gradient caching.

    Parameters
    ----------
    model, nesting, scale, symmetric, gather_across_devices, directions, partition_mode
        As for `MatryoshkaMultipleNegativesRankingLoss`.
    mini_batch_size : int, default 32
        Texts embedded at a time. More need more memory and are faster.
    mini_batch_num_tokens, show_progress_bar
        As for `CachedMultipleNegativesRankingLoss`.

    Raises
    ------
    TypeError, ValueError
        As `MatryoshkaMultipleNegativesRankingLoss`; also a model whose inputs cannot be cut into pieces
        (`StaticEmbedding`).

    Warns
    -----
    UserWarning
        The last width is smaller than the model's: the columns behind it are not trained.

    Notes
    -----
    A drop-in for `MatryoshkaLoss` around a `CachedMultipleNegativesRankingLoss`, and, as that, one number without
    entries for single prefixes. Embedding in pieces is left to sentence-transformers: it takes every option and model
    that this does. The loss of all embeddings is `InfoNCE`, in the memory of some rows of one similarity matrix.

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
    ) -> None:
        others = {} if mini_batch_num_tokens is None else {"mini_batch_num_tokens": mini_batch_num_tokens}  # since 6.0
        self._build(
            model,
            nesting,
            scale=scale,
            symmetric=symmetric,
            gather=gather_across_devices,
            directions=directions,
            partition_mode=partition_mode,
            mini_batch_size=_checks.integer(mini_batch_size, "mini_batch_size", minimum=1),
            show_progress_bar=show_progress_bar,
            **others,
        )

    def calculate_loss(
        self, reps: list[list[torch.Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> torch.Tensor:
        """Return the loss of embeddings in pieces; what the caching of sentence-transformers asks for.

        Parameters
        ----------
        reps : list of list of tensor (rows, dim)
            For each column its pieces.
        labels : None
            Not used.
        with_backward : bool, default False
            Leave the gradients in the pieces, and return the loss detached.

        Returns
        -------
        tensor ()
            The weighted sum over prefixes.
        """
        total, _ = self._losses([torch.cat(pieces) for pieces in reps])
        if with_backward:
            total.backward()  # type: ignore[no-untyped-call]
            total = total.detach()
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says of this loss."""
        return super().get_config_dict() | {"mini_batch_size": self.mini_batch_size}


def _is_symmetric(directions: Sequence[str], partition_mode: str) -> bool:
    """Tell whether both directions are asked for; refuse those that are no mean over rows of one matrix."""
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
    """Tell, with a warning, whether the nesting ends before the model's embeddings do; it must not end behind them."""
    with model.truncate_embeddings(None):  # which is for encoding: training sees the whole width
        width = model.get_embedding_dimension()
    if width is None or width == nesting.dim:  # None: a model that does not tell
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
    warnings.warn(msg, UserWarning, stacklevel=4)  # from where the loss is built
    return True
