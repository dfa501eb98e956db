"""The losses under PyTorch's autograd, and the modules of matryoshka.torch."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import oracles
import pytest
from cases import FLAT, N_CLASSES, NESTING, assert_within_a_millionth, large
from conftest import load

from matryoshka import Cascade, info_nce, mrl_e_cross_entropy, nested_loss

torch = load("torch")
TorchDispatchMode = load("torch.utils._python_dispatch").TorchDispatchMode
modules = load("matryoshka.torch")

LABELS = torch.tensor([3, 0, 1, -100, 2, 3])
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BOTH_HEADS = pytest.mark.parametrize("tied", [False, True], ids=["mrl", "mrl-e"])
COMPILES = pytest.mark.skipif(torch.__version__ < (2, 10), reason="to one graph, PyTorch compiles this from 2.10 on")


def draw(*shape: int, dtype: Any = None, seed: int = 0, device: str = "cpu") -> Any:
    """Random numbers that want a gradient."""
    generator = torch.Generator().manual_seed(seed + 7 * len(shape) + sum(shape))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype=dtype or torch.float32, device=device).requires_grad_()


def loss_of(name: str, reduction: str, *, dtype: Any = torch.float32, device: str = "cpu") -> tuple[Any, list[Any]]:
    """Return a loss as a function of tensors, and the tensors: all of them want a gradient."""
    if name == "nested":
        mse = torch.nn.MSELoss(reduction="sum" if reduction == "none" else reduction)
        tensors = [draw(4, 7, seed=seed, dtype=dtype, device=device) for seed in (0, 1)]
        return lambda *tensors: nested_loss(mse, *tensors, nesting=NESTING, normalize=True), tensors
    options = {"reduction": reduction, "row_block": 4, "convert": lambda labels: torch.as_tensor(labels, device=device)}
    tensors = [torch.tensor(array, dtype=dtype, device=device).requires_grad_() for array in FLAT[name].arrays()]
    return partial(FLAT[name], **options), tensors


LOSSES = (*FLAT, "nested")
ALL_LOSSES = pytest.mark.parametrize("name", LOSSES)
CLOSED_FORMS = pytest.mark.parametrize("name", FLAT)


@ALL_LOSSES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_the_slopes_of_the_loss(name: str, reduction: str) -> None:
    """Those of sample weights and temperature too."""
    loss, tensors = loss_of(name, reduction, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, tensors, fast_mode=reduction == "sum")


@ALL_LOSSES
@pytest.mark.parametrize("device", DEVICES)
def test_a_scaled_loss_scales_its_gradients(name: str, device: str) -> None:
    loss, tensors = loss_of(name, "mean", device=device)
    plain = torch.autograd.grad(loss(*tensors), tensors)
    scaled = torch.autograd.grad(-3 * loss(*tensors), tensors)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, -3 * one)


@pytest.mark.parametrize("kind", ["mrl", "mrl-e", "info-nce"])
def test_numpy_and_torch_agree_to_a_millionth(kind: str) -> None:
    """Values and gradients in float32, of more than one block of rows."""
    flat, *expected = large(kind, n=700)
    tensors = [torch.tensor(array, requires_grad=True) for array in flat.arrays()]
    loss = flat(*tensors, convert=torch.as_tensor)
    assert_within_a_millionth(loss.item(), torch.autograd.grad(loss, tensors), expected)


# What is formed, and what is not


class Products(TorchDispatchMode):
    """Count the multiply-adds of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.partition(".")[0] in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"):
            left, right = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            self.multiply_adds += left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


def multiply_adds(run: Callable[[], Any]) -> int:
    with Products() as products:
        run()
    return products.multiply_adds


@pytest.mark.parametrize("name", ["mrl-e", "info-nce"])
def test_the_ladder_costs_one_full_width_pass(name: str) -> None:
    """No product is formed for a gradient that nobody wants: under no_grad, or of a frozen argument."""
    dims, n, c = (8, 16, 24, 32), 20, 30
    x, other = draw(n, 32), draw(c, 32)
    labels = torch.arange(n)

    def forward() -> Any:
        if name == "info-nce":
            return info_nce(x, other, nesting=dims)
        return mrl_e_cross_entropy(x, other, None, labels, nesting=dims)

    once = n * c * 32
    slack = 2 * len(dims) * n * c  # sums over rows written as products; a loop over prefixes would need 80 * n * c
    with torch.no_grad():
        assert once <= multiply_adds(forward) <= once + slack
    assert 3 * once <= multiply_adds(lambda: forward().backward()) <= 3 * once + slack
    other.requires_grad_(False)
    assert 2 * once <= multiply_adds(lambda: forward().backward()) <= 2 * once + slack


