"""classify: stage by stage on embeddings, with the answers that the full probabilities would give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Library, load

from matryoshka import Cascade
from matryoshka.cascade import _classify

DIMS = (3, 7, 8, 20)
N_CLASSES = 11
LIBRARIES = [Library("numpy", "float64"), Library("numpy", "float32"), Library("torch", "float32", "cpu")]


@pytest.fixture(params=LIBRARIES, ids=lambda library: f"{library.name}-{library.dtype_name}")
def writable(request: pytest.FixtureRequest) -> Library:
    load(request.param.name)
    return request.param


def problem(rng: np.random.Generator, *, tied: bool, bias: bool) -> tuple[np.ndarray, list, np.ndarray]:
    """Embeddings (90, 20), heads, and the logits (4, 90, 11) of every prefix, formed apart from the library."""
    embeddings = rng.normal(size=(90, 20))
    widths = (20,) if tied else DIMS
    heads = [(rng.normal(size=(N_CLASSES, m)), rng.normal(size=N_CLASSES) if bias else None) for m in widths]
    logits = np.zeros((4, 90, N_CLASSES))
    for g, m in enumerate(DIMS):
        weight, b = heads[0 if tied else g]
        for label in range(N_CLASSES):
            logits[g, :, label] = sum(embeddings[:, j] * weight[label, j] for j in range(m))
            logits[g, :, label] += 0.0 if b is None else b[label]
    return embeddings, heads, logits


def on(library: Library, heads: list, *, tied: bool) -> Any:
    pairs = [(library.array(weight), None if bias is None else library.array(bias)) for weight, bias in heads]
    return pairs[0] if tied else pairs


def middle(rows: np.ndarray) -> float:
    """A threshold that lies clear of every confidence."""
    values = np.sort(rows)
    return float(values[len(values) // 2 - 1] + values[len(values) // 2]) / 2


@pytest.mark.parametrize("block_entries", [1, 150, 2**20])
@pytest.mark.parametrize("confidence", ["max_probability", "margin", "entropy"])
@pytest.mark.parametrize("tied", [False, True])
def test_answers_are_those_of_predict(
    writable: Library,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    block_entries: int,
    confidence: str,
    tied: bool,
) -> None:
    monkeypatch.setattr(_classify, "_BLOCK_ENTRIES", block_entries)
    monkeypatch.setattr(_classify, "_ROWS_PER_COLUMN", 1)
    for bias, temperatures in ((False, None), (True, (0.7, 2.0, 1.0, 1.0))):
        embeddings, heads, logits = problem(rng, tied=tied, bias=bias)
        scale = np.ones(4) if temperatures is None else np.array(temperatures)
        powers = np.exp(logits / scale[:, None, None])
        p = np.sort(powers / powers.sum(-1, keepdims=True), axis=-1)
        sure = {"max_probability": p[..., -1], "margin": p[..., -1] - p[..., -2]}.get(
            confidence, 1 + (p * np.log(p)).sum(-1) / math.log(N_CLASSES)
        )
        cascade = Cascade(DIMS, [middle(sure[g]) for g in range(3)], confidence=confidence, temperatures=temperatures)
        plain = np.exp(logits)
        expected = cascade.predict(plain / plain.sum(-1, keepdims=True))
        assert len(set(expected[1].tolist())) == 4
        given_as = writable.array(embeddings), on(writable, heads, tied=tied)
        for got, want in zip(cascade.classify(*given_as), expected, strict=True):
            writable.assert_close(got, want, atol=0)
        for got, want in zip(cascade.predict(writable.array(logits), from_logits=True), expected, strict=True):
            writable.assert_close(got, want, atol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_only_undecided_rows_meet_the_next_head(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    embeddings, heads, logits = problem(rng, tied=tied, bias=False)
    powers = np.exp(logits)
    sure = (powers / powers.sum(-1, keepdims=True)).max(-1)
    cascade = Cascade(DIMS, [middle(sure[g]) for g in range(3)])
    multiply_adds = 0
    add_product = _classify.add_product

    def counting(total: Any, left: np.ndarray, right: np.ndarray, **options: Any) -> np.ndarray:
        nonlocal multiply_adds
        multiply_adds += left.shape[0] * left.shape[1] * right.shape[1]
        return add_product(total, left, right, **options)

    monkeypatch.setattr(_classify, "add_product", counting)
    cascade.classify(embeddings, heads[0] if tied else heads)
    labels = np.zeros(len(embeddings), int)
    evaluation = cascade.evaluate(logits, labels, from_logits=True)
    expected = evaluation.tied_multiply_adds if tied else evaluation.separate_multiply_adds
    assert multiply_adds == pytest.approx(expected * len(embeddings))


def test_prefixes_at_which_no_row_can_exit_are_passed_over(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    add_product = _classify.add_product

    def recording(total: Any, left: np.ndarray, right: np.ndarray, **options: Any) -> np.ndarray:
        widths.append(left.shape[1])
        return add_product(total, left, right, **options)

    monkeypatch.setattr(_classify, "add_product", recording)
    for tied, expected in ((True, [7, 13]), (False, [7, 20])):
        embeddings, heads, logits = problem(rng, tied=tied, bias=True)
        cascade = Cascade(DIMS, (1.0, 0.7, 1.5))
        widths.clear()
        labels, exit_dims = cascade.classify(embeddings, heads[0] if tied else heads)
        assert widths == expected
        assert [part.tolist() for part in (labels, exit_dims)] == [
            part.tolist() for part in cascade.predict(logits, from_logits=True)
        ]


@pytest.mark.parametrize("tied", [False, True])
def test_extreme_cascades_and_batches(rng: np.random.Generator, tied: bool) -> None:
    embeddings, heads, logits = problem(rng, tied=tied, bias=True)
    given_as = heads[0] if tied else heads
    for threshold, stage in ((1.0, 3), (-1.0, 0)):
        labels, exit_dims = Cascade(DIMS, (threshold,) * 3).classify(embeddings, given_as)
        assert labels.tolist() == logits[stage].argmax(-1).tolist()
        assert set(exit_dims.tolist()) == {DIMS[stage]}
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    whole = cascade.classify(embeddings, given_as)
    one_by_one = [cascade.classify(embeddings[i : i + 1], given_as) for i in range(90)]
    for part in (0, 1):
        assert np.concatenate([single[part] for single in one_by_one]).tolist() == whole[part].tolist()
    labels, exit_dims = cascade.classify(embeddings[:0], given_as)
    assert labels.shape == exit_dims.shape == (0,)


def test_a_single_width_is_its_head(rng: np.random.Generator) -> None:
    embeddings, weight = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    for heads in ((weight, None), [(weight, None)], [[weight, None]]):
        labels, exit_dims = Cascade((4,), ()).classify(embeddings, heads)  # type: ignore[arg-type]
        assert labels.tolist() == (embeddings @ weight.T).argmax(-1).tolist()
        assert exit_dims.tolist() == [4] * 5


def test_inputs_stay_as_they_are_and_nothing_is_recorded(rng: np.random.Generator) -> None:
    torch = load("torch")
    embeddings, heads, _ = problem(rng, tied=True, bias=True)
    x, weight, bias = (torch.tensor(a, requires_grad=True) for a in (embeddings, *heads[0]))
    saved: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        Cascade(DIMS, (0.5, 0.6, 0.7)).classify(x, (weight, bias))
    assert saved == []
    for tensor, array in ((x, embeddings), (weight, heads[0][0]), (bias, heads[0][1])):
        np.testing.assert_array_equal(tensor.detach().numpy(), array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs(rng: np.random.Generator, dtype: str) -> None:
    torch = load("torch")
    embeddings, heads, logits = problem(rng, tied=True, bias=True)
    half = [torch.tensor(a).to(getattr(torch, dtype)) for a in (embeddings, *heads[0])]
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    labels, exit_dims = cascade.classify(half[0], (half[1], half[2]))
    expected = cascade.predict(logits, from_logits=True)
    assert np.mean(labels.numpy() == expected[0]) > 0.95
    assert np.mean(exit_dims.numpy() == expected[1]) > 0.9


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_rows_that_are_not_finite_are_counted_and_named(
    rng: np.random.Generator, tied: bool, value: float, library: str
) -> None:
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    embeddings[[4, 7], 0] = value
    arguments: Any = (embeddings, heads[0] if tied else heads)
    if library == "torch":
        torch = load("torch")
        pairs = [tuple(map(torch.tensor, head)) for head in heads]
        arguments = (torch.tensor(embeddings), pairs[0] if tied else pairs)
    for thresholds in ((-1.0,) * 3, (0.5,) * 3, (1.0,) * 3):
        with pytest.raises(ValueError, match=r"`embeddings` must have finite logits.* 2 of \d+ rows \(first: 4, 7\)"):
            Cascade(DIMS, thresholds).classify(*arguments)


def test_columns_behind_the_exit_are_not_read(rng: np.random.Generator) -> None:
    embeddings, heads, _ = problem(rng, tied=True, bias=True)
    expected = Cascade(DIMS, (-1.0,) * 3).classify(embeddings, heads[0])
    embeddings[4, DIMS[0]] = math.nan
    for found, wanted in zip(Cascade(DIMS, (-1.0,) * 3).classify(embeddings, heads[0]), expected, strict=True):
        assert found.tolist() == wanted.tolist()


def test_wrong_heads_are_refused(rng: np.random.Generator) -> None:
    embeddings, heads, _ = problem(rng, tied=False, bias=True)
    _, (tied,), _ = problem(rng, tied=True, bias=True)
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    jnp = load("jax.numpy")
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: cascade.classify(embeddings, heads[:3]), ValueError, "`heads` must hold one entry per prefix"),
        (
            lambda: cascade.classify(embeddings, heads[::-1]),
            ValueError,
            r"`heads\[0\]\[0\]` must have shape .*\(11, 3\)",
        ),
        (lambda: cascade.classify(embeddings, 3), TypeError, r"`heads` must be a sequence of \(weight, bias\) pairs"),
        (lambda: cascade.classify(embeddings, tied[0]), TypeError, "`heads` must be a sequence of"),
        (lambda: cascade.classify(embeddings, (tied[0][:, :8], None)), ValueError, r"`heads\[0\]` must have shape"),
        (lambda: cascade.classify(embeddings, (tied[0], tied[1][:3])), ValueError, r"`heads\[1\]` must have shape"),
        (lambda: cascade.classify(embeddings, (tied[0][:0], None)), ValueError, r"`heads\[0\]` must have at least one"),
        (
            lambda: cascade.classify(embeddings[:, :8], tied),
            ValueError,
            "the last axis of `embeddings` must be as wide",
        ),
        (lambda: cascade.classify(embeddings[0], tied), ValueError, r"`embeddings` must have shape \(rows, dim\)"),
        (lambda: cascade.classify(embeddings.astype("f4"), tied), TypeError, "must have one dtype"),
        (lambda: cascade.classify(embeddings.tolist(), tied), TypeError, "`embeddings` must be an array"),
        (
            lambda: cascade.classify(jnp.asarray(embeddings), tuple(map(jnp.asarray, tied))),
            TypeError,
            "`embeddings` must be a NumPy or PyTorch array here",
        ),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message):
            call()
