"""MRL and MRL-E cross-entropy: values, gradients, options, degenerate batches and errors on every array library."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import (
    Nesting,
    mrl_cross_entropy,
    mrl_cross_entropy_with_grad,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
    mrl_logits_cross_entropy,
)

NESTING = Nesting((2, 3, 7), importance=(2.0, 0.0, 0.5))
N_ROWS, N_CLASSES = 6, 4
IGNORED = -7


@dataclass(frozen=True)
class Heads:
    """One way to classify prefixes: a head each (MRL) or one for all (MRL-E), with or without a bias."""

    tied: bool
    bias: bool

    def arrays(self) -> tuple[Any, ...]:
        """Everything before the labels, in the order of the call."""
        rng = np.random.default_rng(11)
        embeddings = rng.normal(size=(N_ROWS, NESTING.dim)) * np.linspace(0.3, 2.0, N_ROWS)[:, None]
        widths = (NESTING.dim,) if self.tied else NESTING.dims
        pairs = [(rng.normal(size=(N_CLASSES, m)), rng.normal(size=N_CLASSES) if self.bias else None) for m in widths]
        return (embeddings, *pairs[0]) if self.tied else (embeddings, pairs)

    def loss(self, arrays: tuple[Any, ...], labels: Any, **options: Any) -> Any:
        function = mrl_e_cross_entropy if self.tied else mrl_cross_entropy
        return function(*arrays, labels, **{"nesting": NESTING, **options})

    def with_grad(self, arrays: tuple[Any, ...], labels: Any, **options: Any) -> Any:
        function = mrl_e_cross_entropy_with_grad if self.tied else mrl_cross_entropy_with_grad
        return function(*arrays, labels, **{"nesting": NESTING, **options})

    def oracle(self, arrays: tuple[Any, ...], labels: Any, **options: Any) -> Any:
        nesting = options.pop("nesting", NESTING)
        embeddings, *head = arrays
        heads = [(head[0][:, :m], head[1]) for m in nesting] if self.tied else head[0]
        logits = oracles.losses_logits(embeddings, heads)
        return oracles.losses_cross_entropy(logits, labels, importance=nesting.importance, **options)


KINDS = {
    "mrl": Heads(tied=False, bias=True),
    "mrl-no-bias": Heads(tied=False, bias=False),
    "mrl-e": Heads(tied=True, bias=True),
    "mrl-e-no-bias": Heads(tied=True, bias=False),
}
LABELS = np.array([3, 0, 1, 1, 2, 3])
SOME_IGNORED = np.array([3, IGNORED, 1, 1, IGNORED, 3])
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "ignoring": {"labels": SOME_IGNORED, "ignore_index": IGNORED},
    "weighted": {"sample_weight": WEIGHTS},
    "all-options": {
        "labels": SOME_IGNORED,
        "ignore_index": IGNORED,
        "sample_weight": WEIGHTS,
        "label_smoothing": 0.1,
    },
}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
WITH_BIAS = pytest.mark.parametrize("kind", ["mrl", "mrl-e"])
ALL_OPTIONS = pytest.mark.parametrize("options", OPTIONS)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the arrays in nested tuples and lists, None left out."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def put(library: Library, value: Any) -> Any:
    """Put every array in nested tuples and lists on a library."""
    if isinstance(value, tuple | list):
        return type(value)([put(library, item) for item in value])
    return library.array(value) if isinstance(value, np.ndarray) else value


def options_of(name: str, **more: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels and keywords of one entry of OPTIONS."""
    options = {**OPTIONS[name], **more}
    return options.pop("labels", LABELS), options


def placed(library: Library, options: dict[str, Any]) -> dict[str, Any]:
    return {name: put(library, value) for name, value in options.items()}


@functools.cache
def expected_gradients(kind: str, options: str, reduction: str) -> list[np.ndarray]:
    arrays = KINDS[kind].arrays()
    labels, keywords = options_of(options, reduction=reduction)
    return [
        oracles.losses_slope(lambda: KINDS[kind].oracle(arrays, labels, **keywords)[0], array)
        for array in leaves(arrays)
    ]