@ALL_LOSSES
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_kept_under_no_grad(name: str, reduction: str) -> None:
    loss, tensors = loss_of(name, reduction)
    expected = loss(*tensors)
    with torch.no_grad():
        value = loss(*tensors)
    assert value.grad_fn is None
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach())
    with torch.inference_mode():
        torch.testing.assert_close(loss(*tensors), value)


@ALL_LOSSES
def test_a_frozen_argument_gets_no_gradient(name: str) -> None:
    loss, tensors = loss_of(name, "mean")
    expected = torch.autograd.grad(loss(*tensors), tensors)
    for i, frozen in enumerate(tensors):
        frozen.requires_grad_(False)
        loss(*tensors).backward()
        assert frozen.grad is None
        frozen.requires_grad_()
        for j, tensor in enumerate(tensors):
            if j != i:
                torch.testing.assert_close(tensor.grad, expected[j])
            tensor.grad = None


@BOTH_HEADS
def test_parts_are_for_logging(tied: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied)
    loss, parts = head(draw(6, 7), LABELS, return_parts=True)
    assert (loss.requires_grad, parts.requires_grad, parts.shape) == (True, False, (3,))


@ALL_LOSSES
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_read_back_from_the_device(name: str, reduction: str) -> None:
    """Meta tensors hold no values: reading one raises."""
    loss, tensors = loss_of(name, reduction, device="meta")
    loss(*tensors).sum().backward()
    assert all(tensor.grad.shape == tensor.shape and tensor.grad.is_meta for tensor in tensors)


@CLOSED_FORMS
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(name: str, reduction: str) -> None:
    loss, tensors = loss_of(name, reduction)
    gradient, *_ = torch.autograd.grad(loss(*tensors).sum(), tensors, create_graph=True)
    expected, *_ = torch.autograd.grad(loss(*tensors).sum(), tensors)
    torch.testing.assert_close(gradient, expected)  # asking for a graph alone is no error
    with pytest.raises(RuntimeError, match="first order"):
        gradient.sum().backward()


@ALL_LOSSES
def test_a_retained_graph_gives_the_same_gradients_again(name: str) -> None:
    loss, tensors = loss_of(name, "mean")
    value = loss(*tensors)
    first = torch.autograd.grad(value, tensors, retain_graph=True)
    second = torch.autograd.grad(value, tensors)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@CLOSED_FORMS
def test_strides_do_not_matter(name: str) -> None:
    loss, tensors = loss_of(name, "mean", dtype=torch.float64)
    strided = [torch.stack([t, t + 1], dim=-1).detach()[..., 0].requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*tensors), tensors)
    for one, other in zip(torch.autograd.grad(loss(*strided), strided), expected, strict=True):
        torch.testing.assert_close(one, other)


# Modules


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_a_head_gives_logits_of_every_prefix_or_their_loss(tied: bool, bias: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, bias=bias, label_smoothing=0.1, dtype=torch.float64)
    x, weights = draw(6, 7, dtype=torch.float64), draw(6, dtype=torch.float64).detach().abs()
    pairs = [
        (layer.weight.detach().numpy(), None if layer.bias is None else layer.bias.detach().numpy())
        for layer in head.classifiers
    ]
    if tied:
        pairs = [(pairs[0][0][:, :m], pairs[0][1]) for m in NESTING]
    expected = oracles.losses_logits(x.detach().numpy(), pairs)
    logits = head(x)
    assert isinstance(logits, tuple)
    for z, values in zip(logits, expected, strict=True):
        np.testing.assert_allclose(z.detach().numpy(), values, rtol=1e-12)
    total, parts = head(x, LABELS, sample_weight=weights, return_parts=True)
    options = {"label_smoothing": 0.1, "ignore_index": -100, "sample_weight": weights.tolist()}
    oracle_total, oracle_parts = oracles.losses_cross_entropy(
        expected, LABELS.tolist(), importance=NESTING.importance, **options
    )
    np.testing.assert_allclose(total.item(), oracle_total, rtol=1e-12)
    np.testing.assert_allclose(parts.numpy(), oracle_parts, rtol=1e-12)


