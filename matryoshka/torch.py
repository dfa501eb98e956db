"""PyTorch modules: nested heads and losses with state, for everyday training loops.

The mathematics is that of `matryoshka.losses`, whose functions take tensors too. These modules hold parameters under
the names of the official repository, and work with autocast, `torch.func`, DistributedDataParallel and, from PyTorch
2.10 on, `torch.compile`. A bad nesting or option is an error (TypeError, ValueError) when the module is built. Called
with `return_parts=True`, each loss also returns that of every prefix, for logging.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

from matryoshka import _checks
from matryoshka._algebra import midway
from matryoshka._array import namespace
from matryoshka._hooks.formula import checked_options
from matryoshka._optional import require
from matryoshka.losses import info_nce, mrl_cross_entropy, mrl_e_cross_entropy, mrl_logits_cross_entropy, nested_loss
from matryoshka.nesting import NestingLike, as_nesting

require("torch", extra="torch", purpose="`matryoshka.torch`")

import torch  # noqa: E402 (only now is its absence explained)
import torch.distributed  # noqa: E402

import matryoshka._hooks.torch  # noqa: E402, F401 (torch.compile cannot trace its import on first use)
from matryoshka._gradient_cache import CachedStep  # noqa: E402

__all__ = ["CachedStep", "InfoNCE", "MRLCrossEntropy", "MRLHead", "NestedLoss"]

# Passed to the losses, because torch.compile cannot trace the look-up of the library of an array.
_XP = namespace(("example", torch.empty(0)))


class _Nested(torch.nn.Module):
    """What all modules share: a nesting, and the options that `print` shows."""

    def __init__(self, nesting: NestingLike, **shown: object) -> None:
        super().__init__()
        self.nesting, self._shown = as_nesting(nesting), shown

    def extra_repr(self) -> str:
        return ", ".join([repr(self.nesting), *(f"{name}={value}" for name, value in self._shown.items())])


class MRLHead(_Nested):
    """Linear classifiers of every prefix, with the MRL or MRL-E loss.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    num_classes : int
        Number of classes.
    tied : bool, default False
        False: one classifier per prefix (MRL). True: prefixes of one classifier (MRL-E), whose loss costs as much as
        that of one full-width head.
    bias : bool, default True
        Give the classifiers a bias.
    label_smoothing, ignore_index, reduction
        As for `mrl_cross_entropy`; `ignore_index` is -100 by default, as everywhere in PyTorch.
    device, dtype
        Device and dtype of the parameters.

    Notes
    -----
    The state-dict keys are those of the official repository: nesting_classifier_0.weight, nesting_classifier_0.bias, ….
    With `tied` there is only nesting_classifier_0, as wide as the embedding.

    A classifier may have hooks, and may be replaced under its name by an adapter around it (LoRA) or by a quantised
    form. Then it is called, and the loss is computed from the logits of all prefixes, which are kept for the backward
    pass. A tied one is called once per prefix, with the remaining columns set to zero, which costs as many full-width
    heads as there are prefixes. A parametrised linear layer (`torch.nn.utils.parametrize`) is as cheap as a plain one.

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
        ignore_index: int | None = -100,
        reduction: str = "mean",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        tied, bias = _checks.flag(tied, "tied"), _checks.flag(bias, "bias")
        num_classes = _checks.classes(num_classes, "num_classes", as_nesting(nesting).dim)
        super().__init__(nesting, num_classes=num_classes, tied=tied)
        self.num_classes, self.tied = num_classes, tied
        self.options = checked_options(label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction)
        for i, width in enumerate((self.nesting.dim,) if tied else self.nesting):
            linear = torch.nn.Linear(width, self.num_classes, bias=bias, device=device, dtype=dtype)
            self.add_module(f"nesting_classifier_{i}", linear)

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, nesting: NestingLike, *, tied: bool = True, **options: Any
    ) -> MRLHead:
        """Return a head that starts as a trained classifier: at full width its logits are those of `linear`.

        Parameters
        ----------
        linear : torch.nn.Linear
            The classifier, which is not changed: its weight and bias are copied, on their device and in their dtype.
        nesting : Nesting or sequence of int
            Prefix widths and importances; the last width is `linear.in_features`.
        tied : bool, default True
            True: all prefixes share the copy (MRL-E). False: each has a classifier of its own (MRL), which starts with
            the first columns of the weight and the whole bias, and so with the logits of the tied head.
        **options
            `label_smoothing`, `ignore_index` and `reduction`, as for `MRLHead`.

        Returns
        -------
        MRLHead
            With a bias if `linear` has one. All its parameters require gradients.

        Raises
        ------
        TypeError
            `linear` is no linear layer.
        ValueError
            The last width is not that of `linear`.

        Examples
        --------
        >>> import torch
        >>> from matryoshka.torch import MRLHead
        >>> linear = torch.nn.Linear(8, 3)
        >>> head = MRLHead.from_linear(linear, (2, 4, 8))
        >>> torch.allclose(head(torch.eye(8))[-1], linear(torch.eye(8)))
        True
        """
        if not isinstance(linear, torch.nn.Linear):
            msg = (
                f"`linear` must be a torch.nn.Linear, got {_checks.describe(linear)}; "
                "take it out of what it is wrapped in, or merge its adapters."
            )
            raise TypeError(msg)
        nesting = as_nesting(nesting)
        if nesting.dim != linear.in_features:
            msg = (
                f"`nesting` must end with the width of `linear`, {linear.in_features}, got {nesting.dim}; "
                f"make {linear.in_features} its last width."
            )
            raise ValueError(msg)
        bias, weight = linear.bias is not None, linear.weight
        head = cls(
            nesting, linear.out_features, tied=tied, bias=bias, device=weight.device, dtype=weight.dtype, **options
        )
        with torch.no_grad():
            for layer in head.classifiers:
                layer.weight.copy_(linear.weight[:, : layer.in_features])
                if linear.bias is not None:
                    layer.bias.copy_(linear.bias)
        return head

    @property
    def classifiers(self) -> list[Any]:
        """The linear layers, or what replaced them, from the narrowest prefix to the widest; a single one if tied."""
        return [getattr(self, f"nesting_classifier_{i}") for i in range(1 if self.tied else len(self.nesting))]

    def heads(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return the weight (num_classes, m) and the bias of each classifier, as losses and cascades take them.

        Returns
        -------
        list of (weight, bias)
            One per prefix, or a single one if tied. These are the parameters themselves, not copies.

        Raises
        ------
        TypeError
            A classifier does more than apply its weight and bias: an adapter, a quantised layer, or one with hooks.
        """
        for i, linear in enumerate(self.classifiers):
            if not _is_plain(linear):
                msg = (
                    f"`heads` must be plain linear classifiers, got a {type(linear).__name__} that does more as "
                    f"nesting_classifier_{i}; merge adapters, remove hooks, or call the head and use `predict`."
                )
                raise TypeError(msg)
        return [(linear.weight, linear.bias) for linear in self.classifiers]

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for linear in self.classifiers:
            linear.reset_parameters()

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        sample_weight: torch.Tensor | None = None,
        return_parts: bool = False,
    ) -> Any:
        """Return the G logits (..., num_classes) of embeddings (..., dim); with `labels` (...), the loss instead."""
        if labels is None:
            return self._logits(embeddings)
        options = {"sample_weight": sample_weight, "return_parts": return_parts, **self.options}
        if not all(map(_is_plain, self.classifiers)):
            return mrl_logits_cross_entropy(self._logits(embeddings), labels, nesting=self.nesting, xp=_XP, **options)
        heads = [(linear.weight, linear.bias) for linear in self.classifiers]
        if self.tied:
            return mrl_e_cross_entropy(embeddings, *heads[0], labels, nesting=self.nesting, xp=_XP, **options)
        return mrl_cross_entropy(embeddings, heads, labels, nesting=self.nesting, xp=_XP, **options)

    def _logits(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        namespace(("embeddings", embeddings), xp=_XP)
        _checks.width(embeddings, "embeddings", self.nesting.dim)
        if not self.tied:
            return tuple(linear(embeddings[..., :m]) for linear, m in zip(self.classifiers, self.nesting, strict=True))
        (head,) = self.classifiers
        if not _is_plain(head):
            pad, dim = torch.nn.functional.pad, self.nesting.dim
            return tuple(head(pad(embeddings[..., :m], (0, dim - m))) for m in self.nesting)
        weight, bias, linear = head.weight, head.bias, torch.nn.functional.linear
        products = (
            linear(embeddings[..., block], weight[:, block], None if block.start else bias)
            for block in self.nesting.blocks
        )
        return tuple(accumulate(products))


class MRLCrossEntropy(_Nested):
    """Cross-entropy summed over prefixes, from logits that are already computed, such as those of `MRLHead`.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefixes in the order of the logits; only their number and importances matter.
    label_smoothing, ignore_index, reduction
        As for `mrl_cross_entropy`; `ignore_index` is -100 by default, as everywhere in PyTorch.

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
        ignore_index: int | None = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(nesting)
        self.options = checked_options(label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction)

    def forward(
        self,
        logits: Any,
        labels: torch.Tensor,
        *,
        sample_weight: torch.Tensor | None = None,
        return_parts: bool = False,
    ) -> Any:
        """Return the loss of G logits (..., n_classes), a sequence or one tensor (G, ..., n_classes)."""
        options = {"sample_weight": sample_weight, "return_parts": return_parts, **self.options}
        return mrl_logits_cross_entropy(logits, labels, nesting=self.nesting, xp=_XP, **options)


class InfoNCE(_Nested):
    """InfoNCE summed over prefixes, with a fixed or a learned temperature, within one process or across all.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    temperature : float, default 0.05
        What similarities are divided by; if it is learned, its initial value.
    symmetric, label_smoothing, reduction
        As for `info_nce`.
    learnable_temperature : bool, default False
        Make the logarithm of the temperature a parameter, `log_temperature`.
    gather : bool, default False
        Let every query see the keys of all processes of `torch.distributed` and, if symmetric, every key all queries.
        Gradients flow back to the processes that the keys came from: under DistributedDataParallel and `fully_shard`,
        training equals that of one process on the joint batch.
    device, dtype
        Device and dtype of a learned temperature.

    Raises
    ------
    ValueError
        With `gather`, queries or keys (on the CPU) whose shape differs between processes.

    Notes
    -----
    All processes must have the same number of queries, and the same number of keys. On the CPU and outside
    `torch.compile` this is checked, by exchanging shapes; on a device, the check would wait for it. `log_temperature`
    has shape (1,), because `fully_shard` does not take tensors of shape (); a state dict with shape () can be loaded.

    Examples
    --------
    >>> import torch
    >>> from matryoshka.torch import InfoNCE
    >>> InfoNCE((4, 8), learnable_temperature=True)(torch.eye(8), torch.eye(8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        nesting: NestingLike,
        *,
        temperature: float = 0.05,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        gather: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        temperature = _checks.real(temperature, "temperature", minimum=0.0, open_minimum=True)
        symmetric, gather = _checks.flag(symmetric, "symmetric"), _checks.flag(gather, "gather")
        learnable_temperature = _checks.flag(learnable_temperature, "learnable_temperature")
        shown = {"symmetric": symmetric, "learnable_temperature": learnable_temperature, "gather": gather}
        super().__init__(nesting, temperature=temperature, **shown)
        self.initial_temperature, self.symmetric, self.gather = temperature, symmetric, gather
        self.options = checked_options(label_smoothing=label_smoothing, reduction=reduction)
        logarithm = torch.empty(1, device=device, dtype=dtype)
        self.log_temperature = torch.nn.Parameter(logarithm) if learnable_temperature else None
        self.reset_parameters()

    @property
    def temperature(self) -> float | torch.Tensor:
        """The temperature: a float, or a tensor () if it is learned."""
        if self.log_temperature is None:
            return self.initial_temperature
        namespace(("log_temperature", self.log_temperature), xp=_XP)
        return self.log_temperature.exp().reshape(())

    def reset_parameters(self) -> None:
        """Set a learned temperature back to its initial value."""
        if self.log_temperature is not None:
            torch.nn.init.constant_(self.log_temperature, math.log(self.initial_temperature))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = f"{prefix}log_temperature"
        if name in state_dict and not state_dict[name].shape:  # as version 0.1 saved it
            state_dict[name] = state_dict[name].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        *,
        negatives: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        return_parts: bool = False,
    ) -> Any:
        """Return the loss of queries (n, dim), whose positives are the first n of the keys (n_keys, dim).

        Hard negatives (n, h, dim), mask and targets (n, n_keys) are as for `info_nce`. They are about the keys of this
        process: with `gather`, every query also sees all keys of other processes, all as negatives. With `gather` and
        `symmetric`, there can be no targets.
        """
        options = {"temperature": self.temperature, "return_parts": return_parts, **self.options}
        loss: Any = partial(info_nce, nesting=self.nesting, xp=_XP, **options)
        found = {"mask": mask, "targets": targets}
        if not (self.gather and _n_processes() > 1):
            return loss(queries, keys, symmetric=self.symmetric, negatives=negatives, **found)
        _check_before_gathering(queries, keys)
        for name, array in found.items():
            if array is not None:
                _checks.shape(array, name, (queries.shape[0], keys.shape[0]), "(n, n_keys) of this process")
        if self.symmetric and targets is not None:
            msg = (
                "`targets` must be None where `gather` and `symmetric` are set, got a tensor: the targets of keys of "
                "other processes are not known here; set symmetric=False."
            )
            raise ValueError(msg)
        every = _gather_own_first(keys)
        found = {name: _widened(array, every.shape[0], name == "mask") for name, array in found.items()}
        forward = loss(queries, every, negatives=negatives, **found)
        if not self.symmetric:
            return forward
        n, every = queries.shape[0], _gather_own_first(queries)
        mask = None if mask is None else _widened(mask[:, :n].T, every.shape[0], True)
        return midway(forward, loss(keys[:n], every, mask=mask))


class NestedLoss(_Nested):
    """Any loss, summed over prefixes.

    Parameters
    ----------
    loss : callable or torch.nn.Module
        Called for each width on the prefixes of the embeddings.
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    normalize : bool, default False
        Normalise every prefix to unit length.

    Examples
    --------
    >>> import torch
    >>> from matryoshka.torch import NestedLoss
    >>> distill = NestedLoss(torch.nn.MSELoss(), (2, 4), normalize=True)
    >>> distill(torch.eye(4), 3 * torch.eye(4))
    tensor(0.)
    """

    def __init__(self, loss: Callable[..., Any], nesting: NestingLike, *, normalize: bool = False) -> None:
        _checks.function(loss, "loss")
        normalize = _checks.flag(normalize, "normalize")
        super().__init__(nesting, normalize=normalize)
        self.loss, self.normalize = loss, normalize

    def forward(self, *embeddings: torch.Tensor, return_parts: bool = False) -> Any:
        """Return the loss of embeddings (..., dim), of which there are as many as the loss takes."""
        options = {"normalize": self.normalize, "return_parts": return_parts}
        return nested_loss(self.loss, *embeddings, nesting=self.nesting, xp=_XP, **options)


def _is_plain(layer: torch.nn.Module) -> bool:
    """Tell whether a layer does no more than apply its weight and bias."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer).forward is torch.nn.Linear.forward and "forward" not in vars(layer) and not any(hooks)


def _n_processes() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _widened(array: torch.Tensor | None, n_keys: int, fill: bool) -> torch.Tensor | None:
    """Extend a mask or targets (n, own keys) to all keys (n, n_keys), with one value for those of other processes."""
    return None if array is None else torch.nn.functional.pad(array, (0, n_keys - array.shape[1]), value=fill)


def _check_before_gathering(queries: torch.Tensor, keys: torch.Tensor) -> None:
    """Check what cannot be seen in gathered rows, and what would make gathering hang or crash."""
    namespace(("queries", queries), ("keys", keys), xp=_XP)
    if keys.shape[0] < queries.shape[0]:
        msg = (
            f"`keys` must have a row for each of the {queries.shape[0]} queries of its process, got {keys.shape[0]}; "
            "row i is the positive of query i, further rows are negatives."
        )
        raise ValueError(msg)
    if queries.device.type != "cpu" or torch.compiler.is_compiling():
        return
    own = torch.tensor([*queries.shape, *keys.shape])
    every = [torch.empty_like(own) for _ in range(_n_processes())]
    torch.distributed.all_gather(every, own)
    for name, axes in (("queries", slice(queries.ndim)), ("keys", slice(queries.ndim, None))):
        found = {tuple(shapes[axes].tolist()) for shapes in every}
        if len(found) > 1:
            msg = (
                f"`{name}` must have one shape in all processes, got {' and '.join(map(str, sorted(found)))}; "
                "give every process equally many rows, for instance with drop_last=True in its DataLoader."
            )
            raise ValueError(msg)


def _collective(name: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """Return the function that is called all_gather_single or reduce_scatter_single from PyTorch 2.13 on."""
    before = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}
    found: Callable[..., Any] = getattr(torch.distributed, f"{name}_single", None) or getattr(
        torch.distributed, before[name]
    )
    return found


def _gather_own_first(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all processes, differentiably; those of this process come first."""
    gathered: torch.Tensor = _Gathered.apply(rows)  # type: ignore[no-untyped-call]
    return gathered.roll(-torch.distributed.get_rank() * rows.shape[0], 0)


class _Gathered(torch.autograd.Function):
    """The rows (n, k) of all processes, one process after the other."""

    @staticmethod
    def forward(rows: torch.Tensor) -> torch.Tensor:
        gathered = rows.new_empty((_n_processes() * rows.shape[0], *rows.shape[1:]))
        _collective("all_gather")(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _SummedShare.apply(gradient)  # type: ignore[no-untyped-call]


class _SummedShare(torch.autograd.Function):
    """The sum over all processes of what they hold for the rows of this process: the adjoint of `_Gathered`."""

    @staticmethod
    def forward(rows: torch.Tensor) -> torch.Tensor:
        share = rows.new_empty((rows.shape[0] // _n_processes(), *rows.shape[1:]))
        _collective("reduce_scatter")(share, rows.contiguous())
        return share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _Gathered.apply(gradient)  # type: ignore[no-untyped-call]
