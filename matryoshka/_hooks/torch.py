"""The closed-form gradients as PyTorch autograd functions.

Both functions take (setting, labels, mask, …, *arrays), where the arrays are the rows and then the parameters; a bias
may be None. The setting holds no tensors, because autograd sees only arguments that are tensors themselves. They use
`setup_context`, so that `torch.func` and `torch.compile` can transform them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

from matryoshka._array import to_numpy
from matryoshka._hooks import loop
from matryoshka._hooks.formula import Arrays, Formula, Problem

Tensors = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class _Setting:
    """All of a problem but its tensors, and for which of these a gradient is wanted."""

    formula: Formula
    n_rows: int
    row_block: int | None
    wanted: tuple[bool, ...]

    def problem(
        self, labels: torch.Tensor, mask: torch.Tensor | None, weights: torch.Tensor | None, arrays: Tensors
    ) -> Problem:
        rows, parameters = tuple(arrays[: self.n_rows]), tuple(arrays[self.n_rows :])
        return Problem(self.formula, rows, labels, mask, weights, None, parameters, self.row_block)


def on_host(array: torch.Tensor) -> np.ndarray | None:
    """Return a tensor as an array of NumPy; None if it is on a device, or being compiled, traced or transformed."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or type(array) is not torch.Tensor or array.device.type != "cpu":
        return None
    transformed = torch._C._functorch.maybe_current_level() is not None
    return None if transformed else to_numpy(array)