@BOTH_HEADS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_fused_loss_is_the_loss_of_the_logits(tied: bool, reduction: str) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, reduction=reduction, dtype=torch.float64)
    of_its_logits = modules.MRLCrossEntropy(NESTING, reduction=reduction)
    x = draw(2, 3, 7, dtype=torch.float64)
    labels = LABELS.reshape(2, 3)
    fused, split = head(x, labels), of_its_logits(head(x), labels)
    torch.testing.assert_close(fused, split, rtol=1e-10, atol=1e-12)
    arrays = [x, *head.parameters()]
    for one, other in zip(
        torch.autograd.grad(fused.sum(), arrays), torch.autograd.grad(split.sum(), arrays), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_state_dict_keys_are_those_of_the_official_repository() -> None:
    keys = [f"nesting_classifier_{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert list(modules.MRLHead(NESTING, N_CLASSES).state_dict()) == keys
    assert list(modules.MRLHead(NESTING, N_CLASSES, tied=True).state_dict()) == keys[:2]
    assert list(modules.MRLHead(NESTING, N_CLASSES, bias=False).state_dict()) == keys[::2]
    assert list(modules.InfoNCE(NESTING, learnable_temperature=True).state_dict()) == ["log_temperature"]
    assert not modules.InfoNCE(NESTING).state_dict()
    assert not modules.MRLCrossEntropy(NESTING).state_dict()


@BOTH_HEADS
def test_a_head_is_saved_and_loaded(tied: bool) -> None:
    head, other = (modules.MRLHead(NESTING, N_CLASSES, tied=tied) for _ in range(2))
    x = draw(6, 7)
    assert not torch.equal(head(x, LABELS), other(x, LABELS))
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(x, LABELS), other(x, LABELS))
    assert torch.equal(head(x, LABELS), copy.deepcopy(head)(x, LABELS))


@BOTH_HEADS
def test_reset_parameters_draws_as_when_new(tied: bool) -> None:
    torch.manual_seed(3)
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied)
    new = copy.deepcopy(head.state_dict())
    head.reset_parameters()
    assert not torch.equal(head.nesting_classifier_0.weight, new["nesting_classifier_0.weight"])
    torch.manual_seed(3)
    head.reset_parameters()
    assert all(torch.equal(value, new[key]) for key, value in head.state_dict().items())
    learned = modules.InfoNCE(NESTING, temperature=0.2, learnable_temperature=True)
    with torch.no_grad():
        learned.log_temperature.fill_(1.0)
    learned.reset_parameters()
    assert math.isclose(learned.temperature.item(), 0.2, rel_tol=1e-6)


def test_repr_tells_the_options() -> None:
    text = repr(modules.MRLHead(NESTING, 4, tied=True))
    assert "Nesting((2, 3, 7), importance=(2.0, 0.0, 0.5)), num_classes=4, tied=True" in text
    assert "Linear(in_features=7, out_features=4, bias=True)" in text
    assert "temperature=0.07, symmetric=True" in repr(modules.InfoNCE(NESTING, temperature=0.07, symmetric=True))
    text = repr(modules.NestedLoss(torch.nn.MSELoss(), NESTING, normalize=True))
    assert "normalize=True" in text
    assert "MSELoss()" in text
    assert "Nesting((2, 3, 7)" in repr(modules.MRLCrossEntropy(NESTING))


def test_modules_move_and_cast() -> None:
    head = modules.MRLHead(NESTING, N_CLASSES).to(torch.float64)
    assert head(draw(6, 7, dtype=torch.float64), LABELS).dtype == torch.float64
    assert modules.MRLHead(NESTING, N_CLASSES, dtype=torch.bfloat16)(draw(6, 7, dtype=torch.bfloat16))[0].dtype == (
        torch.bfloat16
    )
    learned = modules.InfoNCE(NESTING, learnable_temperature=True).to(torch.float64)
    assert learned(draw(4, 7, dtype=torch.float64), draw(5, 7, dtype=torch.float64)).dtype == torch.float64
    on_meta = modules.MRLHead(NESTING, N_CLASSES, device="meta")
    assert on_meta(torch.ones(6, 7, device="meta"), LABELS.to("meta")).is_meta


