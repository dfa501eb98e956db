"""Gradient caching in PyTorch, for batches whose activations do not fit into memory; part of `matryoshka.torch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from matryoshka import _checks

__all__ = ["CachedStep"]

_Encoder = Callable[[Any], torch.Tensor]


class CachedStep:
    """The gradients of one large batch, computed in pieces by gradient caching.

    A contrastive loss compares all rows of a batch, but their activations need not be in memory at once. The encoder
    runs over pieces without a graph; the loss gives the gradient in all embeddings; then the encoder runs again over
    one piece at a time, with a backward pass that starts from its part of that gradient.

    Parameters
    ----------
    encoder : callable, or sequence of callables
        Called on a piece of an input; returns its embeddings (rows, dim). A sequence holds one encoder per input.
    loss : callable
        Called on the embeddings of the whole batch, a tensor for each input; returns a tensor (). Its parameters, such
        as a temperature, get their gradients too.
    mini_batch : int
        Rows of a piece, at least 1. Larger pieces need more memory and are faster.

    Raises
    ------
    TypeError
        An encoder or a loss that cannot be called; when called, inputs that are neither tensors nor made of them, or
        encoders and losses that return no tensor.
    ValueError
        A `mini_batch` below 1, or no encoder. When called: no input, or not as many as there are encoders; an input
        without rows, or with tensors of different numbers of rows; an encoder that returns another number of rows than
        it was given, or another shape the second time; a loss that is not one number.

    Notes
    -----
    `step(*inputs)` takes tensors, mappings of tensors (as from tokenizers of Hugging Face) or sequences of them, which
    are cut along the first axis. It adds the gradients to `.grad` of the parameters, as `backward` does, and returns
    the loss, detached. Inputs may differ in length if the loss allows it. Under `torch.no_grad` only the loss is
    computed.

    The gradients are those of one backward pass on the whole batch: random states (of the CPU and of CUDA) are restored
    for the second run, so that dropout draws the same, and autocast applies to both runs. What mixes the rows of a
    batch within the encoder, such as batch normalisation, sees one piece at a time. To scale the loss, for
    `torch.amp.GradScaler` or to accumulate gradients, scale it where it is computed:
    ``CachedStep(encoder, lambda *rows: scaler.scale(loss(*rows)), mini_batch=64)``.

    Under DistributedDataParallel, pass the wrapped model as `encoder`, which then exchanges gradients once, with its
    last piece, and an `InfoNCE` with `gather=True` as `loss`; all processes must have equally many rows.

    The cost is a second forward pass of the encoder. Memory: the activations of one piece, the embeddings of the batch,
    and what the loss keeps for them.

    References
    ----------
    Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.

    Examples
    --------
    >>> import torch
    >>> from matryoshka.torch import CachedStep, InfoNCE
    >>> encoder = torch.nn.Linear(5, 8)
    >>> step = CachedStep(encoder, InfoNCE((2, 8)), mini_batch=4)
    >>> step(torch.randn(10, 5), torch.randn(10, 5)).shape
    torch.Size([])
    >>> encoder.weight.grad.shape
    torch.Size([8, 5])
    """

    def __init__(
        self,
        encoder: _Encoder | Sequence[_Encoder],
        loss: Callable[..., torch.Tensor],
        *,
        mini_batch: int,
    ) -> None:
        self._several = isinstance(encoder, list | tuple | torch.nn.ModuleList)
        encoders: Any = tuple(encoder) if self._several else (encoder,)  # type: ignore[arg-type]
        if not encoders:
            msg = "`encoder` must hold an encoder for each input, got none; pass one, or a sequence of them."
            raise ValueError(msg)
        for i, one in enumerate(encoders):
            _checks.function(one, f"encoder[{i}]" if self._several else "encoder")
        _checks.function(loss, "loss")
        self.encoder, self.loss, self._encoders = encoder, loss, encoders
        self.mini_batch = _checks.integer(mini_batch, "mini_batch", minimum=1)

    def __repr__(self) -> str:
        return f"CachedStep({self.encoder!r}, {self.loss!r}, mini_batch={self.mini_batch})"

    def __call__(self, *inputs: Any) -> torch.Tensor:
        """Add the gradients of the batch to those of the parameters; return its loss ()."""
        batches, wanted = self._pieces(inputs), torch.is_grad_enabled()
        states, embeddings = [], []
        with torch.no_grad():
            for pieces in batches:
                found: list[torch.Tensor] = []
                for piece in pieces:
                    states.append(_random_states())
                    found.append(piece.embed(found[0].shape[1:] if found else None))
                embeddings.append(torch.cat(found).requires_grad_(wanted))
                del found
        loss = _one_number(self.loss(*embeddings))
        if not wanted:
            return loss
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [rows.grad for rows in embeddings]
        del embeddings
        torch.clear_autocast_cache()  # older PyTorch uses again what it cast without a graph (its issue 158232)
        after = _random_states()
        _backward(batches, states, gradients)
        _set_random_states(after)
        return loss.detach()

    def _pieces(self, inputs: tuple[Any, ...]) -> list[list[_Piece]]:
        encoders = self._encoders if self._several else self._encoders * len(inputs)
        if not inputs or len(encoders) != len(inputs):
            rule = f"as many as encoders, {len(encoders)}" if self._several else "at least one"
            msg = f"`inputs` must be {rule}, got {len(inputs)}; pass the batch of each encoder."
            raise ValueError(msg)
        batches = []
        for i, (encoder, batch) in enumerate(zip(encoders, inputs, strict=True)):
            lengths = set(_lengths(batch, f"inputs[{i}]"))
            if len(lengths) != 1 or 0 in lengths:
                msg = (
                    f"the tensors of `inputs[{i}]` must have equally many rows, at least one, got "
                    f"{sorted(lengths)}; pass tensors whose first axis is the batch."
                )
                raise ValueError(msg)
            n, size = lengths.pop(), self.mini_batch
            batches.append([_Piece(encoder, batch, start, min(start + size, n)) for start in range(0, n, size)])
        return batches


class _Piece(NamedTuple):
    """Some rows of an input, and their encoder."""

    encoder: _Encoder
    batch: Any
    start: int
    stop: int

    def embed(self, width: torch.Size | None) -> torch.Tensor:
        """Return the embeddings (rows, *width); a `width` that is not known yet is None."""
        rows = self.stop - self.start
        found = self.encoder(_cut(self.batch, slice(self.start, self.stop)))
        if not isinstance(found, torch.Tensor):
            msg = f"`encoder` must return a tensor of embeddings, got {_checks.describe(found)}; select it."
            raise TypeError(msg)
        if found.shape[:1] != (rows,) or width not in (None, found.shape[1:]):
            known = "" if width is None else f" of shape {tuple(width)}, as before,"
            msg = (
                f"`encoder` must return an embedding{known} for each of its {rows} rows, got shape "
                f"{tuple(found.shape)}; let it drop no row, and give the same shapes when it runs again."
            )
            raise ValueError(msg)
        return found


def _lengths(value: object, name: str) -> Iterator[int]:
    """Yield the number of rows of each tensor of an input."""
    if isinstance(value, torch.Tensor) and value.ndim:
        yield value.shape[0]
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _lengths(entry, name)
    else:
        msg = (
            f"`{name}` must be a tensor (rows, ...), or a mapping or a sequence of them, got "
            f"{_checks.describe(value)}; convert it with torch.as_tensor."
        )
        raise TypeError(msg)


def _cut(value: Any, rows: slice) -> Any:
    """Return some rows of each tensor of an input, in new containers, because encoders may write to these."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    if isinstance(value, Mapping):
        return {key: _cut(entry, rows) for key, entry in value.items()}
    return tuple(_cut(entry, rows) for entry in value)