@ALL_KINDS
@ALL_OPTIONS
def test_the_loss_is_the_sum_over_prefixes(eager_library: Library, kind: str, options: str) -> None:
    arrays = KINDS[kind].arrays()
    for reduction in ("mean", "sum", "none"):
        labels, keywords = options_of(options, reduction=reduction)
        expected, expected_parts = KINDS[kind].oracle(arrays, labels, **keywords)
        on_library = put(eager_library, arrays), eager_library.array(labels)
        total, parts = KINDS[kind].loss(*on_library, return_parts=True, **placed(eager_library, keywords))
        eager_library.assert_close(total, expected)
        eager_library.assert_close(parts, expected_parts)
        eager_library.assert_close(KINDS[kind].loss(*on_library, **placed(eager_library, keywords)), expected)


@ALL_KINDS
@ALL_OPTIONS
def test_gradients_are_the_slopes_of_the_loss(eager_library: Library, kind: str, options: str) -> None:
    arrays = KINDS[kind].arrays()
    for reduction in ("mean", "sum"):
        labels, keywords = options_of(options, reduction=reduction)
        (total, parts), gradients = KINDS[kind].with_grad(
            put(eager_library, arrays),
            eager_library.array(labels),
            return_parts=True,
            **placed(eager_library, keywords),
        )
        expected, expected_parts = KINDS[kind].oracle(arrays, labels, **keywords)
        eager_library.assert_close(total, expected)
        eager_library.assert_close(parts, expected_parts)
        slopes = expected_gradients(kind, options, reduction)
        for actual, slope in zip(leaves(gradients), slopes, strict=True):
            eager_library.assert_close(actual, slope, rtol=max(eager_library.rtol, 1e-9))


def test_gradients_come_in_a_field_per_argument() -> None:
    mrl = KINDS["mrl-no-bias"].with_grad(KINDS["mrl-no-bias"].arrays(), LABELS)[1]
    assert (mrl._fields, mrl.embeddings.shape) == (("embeddings", "heads"), (N_ROWS, 7))
    assert [(weight.shape, bias) for weight, bias in mrl.heads] == [((N_CLASSES, m), None) for m in NESTING]
    mrl_e = KINDS["mrl-e"].with_grad(KINDS["mrl-e"].arrays(), LABELS)[1]
    assert (mrl_e._fields, mrl_e.weight.shape, mrl_e.bias.shape) == (
        ("embeddings", "weight", "bias"),
        (N_CLASSES, 7),
        (N_CLASSES,),
    )
    assert KINDS["mrl-e-no-bias"].with_grad(KINDS["mrl-e-no-bias"].arrays(), LABELS)[1].bias is None


@ALL_OPTIONS
@pytest.mark.parametrize("stacked", [False, True], ids=["sequence", "one-array"])
def test_logits_that_exist_give_the_same_loss(eager_library: Library, options: str, stacked: bool) -> None:
    logits = np.random.default_rng(12).normal(size=(len(NESTING), N_ROWS, N_CLASSES)) * 3
    for reduction in ("mean", "sum", "none"):
        labels, keywords = options_of(options, reduction=reduction)
        expected, expected_parts = oracles.losses_cross_entropy(
            logits, labels, importance=NESTING.importance, **keywords
        )
        total, parts = mrl_logits_cross_entropy(
            put(eager_library, logits if stacked else list(logits)),
            eager_library.array(labels),
            nesting=NESTING,
            return_parts=True,
            **placed(eager_library, keywords),
        )
        eager_library.assert_close(total, expected)
        eager_library.assert_close(parts, expected_parts)