@BOTH_HEADS
def test_half_precision_parameters_get_gradients_of_their_dtype(tied: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, dtype=torch.bfloat16)
    x = draw(6, 7, dtype=torch.bfloat16)
    loss = head(x, LABELS)
    assert loss.dtype == torch.float32
    loss.backward()
    wide = copy.deepcopy(head).double()
    wide.zero_grad()
    y = x.detach().double().requires_grad_()
    wide(y, LABELS).backward()
    for half, full in zip([x, *head.parameters()], [y, *wide.parameters()], strict=True):
        assert half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad.double(), full.grad, rtol=0.05, atol=0.01)


def test_a_learned_temperature_gets_a_gradient_and_stays_positive() -> None:
    learned = modules.InfoNCE(NESTING, temperature=0.5, learnable_temperature=True, symmetric=True, dtype=torch.float64)
    queries, keys = draw(4, 7, dtype=torch.float64).detach(), draw(5, 7, dtype=torch.float64).detach()
    learned(queries, keys).backward()
    rows = queries.numpy(), keys.numpy()
    logarithm = np.array(math.log(0.5))
    slope = oracles.losses_slope(
        lambda: oracles.losses_info_nce(
            *rows,
            NESTING.dims,
            importance=NESTING.importance,
            temperature=math.exp(float(logarithm)),
            symmetric=True,
        )[0],
        logarithm,
    )
    np.testing.assert_allclose(learned.log_temperature.grad.item(), slope, rtol=1e-8)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1.0)
    optimizer.step()
    assert learned.temperature.item() > 0
    assert isinstance(modules.InfoNCE(NESTING, temperature=0.5).temperature, float)


def test_info_nce_modules_take_every_option() -> None:
    queries, keys = draw(4, 7), draw(5, 7)
    options = {"temperature": 0.3, "symmetric": True, "label_smoothing": 0.1, "reduction": "none"}
    expected, expected_parts = info_nce(queries, keys, nesting=NESTING, return_parts=True, **options)
    for gather in (False, True):  # gather has nobody to gather from in a single process
        loss, parts = modules.InfoNCE(NESTING, gather=gather, **options)(queries, keys, return_parts=True)
        assert torch.equal(loss, expected)
        assert torch.equal(parts, expected_parts)


def test_a_nested_loss_owns_the_parameters_of_its_loss() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, a: Any, b: Any) -> Any:
            return self.scale * torch.nn.functional.mse_loss(a, b)

    loss = modules.NestedLoss(Scaled(), NESTING)
    assert list(loss.state_dict()) == ["loss.scale"]
    total, parts = loss(draw(4, 7), draw(4, 7, seed=1), return_parts=True)
    total.backward()
    torch.testing.assert_close(loss.loss.scale.grad, total.detach() / 2)
    torch.testing.assert_close(total, 2.0 * parts[0] + 0.5 * parts[2])


def test_a_perfect_student_has_no_loss_and_no_gradient() -> None:
    teacher = torch.nn.functional.normalize(draw(5, 7).detach())
    student = (2 * teacher).requires_grad_()
    loss = modules.NestedLoss(torch.nn.MSELoss(), NESTING, normalize=True)(student, teacher)
    loss.backward()
    assert loss.item() == 0.0
    assert not student.grad.any()


def test_bad_options_are_refused_when_the_module_is_built() -> None:
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 1, got 0"):
        modules.MRLHead(NESTING, 0)
    with pytest.raises(ValueError, match="`nesting` must be positive and strictly increasing"):
        modules.MRLHead((7, 3), 4)
    with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', 'none', got 'batchmean'"):
        modules.MRLHead(NESTING, 4, reduction="batchmean")
    with pytest.raises(ValueError, match="`label_smoothing`"):
        modules.MRLCrossEntropy(NESTING, label_smoothing=1.1)
    with pytest.raises(TypeError, match="`ignore_index` must be an integer"):
        modules.MRLCrossEntropy(NESTING, ignore_index=0.5)
    with pytest.raises(ValueError, match=r"`temperature` must be finite and in \(0, inf\], got 0.0"):
        modules.InfoNCE(NESTING, temperature=0)
    with pytest.raises(TypeError, match="`loss` must be callable, got str 'mse'"):
        modules.NestedLoss("mse", NESTING)


