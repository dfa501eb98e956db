"""A loss for `SentenceTransformerTrainer`: InfoNCE on every prefix, for hardly more than the price of one.

It stands in for `MatryoshkaLoss` around a `MultipleNegativesRankingLoss`, has the same value and gradients, and works
on the embeddings as the model gives them: nothing of the model is replaced on the way.
"""

from __future__ import annotations

from typing import Any

import torch

from matryoshka import _checks
from matryoshka._optional import require
from matryoshka.nesting import NestingLike, as_nesting
from matryoshka.torch import InfoNCE

require("sentence_transformers", extra="sentence-transformers", purpose="`matryoshka.sentence_transformers`")

from sentence_transformers import SentenceTransformer  # noqa: E402 (only now is its absence explained)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: E402

__all__ = ["MatryoshkaMultipleNegativesRankingLoss"]

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


class MatryoshkaMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """Multiple negatives ranking loss (InfoNCE over the batch), summed over prefixes.

    Parameters
    ----------
    model : SentenceTransformer
        The model to train.
    nesting : Nesting or sequence of int
        Prefix widths in ascending order, and importances; the last width is that of the model's embeddings.
    scale : float, default 20.0
        What cosine similarities are multiplied by: 1 / temperature.
    symmetric : bool, default False
        Also ask each positive for its anchor among all anchors, and take the mean of both directions.
    gather_across_devices : bool, default False
        Let every anchor see the candidates of all processes of `torch.distributed`, with gradients.

    Raises
    ------
    TypeError, ValueError
        When the loss is built: a nesting or an option out of its range, or a last width that is not the model's.

    Notes
    -----
    Takes what `MultipleNegativesRankingLoss` takes: columns (anchor, positive, negative, …), any number of negatives,
    no labels. Called, it returns what the trainer adds up and logs: a dictionary of the loss of each prefix times its
    importance, `dim_64` for the prefix of 64. Their sum has the gradient of the whole loss, which is carried by the
    last entry; in a training loop of your own call `sum(loss(features, labels).values()).backward()`.

    Cost: the similarities of one full-width loss, whatever the number of prefixes, and the memory of some of their
    rows. `CachedMultipleNegativesRankingLoss` and `n_dims_per_step` have no counterpart here.

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
    ) -> None:
        nesting = as_nesting(nesting)
        symmetric = _checks.flag(symmetric, "symmetric")
        gather_across_devices = _checks.flag(gather_across_devices, "gather_across_devices")
        scale = _checks.real(scale, "scale", minimum=0.0, open_minimum=True)
        with model.truncate_embeddings(None):  # which is for encoding: training sees the whole width
            width = model.get_embedding_dimension()
        if width not in (None, nesting.dim):  # None: a model that does not tell
            msg = (
                f"`nesting` must end with the width of the model's embeddings, {width}, got {nesting.dim}; "
                f"make {width} its last width."
            )
            raise ValueError(msg)
        super().__init__(model, scale=scale)
        self.nesting, self.symmetric, self.gather_across_devices = nesting, symmetric, gather_across_devices
        self.info_nce = InfoNCE(nesting, temperature=1.0 / scale, symmetric=symmetric, gather=gather_across_devices)

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], labels: Any = None
    ) -> dict[str, torch.Tensor]:
        """Return the weighted loss of each prefix by its name.

        Parameters
        ----------
        embeddings : list of tensor (n, dim)
            Those of the anchors, of the positives, and of any number of negatives.
        labels : None
            Not used: row i of the positives belongs to row i of the anchors.

        Returns
        -------
        dict of tensor ()
            Their sum is the loss, the last entry alone has a gradient: that of the sum.

        Raises
        ------
        ValueError
            There are no positives, or embeddings of another width than the nesting's.
        """
        if len(embeddings) < 2:
            msg = (
                f"the dataset must have columns for anchors and positives, got {len(embeddings)} column(s); "
                "add positives."
            )
            raise ValueError(msg)
        anchors, *candidates = embeddings
        total, parts = self.info_nce(anchors, torch.cat(candidates), return_parts=True)
        weighted = [
            part * importance if importance else torch.zeros_like(part)
            for part, importance in zip(parts, self.nesting.importance, strict=True)
        ]
        weighted[-1] = total - sum(weighted[:-1])
        return {f"dim_{m}": loss for m, loss in zip(self.nesting, weighted, strict=True)}

    def get_config_dict(self) -> dict[str, Any]:
        """Return what the model card says of this loss."""
        return {
            "matryoshka_dims": self.nesting.dims,
            "matryoshka_weights": self.nesting.importance,
            "scale": self.scale,
            "symmetric": self.symmetric,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        """The BibTeX entries of the papers of both losses."""
        return f"{super().citation.rstrip()}{_CITATION}"