@WITH_BIAS
@pytest.mark.parametrize("axes", [(2, 3), (3, 1, 2)], ids=str)
def test_leading_axes_are_rows(library: Library, kind: str, axes: tuple[int, ...]) -> None:
    embeddings, *head = KINDS[kind].arrays()
    labels, keywords = options_of("all-options")
    weights = keywords.pop("sample_weight")
    arrays = put(library, (embeddings.reshape(*axes, 7), *head))
    on_library = {"sample_weight": library.array(weights.reshape(axes)), **keywords}
    label_array = library.array(labels.reshape(axes))
    for reduction in ("mean", "none"):
        options = {**keywords, "sample_weight": weights, "reduction": reduction}
        expected, expected_parts = KINDS[kind].oracle((embeddings, *head), labels, **options)
        on_library["reduction"] = reduction
        total, parts = KINDS[kind].loss(arrays, label_array, return_parts=True, **on_library)
        library.assert_close(total, expected.reshape(axes if reduction == "none" else ()))
        library.assert_close(parts, expected_parts.reshape(3, *(axes if reduction == "none" else ())))
    slopes = expected_gradients(kind, "all-options", "mean")
    _, gradients = KINDS[kind].with_grad(arrays, label_array, **{**on_library, "reduction": "mean"})
    library.assert_close(gradients.embeddings, slopes[0].reshape(*axes, 7), rtol=max(library.rtol, 1e-9))


def test_leading_axes_of_logits_are_rows() -> None:
    logits = np.random.default_rng(13).normal(size=(3, 2, 3, N_CLASSES))
    flat = mrl_logits_cross_entropy(logits.reshape(3, 6, N_CLASSES), LABELS, nesting=NESTING, reduction="none")
    cubed = mrl_logits_cross_entropy(logits, LABELS.reshape(2, 3), nesting=NESTING, reduction="none")
    np.testing.assert_array_equal(cubed, flat.reshape(2, 3))