@BOTH_HEADS
def test_bad_tensors_are_refused_when_the_module_is_called(tied: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied)
    for arguments in ((torch.ones(6, 8),), (torch.ones(6, 8), LABELS)):
        with pytest.raises(ValueError, match=r"the last axis of `embeddings` must be .*, 7, got shape \(6, 8\)"):
            head(*arguments)
    with pytest.raises(TypeError, match="`embeddings` and .* must have one dtype, got torch.float64 and .*32"):
        head(torch.ones(6, 7, dtype=torch.float64), LABELS)
    with pytest.raises(ValueError, match=r"`labels` must have one class id per row, shape \(6,\), got \(5,\)"):
        head(torch.ones(6, 7), LABELS[:5])
    with pytest.raises(TypeError, match=r"`labels` must hold integer class ids, got dtype torch.float32"):
        head(torch.ones(6, 7), torch.ones(6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="`queries` and `keys` must lie on one device, got cuda:0 and cpu"):
        info_nce(torch.ones(4, 7, device="cuda"), torch.ones(4, 7), nesting=NESTING)


# Heads that begin as plain ones, and classifiers that are none


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_a_head_starts_as_a_trained_classifier(tied: bool, bias: bool) -> None:
    linear = torch.nn.Linear(7, N_CLASSES, bias=bias, dtype=torch.float64).requires_grad_(False)
    before = copy.deepcopy(linear.state_dict())
    head = modules.MRLHead.from_linear(linear, NESTING, tied=tied, label_smoothing=0.1)
    assert (head.tied, head.num_classes, head.options["label_smoothing"]) == (tied, N_CLASSES, 0.1)
    assert head.options["ignore_index"] == -100
    x = draw(6, 7, dtype=torch.float64)
    for m, logits in zip(NESTING, head(x), strict=True):
        expected = x[:, :m] @ linear.weight[:, :m].T + (linear.bias if bias else 0.0)
        torch.testing.assert_close(logits, expected, rtol=1e-13, atol=1e-14)
    assert [layer.bias is not None for layer in head.classifiers] == [bias] * (1 if tied else len(NESTING))
    head(x, LABELS).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(0.0)
    assert all(torch.equal(value, before[key]) for key, value in linear.state_dict().items())  # copies


def test_a_head_of_a_classifier_is_tied_and_follows_its_dtype_and_device() -> None:
    head = modules.MRLHead.from_linear(torch.nn.Linear(7, 4, dtype=torch.bfloat16, device="meta"), NESTING)
    assert head.tied
    assert [(p.dtype, p.is_meta) for p in head.parameters()] == [(torch.bfloat16, True)] * 2


def test_what_is_no_classifier_of_that_width_is_refused() -> None:
    with pytest.raises(ValueError, match="`nesting` must end with the width of `linear`, 8, got 7; make 8 its last"):
        modules.MRLHead.from_linear(torch.nn.Linear(8, 4), NESTING)
    with pytest.raises(TypeError, match=r"`linear` must be a torch.nn.Linear, got Adapted; .* merge its adapters"):
        modules.MRLHead.from_linear(Adapted(torch.nn.Linear(7, 4)), NESTING)
    with pytest.raises(TypeError, match="num_classes"):
        modules.MRLHead.from_linear(torch.nn.Linear(7, 4), NESTING, num_classes=5)
    with pytest.raises(TypeError, match="device"):  # it is that of the layer
        modules.MRLHead.from_linear(torch.nn.Linear(7, 4), NESTING, device="meta")


class Adapted(torch.nn.Module):
    """A frozen layer with a trained correction of low rank, wrapped around it as PEFT does."""

    def __init__(self, base_layer: Any, *, seed: int = 0) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        (c, m), dtype = base_layer.weight.shape, base_layer.weight.dtype
        self.down = torch.nn.Parameter(draw(2, m, seed=seed, dtype=dtype).detach())
        self.up = torch.nn.Parameter(draw(c, 2, seed=seed, dtype=dtype).detach())

    def forward(self, x: Any) -> Any:
        return self.base_layer(x) + x @ self.down.T @ self.up.T

    def merged(self) -> Any:
        """The weight that a plain layer would need."""
        return self.base_layer.weight + self.up @ self.down


def losses_and_gradients(head: Any, x: Any, parameters: list[Any]) -> tuple[Any, Any, list[Any]]:
    weights = torch.linspace(0.5, 2.0, 6, dtype=x.dtype)
    loss, parts = head(x, LABELS, sample_weight=weights, return_parts=True)
    return loss.detach(), parts, list(torch.autograd.grad(loss, [x, *parameters]))


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_adapters_around_classifiers_are_called(tied: bool, bias: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, bias=bias, label_smoothing=0.1, dtype=torch.float64)
    plain = copy.deepcopy(head)
    adapted = [Adapted(layer, seed=i) for i, layer in enumerate(head.classifiers)]
    for i, layer in enumerate(adapted):
        setattr(head, f"nesting_classifier_{i}", layer)
    assert head.classifiers == adapted
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for layer, wrapped in zip(plain.classifiers, adapted, strict=True):
            layer.weight.copy_(wrapped.merged())
    x = draw(6, 7, dtype=torch.float64)
    loss, parts, (d_x, *d_trained) = losses_and_gradients(head, x, trained)
    expected, expected_parts, (d_x_plain, *d_plain) = losses_and_gradients(
        plain, x, [layer.weight for layer in plain.classifiers]
    )
    torch.testing.assert_close((loss, parts, d_x), (expected, expected_parts, d_x_plain), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head(x), plain(x), rtol=1e-10, atol=1e-12)
    for layer, d_weight in zip(adapted, d_plain, strict=True):
        d_down, d_up = d_trained.pop(0), d_trained.pop(0)
        torch.testing.assert_close((d_down, d_up), (layer.up.T @ d_weight, d_weight @ layer.down.T))


@BOTH_HEADS
@pytest.mark.parametrize("kind", ["pre", "forward", "backward", "replaced"])
def test_hooks_of_classifiers_fire(tied: bool, kind: str) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, dtype=torch.float64)
    x, fired = draw(6, 7, dtype=torch.float64), []
    expected = head(x, LABELS)
    register = {"pre": "register_forward_pre_hook", "forward": "register_forward_hook"}
    for layer in head.classifiers:
        if kind == "replaced":  # as some libraries do, on the object
            layer.forward = lambda rows, layer=layer: fired.append(0) or type(layer).forward(layer, rows)
        else:
            getattr(layer, register.get(kind, "register_full_backward_hook"))(lambda *_: fired.append(0))
    loss = head(x, LABELS)
    loss.backward()
    assert len(fired) == len(NESTING)
    torch.testing.assert_close(loss, expected)


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_a_cascade_takes_a_head(tied: bool, bias: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, bias=bias, dtype=torch.float64)
    x = draw(60, 7, dtype=torch.float64)
    logits = torch.stack(head(x)).detach()
    cascade = Cascade(tuple(NESTING), [float(z.softmax(-1).amax(-1).median()) + 1e-6 for z in logits[:-1]])
    expected = cascade.predict(logits, from_logits=True)
    assert len(expected[1].unique()) == len(NESTING)
    answer = cascade.classifier(head)
    for found in (
        cascade.classify(x, head),
        answer(x),
        [torch.cat(part) for part in zip(*map(answer, x.split(1)), strict=True)],
    ):
        torch.testing.assert_close(tuple(found), expected)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    torch.testing.assert_close(answer(x), expected)  # a copy