def _one_number(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        msg = f"`loss` must return a tensor (), got {_checks.describe(loss)}; select it."
        raise TypeError(msg)
    if loss.shape != ():
        msg = f"`loss` must return one number, a tensor (), got shape {tuple(loss.shape)}; take its mean or sum."
        raise ValueError(msg)
    return loss


def _backward(batches: list[list[_Piece]], states: list[Any], gradients: list[torch.Tensor | None]) -> None:
    """Embed each piece again, from its random state, and start its backward pass from its rows of the gradients."""
    whole = [(piece, gradient) for pieces, gradient in zip(batches, gradients, strict=True) for piece in pieces]
    todo = [
        (piece, state, gradient[piece.start : piece.stop])
        for (piece, gradient), state in zip(whole, states, strict=True)
        if gradient is not None  # None: the loss treats this input as constant
    ]
    last = {id(piece.encoder): i for i, (piece, _, _) in enumerate(todo)}
    for i, (piece, state, gradient) in enumerate(todo):
        _set_random_states(state)
        # DistributedDataParallel exchanges the sum over all pieces with the last one.
        apart = nullcontext if last[id(piece.encoder)] == i else getattr(piece.encoder, "no_sync", nullcontext)
        with apart():
            embeddings = piece.embed(gradient.shape[1:])
            if embeddings.requires_grad:
                embeddings.backward(gradient)  # type: ignore[no-untyped-call]


def _random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if started else []


def _set_random_states(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1])
