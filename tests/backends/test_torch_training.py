"""What PyTorch's tools for training and deployment make of the losses: the same numbers, or an error that helps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import FLAT, N_CLASSES, NESTING, shares, value_and_slopes
from conftest import load

torch = load("torch")
checkpoint = load("torch.utils.checkpoint").checkpoint
forward_ad = load("torch.autograd.forward_ad")
modules = load("matryoshka.torch")

N = 6
LABELS = torch.tensor([3, 0, 1, -100, 2, 3])
KINDS = pytest.mark.parametrize("kind", ["mrl", "mrl-e", "info-nce"])
HEADS = pytest.mark.parametrize("kind", ["mrl", "mrl-e"])
CLOSED_FORMS = pytest.mark.parametrize("name", FLAT)
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # its own use
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "none"])


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Model(torch.nn.Module):
    """An encoder with its loss; `around` names what activation checkpointing is around."""

    def __init__(self, kind: str, *, dropout: float = 0.3, around: str = "", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Dropout(dropout))
        self.paired, self.around, self.options = kind == "info-nce", around, options
        if self.paired:
            self.loss = modules.InfoNCE(NESTING, symmetric=True, learnable_temperature=True)
        else:
            self.loss = modules.MRLHead(NESTING, N_CLASSES, tied=kind == "mrl-e")

    def forward(self, first: Any, second: Any = None) -> Any:
        return self.maybe(self.whole, self.around == "both", first, second)

    def whole(self, first: Any, second: Any) -> Any:
        first = self.maybe(self.encoder, self.around == "encoder", first)
        return self.loss(first, self.encoder(second) if self.paired else second)

    def maybe(self, function: Any, checkpointed: bool, *arguments: Any) -> Any:
        return checkpoint(function, *arguments, **self.options) if checkpointed else function(*arguments)

    def batch(self, seed: int = 0, n: int = N) -> list[Any]:
        second = draw(n, 5, seed=seed + 100) if self.paired else LABELS.repeat(2)[:n]
        return [draw(n, 5, seed=seed).requires_grad_(), second]


# Activation checkpointing


@KINDS
@pytest.mark.parametrize("around", ["encoder", "both"])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["hooks", "reentrant"])
def test_activation_checkpointing_changes_nothing(kind: str, around: str, use_reentrant: bool) -> None:
    """Dropout included."""
    plain, saving = Model(kind), Model(kind, around=around, use_reentrant=use_reentrant)
    results = []
    for model in (plain, saving):
        torch.manual_seed(1)
        batch = model.batch()
        loss = model(*batch)
        loss.backward()
        results.append([loss.detach(), batch[0].grad, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


# Mixed precision


@KINDS
def test_scaled_gradients_train_as_plain_ones_do(kind: str) -> None:
    """The scale is a power of two, so in float16 too nothing is lost; a step with infinite gradients is left out."""
    plain, scaled = Model(kind, dropout=0.0), Model(kind, dropout=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (plain, scaled)]
    for step in range(4):
        for model, optimizer in zip((plain, scaled), optimizers, strict=True):
            batch = model.batch(step)
            overflows = step == 2
            if overflows and model is plain:
                continue
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(math.inf * batch[0] if overflows else batch[0], batch[1])
            if model is plain:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
    assert scaler.get_scale() == 2.0**9
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# Export


@pytest.fixture(params=[False, True], ids=["non-strict", "strict"])
def strict(request: pytest.FixtureRequest) -> Iterator[bool]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # the exporter's own
        yield request.param


@HEADS
def test_logits_are_exported_for_every_batch(kind: str, strict: bool) -> None:
    model = Model(kind).eval()
    shapes = {"first": {0: torch.export.Dim("n", max=4096)}}
    exported = torch.export.export(model, (draw(N, 5),), dynamic_shapes=shapes, strict=strict)
    for n in (N, 9, 1000):
        torch.testing.assert_close(exported.module()(draw(n, 5)), model(draw(n, 5)))


@HEADS
def test_the_loss_is_exported_for_a_fixed_batch(kind: str, strict: bool) -> None:
    """Without its gradient: whoever asks an exported loss for one is told by PyTorch that there is none."""
    model = Model(kind).eval()
    batch = tuple(tensor.detach() for tensor in model.batch())
    with torch.no_grad():
        exported = torch.export.export(model, batch, strict=strict).module()
    torch.testing.assert_close(exported(*batch), model(*batch).detach())
    trained = torch.export.export(model, batch, strict=strict).module()
    loss = trained(*batch)
    torch.testing.assert_close(loss.detach(), model(*batch).detach())
    with pytest.raises(RuntimeError, match="does not require grad|modified by an inplace operation"):
        loss.backward()


@HEADS
def test_the_loss_is_exported_for_every_batch_of_one_block(kind: str, strict: bool) -> None:
    """Up to 512 rows; more are cut into as many blocks as there were."""
    model, n = Model(kind).eval(), torch.export.Dim("n", max=512)
    shapes = {"first": {0: n}, "second": {0: n}}
    with torch.no_grad():
        exported = torch.export.export(model, (draw(N, 5), LABELS), dynamic_shapes=shapes, strict=strict).module()
    for n_rows in (N, 9, 512):
        batch = draw(n_rows, 5), torch.arange(n_rows) % N_CLASSES
        torch.testing.assert_close(exported(*batch), model(*batch).detach())


# torch.func and what else maps or differentiates


@FORWARD_MODE
@CLOSED_FORMS
@REDUCTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_forward_mode_gives_the_slope_in_a_direction(name: str, reduction: str, dtype: Any) -> None:
    _, slopes = value_and_slopes(name, reduction)
    arrays = [torch.tensor(array, dtype=dtype) for array in FLAT[name].arrays()]
    directions = [
        torch.tensor(np.random.default_rng(i).normal(size=a.shape), dtype=dtype) for i, a in enumerate(arrays)
    ]

    def loss(*tensors: Any) -> Any:
        return FLAT[name](*tensors, convert=torch.as_tensor, reduction=reduction)

    value, tangent = torch.func.jvp(loss, tuple(arrays), tuple(directions))
    assert value.dtype == tangent.dtype == dtype
    torch.testing.assert_close(value, loss(*arrays))
    found = float((torch.as_tensor(shares(name, reduction)) * tangent).sum())
    expected = sum(float((slope * way.numpy()).sum()) for slope, way in zip(slopes, directions, strict=True))
    assert found == pytest.approx(expected, rel=1e-6 if dtype == torch.float64 else 1e-4)


@FORWARD_MODE
@CLOSED_FORMS
@REDUCTIONS
@pytest.mark.parametrize("functional", [False, True], ids=["dual", "func"])
def test_forward_mode_beside_reverse_mode_is_refused(name: str, reduction: str, functional: bool) -> None:
    first, *others = (torch.tensor(array).requires_grad_() for array in FLAT[name].arrays())
    level = nullcontext() if functional else forward_ad.dual_level()

    def loss(tensor: Any) -> Any:
        return FLAT[name](tensor, *others, convert=torch.as_tensor, reduction=reduction)

    with (
        level,
        pytest.raises(RuntimeError, match="forward-mode .* where no argument requires a gradient, got one .*vjp"),
    ):
        if functional:
            torch.func.jvp(loss, (first.detach(),), (first.detach(),))
        else:
            loss(forward_ad.make_dual(first, first.detach()))


@CLOSED_FORMS
@REDUCTIONS
def test_gradients_mapped_by_vmap_are_refused(name: str, reduction: str) -> None:
    first, *others = (torch.tensor(array) for array in FLAT[name].arrays())

    def loss(tensor: Any) -> Any:
        return FLAT[name](tensor, *others, convert=torch.as_tensor, reduction=reduction)

    with pytest.raises(RuntimeError, match="vmap .* cannot map, got a call under it; pass .* reduction='none'"):
        torch.func.vmap(torch.func.grad(lambda tensor: loss(tensor).sum()))(torch.stack([first, first]))
    with pytest.raises(RuntimeError, match="vmap .* cannot map"):
        torch.func.jacrev(loss)(first)


@pytest.mark.parametrize("name", ["mrl", "mrl-e", "logits"])
def test_the_gradient_in_weights_of_rows_is_differentiated_or_refused(name: str) -> None:
    """That of a row is its loss, whose gradient is of first order; a mean depends on the weights in other ways, too."""
    tensors = [torch.tensor(array).requires_grad_() for array in FLAT[name].arrays()]
    weights = tensors[-1]

    def of_weights(reduction: str) -> Any:
        loss = FLAT[name](*tensors, convert=torch.as_tensor, reduction=reduction)
        share = torch.as_tensor(shares(name, reduction))
        gradient, *_ = torch.autograd.grad((share * loss).sum(), [weights], create_graph=True)
        return gradient

    found = torch.autograd.grad(of_weights("none") @ weights.detach(), tensors[:-1])
    for slope, expected in zip(found, value_and_slopes(name, "none")[1], strict=False):
        np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(RuntimeError, match="first order"):
        of_weights("mean").sum().backward()


@pytest.mark.parametrize("name", ["mrl", "mrl-e", "logits"])
def test_the_gradient_in_the_weight_0_of_a_row_is_its_loss(name: str) -> None:
    *arrays, weights = (torch.tensor(array).requires_grad_() for array in FLAT[name].arrays())
    loss = partial(FLAT[name], convert=torch.as_tensor)
    none = torch.zeros_like(weights).requires_grad_()
    loss(*arrays, none, reduction="sum").backward()
    torch.testing.assert_close(none.grad, loss(*arrays, torch.ones_like(weights), reduction="none").detach())


# Tracing


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_trace_checks_no_labels_but_makes_their_rows_nan() -> None:
    head, x = modules.MRLHead(NESTING, N_CLASSES, tied=True), draw(N, 7)
    traced = torch.jit.trace(head, (x, LABELS), check_trace=False)  # which compares graphs with and without gradients
    torch.testing.assert_close(traced(x, LABELS), head(x, LABELS))
    assert math.isnan(traced(x, LABELS + 1).item())


# State


def test_a_temperature_saved_as_a_number_is_loaded() -> None:
    """Version 0.1 kept a tensor (); under a prefix, too."""
    model = torch.nn.Sequential(modules.InfoNCE(NESTING, learnable_temperature=True))
    state = {"0.log_temperature": torch.tensor(-1.5)}
    for assign in (False, True):
        loaded = copy.deepcopy(model)
        loaded.load_state_dict(state, assign=assign)
        assert loaded[0].log_temperature.shape == (1,)
        assert loaded[0].temperature.shape == ()
        assert loaded[0].temperature.item() == pytest.approx(math.exp(-1.5))
    assert state["0.log_temperature"].shape == ()
    model.load_state_dict(loaded.state_dict())
    assert model[0].log_temperature.item() == -1.5