@BOTH_HEADS
def test_a_cascade_refuses_a_head_that_does_more_than_its_weights_say(tied: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied)
    cascade = Cascade(tuple(NESTING), (0.5,) * (len(NESTING) - 1))
    hook = head.nesting_classifier_0.register_forward_hook(lambda *_: None)
    with pytest.raises(
        TypeError, match="`heads` must be plain linear classifiers, got a Linear .*nesting_classifier_0"
    ):
        cascade.classifier(head)
    hook.remove()
    cascade.classifier(head)
    head.nesting_classifier_0 = Adapted(head.nesting_classifier_0, seed=1)
    with pytest.raises(TypeError, match="`heads` must be plain linear classifiers, got a Adapted"):
        cascade.classify(torch.ones(2, 7), head)
    with pytest.raises(ValueError, match="`heads` must be a head for the widths of the cascade, "):
        Cascade((1, 7), (0.5,)).classifier(head)


class Doubled(torch.nn.Module):
    def forward(self, weight: Any) -> Any:
        return 2 * weight.tanh()


@BOTH_HEADS
@pytest.mark.parametrize("kind", ["own", "spectral", "weight"])
def test_parametrised_classifiers_stay_fused(tied: bool, kind: str) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, dtype=torch.float64)
    for layer in head.classifiers:
        if kind == "own":
            torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
        else:
            getattr(torch.nn.utils.parametrizations, f"{kind}_norm")(layer)
    head.eval()  # in which the spectral norm stays as it is
    x, parameters = draw(6, 7, dtype=torch.float64), list(head.parameters())
    assert len(parameters) == (3 if kind == "weight" else 2) * len(head.classifiers)
    called: list[Any] = []
    watch = torch.nn.modules.module.register_module_forward_hook(lambda layer, *_: called.append(layer))
    loss = head(x, LABELS)
    watch.remove()
    assert head in called
    assert not set(called) & set(head.classifiers)
    expected = modules.MRLCrossEntropy(NESTING)(head(x), LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(loss, [x, *parameters]), torch.autograd.grad(expected, [x, *parameters]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    weights = [layer.weight.detach() for layer in head.classifiers]
    if tied:
        weights = [weights[0][:, :m] for m in NESTING]
    biases = [layer.bias.detach() for layer in head.classifiers] * (len(NESTING) if tied else 1)
    for m, weight, bias, logits in zip(NESTING, weights, biases, head(x), strict=False):
        torch.testing.assert_close(logits.detach(), x.detach()[:, :m] @ weight.T + bias)


@BOTH_HEADS
def test_a_quantised_head_gives_logits_and_losses(tied: bool) -> None:
    torch.manual_seed(0)
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch means to move quantisation elsewhere
        quantised = torch.ao.quantization.quantize_dynamic(head, {torch.nn.Linear}, dtype=torch.qint8)
        assert not any(isinstance(layer, torch.nn.Linear) for layer in quantised.classifiers)
        x = draw(6, 7).detach()
        with torch.no_grad():
            torch.testing.assert_close(quantised(x), head(x), rtol=0, atol=0.05)
            torch.testing.assert_close(quantised(x, LABELS), head(x, LABELS), rtol=0.05, atol=0)


# The rest of PyTorch


@BOTH_HEADS
def test_torch_func_differentiates_a_head(tied: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied)
    x = draw(6, 7)
    parameters = {name: value.detach() for name, value in head.named_parameters()}

    def loss(parameters: dict[str, Any]) -> Any:
        return torch.func.functional_call(head, parameters, (x.detach(), LABELS))

    gradients, value = torch.func.grad_and_value(loss)(parameters)
    expected = head(x, LABELS)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@BOTH_HEADS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_multiplies_in_half_precision_and_sums_in_float32(device: str, dtype: Any, tied: bool) -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, device=device)
    x, labels = draw(6, 7, device=device), LABELS.to(device)
    expected = head(x, labels)
    tensors = [x, *head.parameters()]
    gradients = torch.autograd.grad(expected, tensors)
    for embeddings in (x, x.to(dtype)):  # those of a backbone under autocast come in half precision
        with torch.autocast(device, dtype=dtype):
            loss = head(embeddings, labels)
            assert torch.is_autocast_enabled(device)
        assert loss.dtype == torch.float32
        assert not torch.equal(loss, expected)  # the products did lose digits
        torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.0)
        for gradient, full in zip(torch.autograd.grad(loss, tensors), gradients, strict=True):
            assert gradient.dtype == torch.float32
            torch.testing.assert_close(gradient, full, rtol=0.02, atol=0.01)