def product_dtype(array: torch.Tensor) -> torch.dtype | None:
    """Return the dtype of automatic mixed precision where it is switched on for the device of `array`.

    As everywhere in PyTorch, float64 is exempt.
    """
    kind = array.device.type
    if kind == "meta" or array.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def weighted_total(problem: Problem, divisor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the total / `divisor` as a differentiable 0-d tensor, and the losses (G, n) without a gradient."""
    arrays, weights = problem.arrays, problem.weights
    wanted = _wanted(arrays)
    with _without_autocast(problem.labels):
        if not any(wanted) and not _wanted((weights,))[0]:
            # The product of a tensor () and a float has a tangent in float64, so prefixes are summed for each row.
            totals, losses = loop.row_totals(problem)
            return problem.weigh_rows(totals).sum() / divisor, losses
        _refuse_tangents((weights, *arrays))
        setting = _Setting(problem.formula, len(problem.rows), problem.row_block, wanted)
        total, losses, *_ = _WeightedTotal.apply(setting, problem.labels, problem.mask, weights, *arrays)  # type: ignore[no-untyped-call]
    return total / divisor, losses


def row_totals(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the total of each row (n,), differentiable, and the losses (G, n) without a gradient."""
    arrays = problem.arrays
    wanted = _wanted(arrays)
    with _without_autocast(problem.labels):
        if not any(wanted):
            return loop.row_totals(problem)
        _refuse_tangents(arrays)
        setting = _Setting(problem.formula, len(problem.rows), problem.row_block, wanted)
        totals, losses = _RowTotals.apply(setting, problem.labels, problem.mask, *arrays)  # type: ignore[no-untyped-call]
    return totals, losses


@torch.no_grad()
def gradients(problem: Problem, wanted: tuple[bool, ...]) -> tuple[torch.Tensor, Arrays, Arrays]:
    """Return the losses (G, n), and the gradients of the total in the rows and in the parameters."""
    with _without_autocast(problem.labels):
        return loop.gradients(problem, wanted)


class _WeightedTotal(torch.autograd.Function):
    """The scalar total; its gradients are formed forward and only scaled backward."""

    @staticmethod
    def forward(
        setting: _Setting,
        labels: torch.Tensor,
        mask: torch.Tensor | None,
        weights: torch.Tensor | None,
        *arrays: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        problem = setting.problem(labels, mask, weights, arrays)
        losses, d_rows, d_parameters = loop.gradients(problem, setting.wanted)
        return problem.total(losses), losses, *d_rows, *d_parameters

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor | None, ...]) -> None:
        ctx.setting, labels, mask, weights, *arrays = inputs
        _, losses, *formed = output
        ctx.mark_non_differentiable(losses, *(gradient for gradient in formed if gradient is not None))
        ctx.set_materialize_grads(False)
        ctx.spent = False
        ctx.save_for_backward(labels, mask, *formed, weights, *arrays)

    @staticmethod
    def backward(ctx: Any, d_total: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        if d_total is None:  # nothing downstream depends on the total
            return (None,) * len(ctx.needs_input_grad)
        n = len(ctx.setting.wanted)
        labels, mask, *tensors = ctx.saved_tensors
        formed, weights, arrays = tensors[:n], tensors[n], tensors[n + 1 :]
        # A plain backward pass scales the gradients in place and gives them away. If it runs again, over a retained
        # graph, they are formed anew.
        in_place = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        with torch.no_grad():
            if ctx.spent:
                formed = _form_gradients(ctx.setting, labels, mask, weights, arrays)
            if in_place:
                ctx.spent = True
            d_weights = _row_losses(ctx.setting, labels, mask, arrays) if ctx.needs_input_grad[3] else None
            scaled = [
                _scale(gradient, d_total, array, in_place=in_place)
                for gradient, array in zip((d_weights, *formed), (weights, *arrays), strict=True)
            ]
        return None, None, None, *_first_order_only(scaled, (d_total, weights, *arrays))

    @staticmethod
    def vmap(*_: Any) -> Any:
        _refuse_vmap()


class _RowTotals(torch.autograd.Function):
    """The total of each row; its gradients are formed backward, once the weight of each row is known."""

    @staticmethod
    def forward(
        setting: _Setting, labels: torch.Tensor, mask: torch.Tensor | None, *arrays: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return loop.row_totals(setting.problem(labels, mask, None, arrays))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.setting, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, d_totals: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        if d_totals is None:
            return (None,) * len(ctx.needs_input_grad)
        labels, mask, *arrays = ctx.saved_tensors
        (d_totals,) = _first_order_only([d_totals], arrays)  # vmap is refused here, before it maps products
        formed = _form_gradients(ctx.setting, labels, mask, d_totals, arrays)
        cast = [
            None if gradient is None else gradient.to(array.dtype)
            for gradient, array in zip(formed, arrays, strict=True)
        ]
        return None, None, None, *_first_order_only(cast, (d_totals, *arrays))

    @staticmethod
    def vmap(*_: Any) -> Any:
        _refuse_vmap()


def _form_gradients(
    setting: _Setting,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    weights: torch.Tensor | None,
    arrays: Tensors,
) -> Tensors:
    """Go over the rows a second time, for the gradients alone."""
    _, d_rows, d_parameters = gradients(setting.problem(labels, mask, weights, arrays), setting.wanted)
    return [*d_rows, *d_parameters]


def _row_losses(setting: _Setting, labels: torch.Tensor, mask: torch.Tensor | None, arrays: Tensors) -> torch.Tensor:
    """Go over the rows for their losses alone: those that come with gradients leave out rows of weight 0."""
    with _without_autocast(labels):
        totals: torch.Tensor = loop.row_totals(setting.problem(labels, mask, None, arrays))[0]
    return totals


def _scale(
    gradient: torch.Tensor | None, factor: torch.Tensor, like: torch.Tensor | None, *, in_place: bool
) -> torch.Tensor | None:
    """Return gradient * factor in the dtype of the tensor that it belongs to."""
    if gradient is None or like is None:
        return None
    if in_place and gradient.dtype == like.dtype:
        return gradient.data.mul_(factor)
    return (gradient * factor).to(like.dtype)


class _FirstOrderOnly(torch.autograd.Function):
    """Pass a gradient on unchanged, but raise an error if it is differentiated: the closed forms end there."""

    @staticmethod
    def forward(gradient: torch.Tensor, *arrays: torch.Tensor | None) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        msg = (
            "the nested losses of matryoshka have gradients of first order only, got a request for second order; "
            "for that, form the logits or similarities of each prefix and use the framework's own loss."
        )
        raise RuntimeError(msg)

    @staticmethod
    def vmap(*_: Any) -> Any:
        _refuse_vmap()


def _refuse_vmap() -> NoReturn:
    msg = (
        "the nested losses of matryoshka have gradients that torch.func.vmap (jacrev, jacobian with vectorize=True) "
        "cannot map, got a call under it; pass the mapped axis as rows with reduction='none', loop over it, or use the "
        "framework's own loss on the logits or similarities of each prefix."
    )
    raise RuntimeError(msg)


def _refuse_tangents(tensors: Tensors) -> None:
    """Refuse to differentiate in forward mode what is also to be differentiated in reverse mode."""
    # A `jvp` method would be the place to raise this, but PyTorch does not compile a function that has one.
    if any(tensor is not None and unpack_dual(tensor).tangent is not None for tensor in tensors):  # type: ignore[no-untyped-call]
        msg = (
            "the nested losses of matryoshka take forward-mode differentiation (torch.func.jvp, jacfwd) where no "
            "argument requires a gradient, got one that does; detach the others, or use torch.func.vjp."
        )
        raise RuntimeError(msg)


def _first_order_only(gradients: Tensors, inputs: Tensors) -> Tensors:
    """If the backward pass is being recorded, make the gradients raise an error when they are differentiated."""
    if not torch.is_grad_enabled():
        return gradients
    guard: Any = _FirstOrderOnly.apply
    return [None if gradient is None else guard(gradient, *inputs) for gradient in gradients]


def _wanted(arrays: Tensors) -> tuple[bool, ...]:
    """Tell for each tensor whether a gradient is wanted: never under `torch.no_grad`."""
    enabled = torch.is_grad_enabled()
    return tuple(enabled and array is not None and array.requires_grad for array in arrays)


def _without_autocast(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Keep autocast from changing dtypes within the formula, which casts for itself."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
