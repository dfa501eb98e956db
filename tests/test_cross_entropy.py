"""MRL and MRL-E cross-entropy: axes, degenerate batches, properties and errors, beyond what holds for every loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest
from cases import (
    CLASSIFIED,
    IGNORED,
    KINDS,
    LABELS,
    N_CLASSES,
    N_ROWS,
    NESTING,
    SHARES,
    SOME_IGNORED,
    WEIGHTS,
    call,
    expected_gradients,
    leaves,
    put,
)
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import (
    Nesting,
    mrl_cross_entropy_with_grad,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
    mrl_logits_cross_entropy,
)
from matryoshka._hooks import loop

WITH_BIAS = pytest.mark.parametrize("kind", ["mrl", "mrl-e"])
ALL_OPTIONS = dict(CLASSIFIED["all-options"])


@WITH_BIAS
@pytest.mark.parametrize("axes", [(2, 3), (3, 1, 2)], ids=str)
def test_leading_axes_are_rows(library: Library, kind: str, axes: tuple[int, ...]) -> None:
    embeddings, *head = KINDS[kind].arrays()
    arrays = put(library, (embeddings.reshape(*axes, 7), *head))
    in_axes = {name: ALL_OPTIONS[name].reshape(axes) for name in ("labels", "sample_weight")}
    options = {**ALL_OPTIONS, **put(library, in_axes)}
    for reduction in ("mean", "none"):
        expected, expected_parts = KINDS[kind].oracle((embeddings, *head), reduction=reduction, **ALL_OPTIONS)
        total, parts = KINDS[kind].loss(arrays, return_parts=True, reduction=reduction, **options)
        library.assert_close(total, expected.reshape(axes if reduction == "none" else ()))
        library.assert_close(parts, expected_parts.reshape(3, *(axes if reduction == "none" else ())))
    slope, *_ = expected_gradients(kind, "all-options")
    _, gradients = KINDS[kind].with_grad(arrays, **options)
    library.assert_close(gradients.embeddings, slope.reshape(*axes, 7), rtol=max(library.rtol, 1e-9))


def test_leading_axes_of_logits_are_rows() -> None:
    logits = np.random.default_rng(13).normal(size=(3, 2, 3, N_CLASSES))
    flat = mrl_logits_cross_entropy(logits.reshape(3, 6, N_CLASSES), LABELS, nesting=NESTING, reduction="none")
    cubed = mrl_logits_cross_entropy(logits, LABELS.reshape(2, 3), nesting=NESTING, reduction="none")
    np.testing.assert_array_equal(cubed, flat.reshape(2, 3))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("mrl")])
def test_a_single_embedding_is_one_row(kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    expected = KINDS[kind].loss((embeddings[:1], *head), labels=LABELS[:1], reduction="sum")
    for reduction in ("mean", "sum", "none"):
        total = KINDS[kind].loss((embeddings[0], *head), labels=LABELS[0:1].reshape(()), reduction=reduction)
        assert np.shape(total) == ()
        np.testing.assert_allclose(total, expected, rtol=1e-14)
    _, gradients = KINDS[kind].with_grad((embeddings[0], *head), labels=LABELS[0:1].reshape(()))
    assert gradients.embeddings.shape == (7,)


@given(st.integers(0, 3000), st.integers(0, 2**21), st.none() | st.integers(1, 700))
def test_blocks_are_as_large_as_their_memory_allows(n: int, row_bytes: int, row_block: int | None) -> None:
    """16 to 512 rows of together 128 MiB, or as many as asked for; in as few blocks as that takes, of equal sizes."""
    largest = row_block
    if row_block is None and row_bytes:
        largest = next(rows for rows in range(512, 15, -1) if rows * row_bytes <= 128 * 2**20 or rows == 16)
    assert loop.largest_block(row_bytes, row_block) == largest
    size = loop.block_size(n, row_bytes, row_block)
    n_blocks = math.ceil(n / (largest or max(n, 1)))
    assert size == (math.ceil(n / n_blocks) if n else 1)


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
    labels = library.array(np.full(n, IGNORED if why == "ignored" else 1))
    options: dict[str, Any] = {"labels": labels, "ignore_index": IGNORED}
    if why == "weight-0":
        options["sample_weight"] = library.array(np.zeros(n))
    arrays = put(library, (embeddings[:n], *head))
    for reduction in ("mean", "sum"):
        (total, parts), gradients = KINDS[kind].with_grad(arrays, return_parts=True, reduction=reduction, **options)
        library.assert_close(total, np.array(0.0), atol=0)
        library.assert_close(parts, np.zeros(3), atol=0)
        for gradient, array in zip(leaves(gradients), leaves((embeddings[:n], *head)), strict=True):
            library.assert_close(gradient, np.zeros_like(array), atol=0)
    rows, parts = KINDS[kind].loss(arrays, return_parts=True, reduction="none", **options)
    library.assert_close(rows, np.zeros(n), atol=0)
    library.assert_close(parts, np.zeros((3, n)), atol=0)


@WITH_BIAS
def test_no_rows_need_no_ignore_index(library: Library, kind: str) -> None:
    _, *head = KINDS[kind].arrays()
    arrays = put(library, (np.zeros((2, 0, 7)), *head))
    total, gradients = KINDS[kind].with_grad(arrays, labels=library.array(np.zeros((2, 0), dtype=np.int64)))
    library.assert_close(total, np.array(0.0), atol=0)
    library.assert_close(gradients.embeddings, np.zeros((2, 0, 7)))


@WITH_BIAS
def test_one_row(eager_library: Library, kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    arrays = embeddings[2:3], *head
    total = KINDS[kind].loss(put(eager_library, arrays), labels=eager_library.array(LABELS[2:3]))
    eager_library.assert_close(total, KINDS[kind].oracle(arrays, labels=LABELS[2:3])[0])


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
    rows = KINDS[kind].loss(put(library, arrays), labels=library.array(np.full(N_ROWS, 2)), reduction="none")
    library.assert_close(rows, np.full(N_ROWS, KINDS[kind].oracle((embeddings[:1], *head), labels=[2])[0]))


@WITH_BIAS
def test_huge_logits_stay_finite(library: Library, kind: str) -> None:
    embeddings, *head = KINDS[kind].arrays()
    arrays = 1e4 * embeddings, *head  # logits of ±1e4 and more
    options = CLASSIFIED["smoothed"]
    total, gradients = KINDS[kind].with_grad(put(library, arrays), **put(library, options))
    library.assert_close(total, KINDS[kind].oracle(arrays, **options)[0])
    assert all(np.isfinite(library.to_numpy(gradient)).all() for gradient in leaves(gradients))


def test_half_precision_sums_and_counts_in_float32() -> None:
    """4099 rows of log(2) each: float16 has neither the sum nor the count."""
    n = 4099
    arrays = np.ones((n, 7), dtype=np.float16), np.zeros((2, 7), dtype=np.float16), None
    labels, options = np.zeros(n, dtype=np.int64), {"nesting": NESTING, "ignore_index": IGNORED}
    for reduction, count in (("sum", n), ("mean", 1)):
        total = mrl_e_cross_entropy(*arrays, labels, reduction=reduction, **options)
        np.testing.assert_allclose(total, 2.5 * count * np.log(2), rtol=1e-5)


# Properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Nesting, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """A nesting, embeddings, tied weight and bias, labels (some ignored), options."""
    nesting = draw(cases.nestings())
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


@pytest.mark.parametrize("row_block", [None, 2])
def test_many_classes_give_the_same_gradients_in_fewer_arrays(eager_library: Library, row_block: int | None) -> None:
    """From 4,096 classes on, narrow prefixes of a tied head go backward before the wide ones go forward."""
    rng, nesting, n_classes = np.random.default_rng(3), Nesting.halving(128, smallest=1), 4100
    x, weight, bias = (rng.normal(size=shape) for shape in ((5, 128), (n_classes, 128), n_classes))
    weight, labels = weight / 10, rng.integers(0, n_classes, 5)
    heads = [(weight[:, :m], bias) for m in nesting]
    total, separate = mrl_cross_entropy_with_grad(x, heads, labels, nesting=nesting, label_smoothing=0.1)
    joined = sum(np.pad(d_weight, ((0, 0), (0, 128 - d_weight.shape[1]))) for d_weight, _ in separate.heads)
    expected = [total, separate.embeddings, joined, sum(d_bias for _, d_bias in separate.heads)]

    options = {"nesting": nesting, "label_smoothing": 0.1, "row_block": row_block}
    arrays = put(eager_library, (x, weight, bias, labels))
    for actual, array in zip(leaves(mrl_e_cross_entropy_with_grad(*arrays, **options)), expected, strict=True):
        eager_library.assert_close(actual, array)


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


def test_the_error_names_the_head_of_another_library() -> None:
    strict = load("array_api_strict")
    with pytest.raises(TypeError, match=r"`embeddings` and `heads\[2\]\[0\]` must come from one array library"):
        call("mrl", heads=heads_with(2, weight=strict.ones((4, 7))))


def test_labels_equal_to_ignore_index_are_allowed_out_of_range() -> None:
    assert np.isfinite(call("mrl", labels=SOME_IGNORED, ignore_index=IGNORED))
    assert np.isfinite(call("mrl", labels=LABELS, ignore_index=3))


def mean_and_rows(library: Library, labels: np.ndarray, **options: Any) -> Iterator[tuple[str, np.ndarray, float]]:
    """Give for each kind of head the loss of every row, and the mean."""
    for kind in ("mrl", "mrl-no-bias", "mrl-e", "mrl-e-no-bias"):
        arrays, options["labels"] = put(library, KINDS[kind].arrays()), library.array(labels)
        rows = KINDS[kind].loss(arrays, reduction="none", **options)
        yield kind, library.to_numpy(rows), float(library.to_numpy(KINDS[kind].loss(arrays, **options)))


@pytest.mark.parametrize("options", [{}, {"ignore_index": 1}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("label", [-1, -(2**31), N_CLASSES, N_CLASSES + 1, 2**31 - 1])
def test_a_label_out_of_range_is_no_plausible_number(eager_library: Library, label: int, options: Any) -> None:
    labels = LABELS.copy()
    good = list(mean_and_rows(eager_library, labels, **options))
    labels[3 if "ignore_index" not in options else 4] = label
    if eager_library.name == "numpy" or eager_library.device == "cpu":  # where it can be read
        with pytest.raises(ValueError, match=rf"`labels` must lie within \[0, 4\), got 1 outside it, such as {label};"):
            list(mean_and_rows(eager_library, labels, **options))
        return
    for (kind, rows, mean), (_, expected, _) in zip(mean_and_rows(eager_library, labels, **options), good, strict=True):
        bad = labels == label
        assert np.isnan(rows[bad]).all(), kind
        np.testing.assert_allclose(rows[~bad], expected[~bad])
        assert math.isnan(mean), kind


@pytest.mark.parametrize("kind", ["mrl", "mrl-e", "stacked-logits"])
def test_shares_of_a_row_that_counts_nothing_may_be_nan(library: Library, kind: str) -> None:
    shares, case = SHARES.copy(), KINDS[kind]
    method = "with_grad" if hasattr(case, "with_grad") else "loss"
    found = []
    for _ in range(2):
        options = put(library, {"labels": shares, "sample_weight": WEIGHTS})
        found.append(list(leaves(getattr(case, method)(put(library, case.arrays()), **options))))
        shares[WEIGHTS == 0] = np.nan
    for clean, other in zip(*found, strict=True):
        np.testing.assert_array_equal(library.to_numpy(other), library.to_numpy(clean))


def test_a_label_out_of_range_is_passed_over_where_its_row_counts_nothing(eager_library: Library) -> None:
    labels, weights = LABELS.copy(), np.where(np.arange(N_ROWS) == 3, 0.0, 1.0)
    options = {"sample_weight": eager_library.array(weights)}
    good = list(mean_and_rows(eager_library, labels, **options))
    labels[3] = N_CLASSES + 5
    for (kind, rows, mean), (_, expected, expected_mean) in zip(
        mean_and_rows(eager_library, labels, **options), good, strict=True
    ):
        np.testing.assert_array_equal(rows, expected, err_msg=kind)
        assert mean == expected_mean


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, -math.inf])
def test_a_weight_that_is_none_is_no_plausible_number(eager_library: Library, weight: float) -> None:
    weights = np.array([1.0, 0.0, 2.0, weight, 1.0, 0.5])
    if eager_library.name == "numpy":
        with pytest.raises(ValueError, match="`sample_weight` must be finite and not negative, got 1 of 6"):
            list(mean_and_rows(eager_library, LABELS, sample_weight=eager_library.array(weights)))
        return
    for kind, rows, mean in mean_and_rows(eager_library, LABELS, sample_weight=eager_library.array(weights)):
        assert np.isnan(rows).tolist() == [False, False, False, not math.isfinite(weight), False, False], kind
        assert math.isnan(mean) != math.isfinite(weight), kind


def test_jax_knows_labels_and_weights_out_of_range_under_jit() -> None:
    jax = load("jax")
    embeddings, *head = [jax.numpy.asarray(array, jax.numpy.float32) for array in KINDS["mrl-e"].arrays()]

    def value(x: Any, labels: Any, weights: Any) -> Any:
        return KINDS["mrl-e"].loss((x, *head), labels=labels, sample_weight=weights)

    with pytest.raises(ValueError, match="`labels` must lie within"):
        value(embeddings, jax.numpy.asarray(LABELS + 1), None)
    infinite = np.full(N_ROWS, np.inf, np.float32)
    for labels, weights in ((LABELS - 1, None), (LABELS + 1, None), (LABELS, infinite)):
        total, gradient = jax.jit(jax.value_and_grad(value))(embeddings, jax.numpy.asarray(labels), weights)
        assert math.isnan(total)
        assert np.isnan(gradient).any()


@pytest.mark.parametrize(("row", "share"), [(0, 0.6), (1, np.nan), (2, -0.4), (4, 0.0)])
def test_shares_that_do_not_sum_to_one_are_no_plausible_number(eager_library: Library, row: int, share: float) -> None:
    """A share may be negative while all sum to one; a row of weight 0 may hold anything."""
    bad = SHARES.copy()
    bad[row] = [share, 1 - share if share < 0 else share, 0, 0]
    good = list(mean_and_rows(eager_library, SHARES))
    for weights in (None, np.where(np.arange(N_ROWS) == row, 0.0, 1.0)):
        options = {} if weights is None else {"sample_weight": eager_library.array(weights)}
        readable = eager_library.name == "numpy" or eager_library.device == "cpu"
        if readable and weights is None:
            with pytest.raises(
                ValueError,
                match="every row of `labels` must be shares >= 0 that sum to one over the classes, got 1 of 6",
            ):
                list(mean_and_rows(eager_library, bad))
            continue
        for (kind, rows, mean), (_, expected, _) in zip(
            mean_and_rows(eager_library, bad, **options), good, strict=True
        ):
            others = np.arange(N_ROWS) != row
            np.testing.assert_allclose(rows[others], expected[others], err_msg=kind)
            assert math.isnan(mean) == math.isnan(rows[row]) == (weights is None), kind
            assert weights is None or rows[row] == 0.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"labels": SHARES[:, :3]},
            ValueError,
            r"`labels` must have shape \(..., n_classes\) = \(6, 4\), got \(6, 3\)",
        ),
        ({"labels": SHARES[:5]}, ValueError, r"`labels` must have shape \(..., n_classes\) = \(6, 4\), got \(5, 4\)"),
        ({"labels": SHARES, "ignore_index": 2}, ValueError, "`ignore_index` must be None or negative"),
        ({"labels": SHARES > 0}, TypeError, "`labels` must hold integer class ids, got dtype bool"),
    ],
)
def test_bad_shares_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    for kind in ("mrl", "mrl-e", "stacked-logits"):
        with pytest.raises(error, match=message):
            call(kind, **changes)


@pytest.mark.parametrize("kind", ["mrl", "mrl-e", "logits"])
@pytest.mark.parametrize(
    "options", [{"labels": SOME_IGNORED, "ignore_index": IGNORED}, {"sample_weight": WEIGHTS}], ids=str
)
def test_what_an_ignored_row_holds_reaches_no_gradient(library: Library, kind: str, options: dict[str, Any]) -> None:
    """Not even NaN: it enters neither the gradients of the heads nor those of other rows, nor its own."""
    case, options = KINDS[kind], {"labels": LABELS, **options}
    out = (options["labels"] == IGNORED) | (options.get("sample_weight", np.ones(N_ROWS)) == 0)
    arrays = case.arrays()
    rows = arrays[0] if isinstance(arrays[0], list) else [arrays[0]]
    given = put(library, options)
    method = "with_grad" if hasattr(case, "with_grad") else "loss"
    expected = list(leaves(getattr(case, method)(put(library, arrays), **given)))
    for array in rows:
        array[out] = np.nan
    for found, clean in zip(leaves(getattr(case, method)(put(library, arrays), **given)), expected, strict=True):
        np.testing.assert_array_equal(library.to_numpy(found), library.to_numpy(clean))


def test_a_numpy_integer_is_a_row_block() -> None:
    assert float(call("mrl-e", row_block=np.uint8(3))) == float(call("mrl-e", row_block=3))