@ALL_LOSSES
def test_autocast_leaves_float64_alone(name: str) -> None:
    loss, tensors = loss_of(name, "mean", dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*tensors)
    assert torch.equal(value, loss(*tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_info_nce_under_autocast_survives_long_rows(device: str, dtype: Any) -> None:
    learned = modules.InfoNCE(NESTING, temperature=0.5, learnable_temperature=True, device=device)
    tensors = [draw(4, 7, device=device), draw(5, 7, device=device), learned.log_temperature]
    expected = learned(*tensors[:2])
    gradients = torch.autograd.grad(expected, tensors)
    queries, keys = ((300 * tensor).detach().requires_grad_() for tensor in tensors[:2])
    with torch.autocast(device, dtype=dtype):
        loss = learned(queries, keys)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.0)
    scaled = torch.autograd.grad(loss, [queries, keys, learned.log_temperature])
    for gradient, full, scale in zip(scaled, gradients, (300, 300, 1), strict=True):
        torch.testing.assert_close(scale * gradient, full, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, y: modules.MRLHead(NESTING, N_CLASSES)(x, torch.tensor(y)), "embeddings"),
        (lambda x, y: modules.MRLHead(NESTING, N_CLASSES, tied=True)(torch.tensor(x), y), "labels"),
        (lambda x, y: modules.MRLHead(NESTING, N_CLASSES)(torch.tensor(x), list(y)), "labels"),
        (lambda x, y: modules.InfoNCE(NESTING)(torch.tensor(x), x), "keys"),
        (lambda x, y: modules.NestedLoss(torch.nn.MSELoss(), NESTING)(x, x), "arrays\\[0\\]"),
    ],
)
def test_what_is_no_tensor_is_named(call: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"`{name}` must be a tensor, got .*; convert it with torch.as_tensor"):
        call(np.ones((3, 7), "float32"), np.array([0, 1, 2]))