@ALL_KINDS
def test_a_single_embedding_is_one_row(kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    expected = KINDS[kind].loss((embeddings[:1], *head), LABELS[:1], reduction="sum")
    for reduction in ("mean", "sum", "none"):
        total, gradients = KINDS[kind].loss((embeddings[0], *head), LABELS[0:1].reshape(()), reduction=reduction), None
        assert np.shape(total) == ()
        np.testing.assert_allclose(total, expected, rtol=1e-14)
    _, gradients = KINDS[kind].with_grad((embeddings[0], *head), LABELS[0:1].reshape(()))
    assert gradients.embeddings.shape == (7,)


@WITH_BIAS
def test_row_blocks_change_nothing(eager_library: Library, kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    labels, keywords = options_of("all-options")
    again = np.arange(N_ROWS + 1) % N_ROWS  # 7 rows, which no block size from 2 to 6 divides
    keywords["sample_weight"] = keywords["sample_weight"][again]
    on_library = put(eager_library, (embeddings[again], *head)), eager_library.array(labels[again])
    options = placed(eager_library, keywords)

    def results(row_block: int | None) -> list[Any]:
        rows = KINDS[kind].loss(*on_library, reduction="none", row_block=row_block, **options)
        return [rows, *leaves(KINDS[kind].with_grad(*on_library, row_block=row_block, **options))]

    expected = [eager_library.to_numpy(array) for array in results(None)]
    for row_block in (1, 3, 4, 7, 100):
        for actual, array in zip(results(row_block), expected, strict=True):
            eager_library.assert_close(actual, array)


@ALL_KINDS
def test_arguments_are_left_as_they_were(eager_library: Library, kind: str) -> None:
    arrays = KINDS[kind].arrays()
    labels, keywords = options_of("all-options")
    handed_in = put(eager_library, (arrays, labels, keywords["sample_weight"]))
    options = {**keywords, "sample_weight": handed_in[2], "row_block": 4}
    KINDS[kind].loss(*handed_in[:2], **options)
    KINDS[kind].with_grad(*handed_in[:2], **options)
    before = leaves((arrays, labels, keywords["sample_weight"]))
    for array, original in zip(leaves(handed_in), before, strict=True):
        np.testing.assert_array_equal(
            eager_library.to_numpy(array), eager_library.to_numpy(eager_library.array(original))
        )


@ALL_KINDS
def test_importance_0_contributes_nothing_and_is_reported(kind: str) -> None:
    arrays = KINDS[kind].arrays()
    heavy = Nesting(NESTING.dims, importance=(2.0, 1.0, 0.5))
    (total, parts), gradients = KINDS[kind].with_grad(arrays, LABELS, return_parts=True)
    _, all_parts = KINDS[kind].loss(arrays, LABELS, nesting=heavy, return_parts=True)
    np.testing.assert_allclose(parts, all_parts, rtol=1e-14)
    np.testing.assert_allclose(total, 2.0 * parts[0] + 0.5 * parts[2], rtol=1e-14)
    if kind.startswith("mrl-e"):
        return
    assert not any(array.any() for array in leaves(gradients.heads[1]))


def test_importance_0_contributes_nothing_even_where_its_loss_is_infinite() -> None:
    logits = np.zeros((3, 1, N_CLASSES))
    logits[1, 0, 2] = -np.inf  # a class masked out, and the right one
    total, parts = mrl_logits_cross_entropy(logits, np.array([2]), nesting=NESTING, return_parts=True)
    np.testing.assert_allclose(total, 2.5 * np.log(N_CLASSES))
    np.testing.assert_array_equal(np.isinf(parts), [False, True, False])


# Degenerate batches


@WITH_BIAS
@pytest.mark.parametrize("why", ["ignored", "weight-0", "no-rows"])
def test_where_no_row_counts_the_loss_is_0_with_zero_gradients(library: Library, kind: str, why: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    n = 0 if why == "no-rows" else N_ROWS
    labels = np.full(n, IGNORED if why == "ignored" else 1)
    options: dict[str, Any] = {"ignore_index": IGNORED}
    if why == "weight-0":
        options["sample_weight"] = library.array(np.zeros(n))
    on_library = put(library, (embeddings[:n], *head)), library.array(labels)
    for reduction in ("mean", "sum"):
        (total, parts), gradients = KINDS[kind].with_grad(
            *on_library, return_parts=True, reduction=reduction, **options
        )
        library.assert_close(total, np.array(0.0), atol=0)
        library.assert_close(parts, np.zeros(3), atol=0)
        for gradient, array in zip(leaves(gradients), leaves((embeddings[:n], *head)), strict=True):
            library.assert_close(gradient, np.zeros_like(array), atol=0)
    rows, parts = KINDS[kind].loss(*on_library, return_parts=True, reduction="none", **options)
    library.assert_close(rows, np.zeros(n), atol=0)
    library.assert_close(parts, np.zeros((3, n)), atol=0)


@WITH_BIAS
def test_no_rows_need_no_ignore_index(library: Library, kind: str) -> None:
    _, *head = KINDS[kind].arrays()
    arrays = put(library, (np.zeros((2, 0, 7)), *head))
    total, gradients = KINDS[kind].with_grad(arrays, library.array(np.zeros((2, 0), dtype=np.int64)))
    library.assert_close(total, np.array(0.0), atol=0)
    library.assert_close(gradients.embeddings, np.zeros((2, 0, 7)))


@WITH_BIAS
def test_one_row(eager_library: Library, kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    arrays = embeddings[2:3], *head
    total = KINDS[kind].loss(put(eager_library, arrays), eager_library.array(LABELS[2:3]))
    eager_library.assert_close(total, KINDS[kind].oracle(arrays, LABELS[2:3])[0])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_a_single_class_is_always_right(eager_library: Library, label_smoothing: float) -> None:
    arrays = put(eager_library, (np.ones((3, 7)), 5 * np.ones((1, 7)), np.ones(1)))
    total, gradients = mrl_e_cross_entropy_with_grad(
        *arrays, eager_library.array(np.zeros(3, dtype=np.int64)), nesting=NESTING, label_smoothing=label_smoothing
    )
    eager_library.assert_close(total, np.array(0.0))
    for gradient in gradients:
        eager_library.assert_close(gradient, np.zeros(gradient.shape))


@WITH_BIAS
def test_equal_rows_have_equal_losses(library: Library, kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    arrays = np.tile(embeddings[:1], (N_ROWS, 1)), *head
    rows = KINDS[kind].loss(put(library, arrays), library.array(np.full(N_ROWS, 2)), reduction="none")
    library.assert_close(rows, np.full(N_ROWS, KINDS[kind].oracle((embeddings[:1], *head), [2])[0]))


@WITH_BIAS
def test_huge_logits_stay_finite(library: Library, kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    arrays = 1e4 * embeddings, *head  # logits of ±1e4 and more
    total, gradients = KINDS[kind].with_grad(put(library, arrays), library.array(LABELS), label_smoothing=0.1)
    library.assert_close(total, KINDS[kind].oracle(arrays, LABELS, label_smoothing=0.1)[0])
    assert all(np.isfinite(library.to_numpy(gradient)).all() for gradient in leaves(gradients))


@WITH_BIAS
def test_half_precision_gives_a_float32_loss(half: Library, kind: str) -> None:
    arrays = put(half, KINDS[kind].arrays())
    rounded = _on_host(half, arrays)
    total, gradients = KINDS[kind].with_grad(arrays, half.array(LABELS))
    assert str(total.dtype).endswith("float32")
    np.testing.assert_allclose(half.to_numpy(total), KINDS[kind].oracle(rounded, LABELS)[0], rtol=half.rtol)
    slopes = [oracles.losses_slope(lambda: KINDS[kind].oracle(rounded, LABELS)[0], array) for array in leaves(rounded)]
    largest = max(np.abs(slope).max() for slope in slopes)
    for gradient, array, slope in zip(leaves(gradients), leaves(arrays), slopes, strict=True):
        assert gradient.dtype == array.dtype
        values = half.to_numpy(gradient).astype(np.float64)
        np.testing.assert_allclose(values, slope, rtol=2 * half.rtol, atol=half.rtol * largest)


def test_half_precision_sums_and_counts_in_float32() -> None:
    """4099 rows of log(2) each: float16 has neither the sum nor the count."""
    n = 4099
    arrays = np.ones((n, 7), dtype=np.float16), np.zeros((2, 7), dtype=np.float16), None
    labels, options = np.zeros(n, dtype=np.int64), {"nesting": NESTING, "ignore_index": IGNORED}
    for reduction, count in (("sum", n), ("mean", 1)):
        total = mrl_e_cross_entropy(*arrays, labels, reduction=reduction, **options)
        np.testing.assert_allclose(total, 2.5 * count * np.log(2), rtol=1e-5)


def _on_host(library: Library, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)([_on_host(library, item) for item in value])
    return None if value is None else library.to_numpy(value).astype(np.float64)


# Properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Nesting, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """A nesting, embeddings, tied weight and bias, labels (some ignored), options."""
    dims = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    importance = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(dims), max_size=len(dims)))
    nesting = Nesting(dims, importance if any(importance) else None)
    n, n_classes = draw(st.integers(0, 7)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = np.where(rng.random(n) < 0.2, IGNORED, rng.integers(0, n_classes, size=n))
    options = {
        "ignore_index": IGNORED,
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "sample_weight": rng.random(n) if draw(st.booleans()) else None,
        "row_block": draw(st.one_of(st.none(), st.integers(1, 9))),
    }
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    embeddings = scale * rng.normal(size=(n, nesting.dim))
    return nesting, embeddings, rng.normal(size=(n_classes, nesting.dim)), rng.normal(size=n_classes), labels, options


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@settings(max_examples=40)
@given(problems())
def test_one_full_width_prefix_is_the_plain_loss(problem: tuple[Any, ...]) -> None:
    _, x, weight, bias, labels, options = problem
    n_classes = len(bias)
    smoothing, weights = options["label_smoothing"], options["sample_weight"]
    targets = (1 - smoothing) * np.eye(n_classes)[np.where(labels == IGNORED, 0, labels)] + smoothing / n_classes
    weights = (1.0 if weights is None else weights) * (labels != IGNORED)
    rows = -weights * (targets * log_softmax(x @ weight.T + bias)).sum(axis=1)
    plain = rows.sum() / weights.sum() if weights.sum() else 0.0
    nested = mrl_e_cross_entropy(x, weight, bias, labels, nesting=(x.shape[1],), **options)
    np.testing.assert_allclose(nested, plain, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(problems())
def test_heads_that_share_a_weight_are_one_tied_head(problem: tuple[Any, ...]) -> None:
    nesting, x, weight, bias, labels, options = problem
    heads = [(weight[:, :m], bias) for m in nesting]
    total, tied = mrl_e_cross_entropy_with_grad(x, weight, bias, labels, nesting=nesting, **options)
    total_of_heads, separate = mrl_cross_entropy_with_grad(x, heads, labels, nesting=nesting, **options)
    np.testing.assert_allclose(total_of_heads, total, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(separate.embeddings, tied.embeddings, rtol=1e-9, atol=1e-12)
    joined = sum(np.pad(d_weight, ((0, 0), (0, nesting.dim - d_weight.shape[1]))) for d_weight, _ in separate.heads)
    np.testing.assert_allclose(joined, tied.weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sum(d_bias for _, d_bias in separate.heads), tied.bias, rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(problems(), st.sampled_from(["mean", "sum", "none"]))
def test_the_fused_loss_is_the_loss_of_its_logits(problem: tuple[Any, ...], reduction: str) -> None:
    nesting, x, weight, bias, labels, options = problem
    options = {**options, "nesting": nesting, "reduction": reduction}
    logits = tuple(x[:, :m] @ weight[:, :m].T + bias for m in nesting)
    fused = mrl_e_cross_entropy(x, weight, bias, labels, **options)
    np.testing.assert_allclose(fused, mrl_logits_cross_entropy(logits, labels, **options), rtol=1e-10, atol=1e-12)


@settings(max_examples=40)
@given(problems())
def test_the_rows_of_none_sum_to_sum(problem: tuple[Any, ...]) -> None:
    nesting, *arrays, options = problem
    rows, parts = mrl_e_cross_entropy(*arrays, nesting=nesting, reduction="none", return_parts=True, **options)
    total, sums = mrl_e_cross_entropy(*arrays, nesting=nesting, reduction="sum", return_parts=True, **options)
    np.testing.assert_allclose(rows.sum(), total, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(parts.sum(axis=1), sums, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.dot(nesting.importance, parts), rows, rtol=1e-10, atol=1e-12)


# Bad input

F32 = np.float32
LAST_AXIS = r"the last axis of `embeddings` must be as wide as the nesting, 7, got shape \(6, {}\); "


def call(kind: str, **changes: Any) -> Any:
    """Call a loss of NumPy arrays with some arguments replaced, by name."""
    arrays = {"labels": LABELS, **changes}
    if kind == "logits":
        logits = arrays.pop("logits", [np.zeros((N_ROWS, N_CLASSES)) for _ in NESTING])
        return mrl_logits_cross_entropy(logits, arrays.pop("labels"), nesting=NESTING, **arrays)
    names = ("embeddings", "weight", "bias") if kind == "mrl-e" else ("embeddings", "heads")
    values = [arrays.pop(name, value) for name, value in zip(names, KINDS[kind].arrays(), strict=True)]
    return KINDS[kind].loss(tuple(values), arrays.pop("labels"), **arrays)


def heads_with(g: int, weight: Any = None, bias: Any = None) -> list[tuple[Any, Any]]:
    pairs = KINDS["mrl"].arrays()[1]
    pairs[g] = (pairs[g][0] if weight is None else weight, pairs[g][1] if bias is None else bias)
    return pairs


@pytest.mark.parametrize("kind", ["mrl", "mrl-e", "logits"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": LABELS[:5]}, ValueError, r"`labels` must have one class id per row, shape \(6,\), got \(5,\)"),
        ({"labels": LABELS[:, None]}, ValueError, r"`labels` must have one class id per row, .* got \(6, 1\)"),
        ({"labels": LABELS * 1.0}, TypeError, "`labels` must hold integer class ids, got dtype float64"),
        ({"labels": LABELS > 1}, TypeError, "`labels` must hold integer class ids, got dtype bool"),
        ({"labels": list(LABELS)}, TypeError, "`labels` must be an array .* got builtins.list"),
        ({"labels": LABELS + 1}, ValueError, r"`labels` must lie within \[0, 4\), got 2 outside it"),
        ({"labels": LABELS - 1}, ValueError, r"`labels` must lie within \[0, 4\), got 1 outside it"),
        (
            {"labels": SOME_IGNORED, "ignore_index": -8},
            ValueError,
            r"`labels` must lie within \[0, 4\), got 2 outside it, such as -7; .* ignore_index",
        ),
        ({"label_smoothing": -0.1}, ValueError, r"`label_smoothing` must be finite and in \[0, 1\], got -0.1"),
        ({"label_smoothing": 1.5}, ValueError, "`label_smoothing`"),
        ({"label_smoothing": np.nan}, ValueError, "`label_smoothing`"),
        ({"label_smoothing": "0.1"}, TypeError, "`label_smoothing` must be a number, got str"),
        ({"ignore_index": 1.0}, TypeError, "`ignore_index` must be an integer, got float"),
        ({"reduction": "max"}, ValueError, "`reduction` must be one of 'mean', 'sum', 'none', got 'max'"),
        ({"reduction": None}, ValueError, "`reduction` must be one of"),
        ({"row_block": 0}, ValueError, "`row_block` must be an integer >= 1, got 0"),
        ({"row_block": 2.0}, TypeError, "`row_block` must be an integer, got float"),
        ({"sample_weight": WEIGHTS[:5]}, ValueError, r"`sample_weight` must have shape .* = \(6,\), got \(5,\)"),
        ({"sample_weight": LABELS}, TypeError, "`sample_weight` must hold floating-point numbers, got dtype int64"),
        ({"sample_weight": list(WEIGHTS)}, TypeError, "`sample_weight` must be an array"),
    ],
)
def test_bad_labels_and_options_are_refused(
    kind: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        *((kind, {"embeddings": np.ones((6, 8))}, ValueError, LAST_AXIS.format(8)) for kind in ("mrl", "mrl-e")),
        *((kind, {"embeddings": np.ones((6, 3))}, ValueError, LAST_AXIS.format(3)) for kind in ("mrl", "mrl-e")),
        ("mrl", {"embeddings": np.ones(())}, ValueError, r"the last axis of `embeddings` .* got shape \(\)"),
        ("mrl", {"embeddings": np.ones((6, 7), int)}, TypeError, "`embeddings` must hold floating-point numbers"),
        ("mrl", {"embeddings": np.ones((6, 7)) + 1j}, TypeError, "`embeddings` must hold floating-point numbers"),
        ("mrl", {"embeddings": [[1.0] * 7] * 6}, TypeError, "`embeddings` must be an array"),
        ("mrl", {"heads": heads_with(0)[:2]}, ValueError, "`heads` must hold one entry per prefix .*, 3, got 2"),
        ("mrl", {"heads": np.ones((4, 7))}, TypeError, r"`heads` must be a sequence of \(weight, bias\) pairs"),
        ("mrl", {"heads": [w for w, _ in heads_with(0)]}, TypeError, r"`heads` must be a sequence of \(weight, bias\)"),
        (
            "mrl",
            {"heads": heads_with(1, weight=np.ones((4, 2)))},
            ValueError,
            r"`heads\[1\]\[0\]` must have shape \(n_classes, width of the prefix\) = \(4, 3\), got \(4, 2\)",
        ),
        ("mrl", {"heads": heads_with(2, weight=np.ones((5, 7)))}, ValueError, r"`heads\[2\]\[0\]` must .* = \(4, 7\)"),
        ("mrl", {"heads": heads_with(0, weight=np.ones(4))}, ValueError, r"`heads\[0\]\[0\]` must have shape"),
        ("mrl", {"heads": heads_with(0, weight=np.ones((0, 2)))}, ValueError, r"`heads\[0\]\[0\]` .* one class"),
        (
            "mrl",
            {"heads": heads_with(1, bias=np.ones(3))},
            ValueError,
            r"`heads\[1\]\[1\]` must .* = \(4,\), got \(3,\)",
        ),
        (
            "mrl",
            {"heads": heads_with(1, weight=np.ones((4, 3), F32))},
            TypeError,
            r"`embeddings` and `heads\[1\]\[0\]` must have one dtype, got float64 and float32",
        ),
        ("mrl", {"heads": heads_with(1, bias=np.ones(4, F32))}, TypeError, r"`embeddings` and `heads\[1\]\[1\]`"),
        ("mrl-e", {"weight": np.ones((4, 6))}, ValueError, r"`weight` must have shape .* = \(4, 7\), got \(4, 6\)"),
        ("mrl-e", {"weight": np.ones(7)}, ValueError, "`weight` must have shape"),
        ("mrl-e", {"bias": np.ones((4, 1))}, ValueError, r"`bias` must have shape .* = \(4,\), got \(4, 1\)"),
        ("mrl-e", {"bias": np.ones(4, F32)}, TypeError, "`embeddings` and `bias` must have one dtype"),
        ("mrl-e", {"embeddings": np.ones((6, 7), F32)}, TypeError, "`embeddings` and `weight` must have one dtype"),
        (
            "logits",
            {"logits": [np.zeros((6, 4))] * 2},
            ValueError,
            "`logits` must hold one entry per prefix .* 3, got 2",
        ),
        ("logits", {"logits": np.zeros((4, 6, 4))}, ValueError, "`logits` must hold one entry per .* 3, got 4"),
        (
            "logits",
            {"logits": [np.zeros((6, 4)), np.zeros((6, 5)), np.zeros((6, 4))]},
            ValueError,
            r"`logits\[1\]` must have shape that of `logits\[0\]` = \(6, 4\), got \(6, 5\)",
        ),
        ("logits", {"logits": [np.zeros((6, 4), d) for d in "dfd"]}, TypeError, r"`logits\[0\]` and `logits\[1\]`"),
        ("logits", {"logits": np.zeros((3, 6, 4), int)}, TypeError, "`logits` must hold floating-point numbers"),
        ("logits", {"logits": np.zeros((3, 6, 0))}, ValueError, "at least one class"),
    ],
)
def test_bad_arrays_are_refused(kind: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(kind, **changes)


@pytest.mark.parametrize("name", ["weight", "bias", "labels", "sample_weight"])
def test_arrays_of_two_libraries_or_devices_are_refused(name: str) -> None:
    strict = load("array_api_strict")
    embeddings, weight, bias = KINDS["mrl-e"].arrays()
    arrays = {
        "embeddings": embeddings,
        "weight": weight,
        "bias": bias,
        "labels": LABELS,
        "sample_weight": WEIGHTS,
    }
    elsewhere = strict.asarray(arrays[name], device=strict.Device("device1"))
    with pytest.raises(TypeError, match=rf"`embeddings` and `{name}` must come from one array library, got numpy"):
        call("mrl-e", **{**arrays, name: elsewhere})
    here = {key: strict.asarray(value, device=strict.Device("CPU_DEVICE")) for key, value in arrays.items()}
    with pytest.raises(ValueError, match=rf"`embeddings` and `{name}` must lie on one device, got .*CPU.* and .*1"):
        call("mrl-e", **{**here, name: elsewhere})


def test_the_error_names_the_head_of_another_library() -> None:
    strict = load("array_api_strict")
    with pytest.raises(TypeError, match=r"`embeddings` and `heads\[2\]\[0\]` must come from one array library"):
        call("mrl", heads=heads_with(2, weight=strict.ones((4, 7))))


@pytest.mark.parametrize("kind", ["mrl", "mrl-e"])
def test_gradients_of_none_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', got 'none'"):
        KINDS[kind].with_grad(KINDS[kind].arrays(), LABELS, reduction="none")


def test_labels_equal_to_ignore_index_are_allowed_out_of_range() -> None:
    assert np.isfinite(call("mrl", labels=SOME_IGNORED, ignore_index=IGNORED))
    assert np.isfinite(call("mrl", labels=LABELS, ignore_index=3))
