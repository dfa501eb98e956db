"""PyTorch modules: nested heads and losses with state, for everyday training loops.

The mathematics is that of `matryoshka.losses`; these modules hold parameters, name them as the official repository
does, and pass options through.
"""

from __future__ import annotations

from typing import Any

from matryoshka import _checks
from matryoshka._array import namespace
from matryoshka._optional import require
from matryoshka._typing import NestingLike
from matryoshka.losses import mrl_cross_entropy, mrl_e_cross_entropy, mrl_logits_cross_entropy
from matryoshka.losses._reduce import Options
from matryoshka.nesting import as_nesting

require("torch", extra="torch", purpose="`matryoshka.torch`")

import torch  # noqa: E402 (only now is its absence explained)

__all__ = ["MRLCrossEntropy", "MRLHead"]

# Handed through to the losses: looking an array's library up is what torch.compile cannot trace.
_XP = namespace(("example", torch.empty(0)))


class MRLHead(torch.nn.Module):
    """Linear classifiers of every prefix, with the MRL or MRL-E loss.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    num_classes : int
        Number of classes.
    tied : bool, default False
        False: one classifier per prefix (MRL). True: prefixes of one classifier (MRL-E), with a loss that costs as
        much as one full-width head.
    bias : bool, default True
        Give the classifiers a bias.
    label_smoothing, ignore_index, reduction
        As for `mrl_cross_entropy`; `ignore_index` is -100 by default, as everywhere in PyTorch.
    device, dtype
        Where and in which dtype the parameters are made.

    Raises
    ------
    TypeError, ValueError
        A nesting, a number of classes or an option outside its range: when the module is built.

    Notes
    -----
    The state-dict keys are those of the official repository: nesting_classifier_0.weight, nesting_classifier_0.bias, ….
    With `tied` there is only nesting_classifier_0, as wide as the embedding.

    Examples
    --------
    >>> import torch
    >>> from matryoshka.torch import MRLHead
    >>> head = MRLHead((2, 4), num_classes=3)
    >>> [logits.shape[-1] for logits in head(torch.ones(5, 4))]
    [3, 3]
    >>> head(torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([])
    """

    def __init__(
        self,
        nesting: NestingLike,
        num_classes: int,
        *,
        tied: bool = False,
        bias: bool = True,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.nesting = as_nesting(nesting)
        self.num_classes = _checks.integer(num_classes, "num_classes", minimum=1)
        self.tied = tied
        self.options = _options(label_smoothing, ignore_index, reduction)
        for i, width in enumerate((self.nesting.dim,) if tied else self.nesting):
            linear = torch.nn.Linear(width, self.num_classes, bias=bias, device=device, dtype=dtype)
            self.add_module(f"nesting_classifier_{i}", linear)

    @property
    def classifiers(self) -> list[Any]:
        """The linear layers, from the narrowest prefix to the widest; one if they are tied."""
        return list(self.children())

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for linear in self.classifiers:
            linear.reset_parameters()

    def forward(
        self, embeddings: Any, labels: Any = None, *, sample_weight: Any = None, return_parts: bool = False
    ) -> Any:
        """Return the logits of every prefix, or with `labels` the loss.

        Parameters
        ----------
        embeddings : tensor (..., dim)
            Embeddings as wide as the nesting.
        labels : integer tensor (...), optional
            Class of each row.
        sample_weight : tensor (...), optional
            Weight of each row in the loss.
        return_parts : bool, default False
            Return (loss, losses of the prefixes (G,)).

        Returns
        -------
        tuple of G tensors (..., num_classes), or the loss
            The loss is formed without the logits of all prefixes being kept.

        Raises
        ------
        TypeError, ValueError
            As `mrl_cross_entropy`.
        """
        if labels is None:
            return self._logits(embeddings)
        options = {"nesting": self.nesting, "sample_weight": sample_weight, "return_parts": return_parts, "xp": _XP}
        heads = [(linear.weight, linear.bias) for linear in self.classifiers]
        if self.tied:
            return mrl_e_cross_entropy(embeddings, *heads[0], labels, **options, **self.options)
        return mrl_cross_entropy(embeddings, heads, labels, **options, **self.options)

    def _logits(self, embeddings: Any) -> tuple[Any, ...]:
        _checks.width(embeddings, "embeddings", self.nesting.dim)
        if not self.tied:
            pairs = zip(self.classifiers, self.nesting, strict=True)
            return tuple(linear(embeddings[..., :width]) for linear, width in pairs)
        (linear,) = self.classifiers
        logits, running = [], linear.bias
        for block in self.nesting.blocks:
            product = torch.nn.functional.linear(embeddings[..., block], linear.weight[:, block])
            running = product if running is None else running + product
            logits.append(running)
        return tuple(logits)

    def extra_repr(self) -> str:
        """Return what `print` shows of this module besides its layers."""
        tied = ", tied=True" if self.tied else ""
        return f"{self.nesting!r}, num_classes={self.num_classes}{tied}"


class MRLCrossEntropy(torch.nn.Module):
    """Cross-entropy summed over prefixes whose logits exist already, such as those of `MRLHead`.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefixes in the order of the logits; only their importances enter.
    label_smoothing, ignore_index, reduction
        As for `mrl_cross_entropy`; `ignore_index` is -100 by default, as everywhere in PyTorch.

    Raises
    ------
    TypeError, ValueError
        A nesting or an option outside its range: when the module is built.

    Examples
    --------
    >>> import torch
    >>> from matryoshka.torch import MRLCrossEntropy
    >>> loss = MRLCrossEntropy((2, 4))
    >>> loss((torch.zeros(5, 3), torch.zeros(5, 3)), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([])
    """

    def __init__(
        self,
        nesting: NestingLike,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.nesting = as_nesting(nesting)
        self.options = _options(label_smoothing, ignore_index, reduction)

    def forward(self, logits: Any, labels: Any, *, sample_weight: Any = None, return_parts: bool = False) -> Any:
        """Return the loss of a sequence of G tensors (..., n_classes), or of one tensor (G, ..., n_classes).

        Parameters
        ----------
        logits : sequence of tensor, or tensor
            Logits of each prefix.
        labels : integer tensor (...)
            Class of each row.
        sample_weight : tensor (...), optional
            Weight of each row.
        return_parts : bool, default False
            Return (loss, losses of the prefixes (G,)).

        Returns
        -------
        tensor () or, with reduction "none", (...)
            As `mrl_logits_cross_entropy`.

        Raises
        ------
        TypeError, ValueError
            As `mrl_logits_cross_entropy`.
        """
        return mrl_logits_cross_entropy(
            logits,
            labels,
            nesting=self.nesting,
            sample_weight=sample_weight,
            return_parts=return_parts,
            xp=_XP,
            **self.options,
        )

    def extra_repr(self) -> str:
        """Return what `print` shows of this module."""
        return repr(self.nesting)


def _options(label_smoothing: float, ignore_index: int, reduction: str) -> dict[str, Any]:
    Options(label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction)
    return {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