def compiled_and_eager(module: Any, arguments: list[Any], backend: str) -> list[tuple[Any, Any]]:
    """Values and gradients of a module, compiled and not; a graph break raises, and so does a warning."""
    torch.compiler.reset()
    tensors = [t for t in (*arguments, *module.parameters()) if t.is_floating_point()]
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # the compiler's own
        for function in (torch.compile(module, fullgraph=True, backend=backend), module):
            loss = function(*arguments)
            results.append((loss.detach(), *torch.autograd.grad(loss, tensors)))
    return list(zip(*results, strict=True))


@COMPILES
def test_info_nce_compiles_to_one_graph() -> None:
    """Ahead-of-time autograd included, without the code generator, which takes its time."""
    module = modules.InfoNCE(NESTING, symmetric=True, learnable_temperature=True)
    for compiled, eager in compiled_and_eager(module, [draw(4, 7), draw(5, 7)], "aot_eager"):
        torch.testing.assert_close(compiled, eager)


@COMPILES
@pytest.mark.parametrize("tied", [False, True])
def test_heads_compile_for_every_batch_at_once(tied: bool) -> None:
    """With `dynamic=True` floats are symbols too: the checks of options have to be traceable."""
    torch.compiler.reset()
    head = modules.MRLHead(NESTING, N_CLASSES, tied=tied, label_smoothing=0.1)
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # the compiler's own
        for n in (6, 9):
            x, labels = draw(n, 7), torch.arange(n) % N_CLASSES
            torch.testing.assert_close(compiled(x, labels), head(x, labels))


@COMPILES
def test_a_tied_head_compiles_to_generated_code() -> None:
    head = modules.MRLHead(NESTING, N_CLASSES, tied=True)
    for compiled, eager in compiled_and_eager(head, [draw(6, 7), LABELS], "inductor"):
        torch.testing.assert_close(compiled, eager)


COMPILED_AT_ONCE = """
import torch
from matryoshka.torch import MRLHead

head, x, labels = MRLHead((2, 3, 7), 4), torch.randn(6, 7, requires_grad=True), torch.tensor([3, 0, 1, -100, 2, 3])
results = []
for function in (torch.compile(head, fullgraph=True, backend="aot_eager"), head):
    loss = function(x, labels)
    results.append((loss.detach(), *torch.autograd.grad(loss, [x, *head.parameters()])))
torch.testing.assert_close(*results)
"""


@COMPILES
def test_a_head_compiles_before_its_first_eager_call() -> None:
    """In a process of its own: nothing may be left to be imported on first use, which cannot be traced."""
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", COMPILED_AT_ONCE], check=True, timeout=300)
