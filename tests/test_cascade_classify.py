"""classify: stage by stage on embeddings, with the answers that the full probabilities would give."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import HALVES, Library, load

from matryoshka import Cascade
from matryoshka._array import namespace, to_numpy
from matryoshka.cascade import CascadeClassifier, _classify, _stages
from matryoshka.cascade._confidence import MEASURES, mass_of_logits

DIMS = (3, 7, 8, 20)
N_CLASSES = 11
LIBRARIES = [Library("numpy", "float64"), Library("numpy", "float32"), Library("torch", "float32", "cpu")]


Answer = Callable[[Any], tuple[Any, Any]]
FORMS: dict[str, Callable[[Cascade, Any], Answer]] = {
    "classify": lambda cascade, heads: lambda embeddings: cascade.classify(embeddings, heads),
    "classifier": lambda cascade, heads: cascade.classifier(heads),
    "rows": lambda cascade, heads: lambda embeddings: one_by_one(cascade.classifier(heads), embeddings),
}
both_forms = pytest.mark.parametrize("form", ["classify", "classifier"])
all_forms = pytest.mark.parametrize("form", FORMS)
both_heads = pytest.mark.parametrize("tied", [False, True], ids=["separate", "tied"])


def one_by_one(answer: Answer, embeddings: Any) -> tuple[Any, Any]:
    """Answer rows singly, as (dim,) and as (1, dim) in turn, and join what is found."""
    found = [answer(row if i % 2 else row[None, :]) for i, row in enumerate(embeddings)]
    assert [tuple(part.shape) for pair in found[:2] for part in pair] == [(1,), (1,), (), ()][: 2 * len(found)]
    xp = load(type(embeddings).__module__.partition(".")[0])
    return tuple(xp.concatenate([pair[part].reshape(1) for pair in found]) for part in (0, 1))  # type: ignore[return-value]


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
@both_heads
@all_forms
def test_answers_are_those_of_predict(
    writable: Library,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    block_entries: int,
    confidence: str,
    tied: bool,
    form: str,
) -> None:
    if form == "rows" and block_entries > 1:
        return  # one row is one block
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
        answer = FORMS[form](cascade, on(writable, heads, tied=tied))
        for got, want in zip(answer(writable.array(embeddings)), expected, strict=True):
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
    write_product = _classify.write_product

    def counting(target: np.ndarray, left: np.ndarray, right: np.ndarray, **options: Any) -> None:
        nonlocal multiply_adds
        multiply_adds += left.shape[0] * left.shape[1] * right.shape[1]
        write_product(target, left, right, **options)

    monkeypatch.setattr(_classify, "write_product", counting)
    cascade.classify(embeddings, heads[0] if tied else heads)
    labels = np.zeros(len(embeddings), int)
    evaluation = cascade.evaluate(logits, labels, from_logits=True)
    expected = evaluation.tied_multiply_adds if tied else evaluation.separate_multiply_adds
    assert multiply_adds == pytest.approx(expected * len(embeddings))


def test_prefixes_at_which_no_row_can_exit_are_passed_over(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    write_product = _classify.write_product

    def recording(target: np.ndarray, left: np.ndarray, right: np.ndarray, **options: Any) -> None:
        widths.append(left.shape[1])
        write_product(target, left, right, **options)

    monkeypatch.setattr(_classify, "write_product", recording)
    for tied, expected in ((True, [7, 13]), (False, [7, 20])):
        embeddings, heads, logits = problem(rng, tied=tied, bias=True)
        cascade = Cascade(DIMS, (1.0, 0.7, 1.5))
        widths.clear()
        labels, exit_dims = cascade.classify(embeddings, heads[0] if tied else heads)
        assert widths == expected
        assert cascade.classifier(heads[0] if tied else heads).exit_dims == (7, 20)
        assert [part.tolist() for part in (labels, exit_dims)] == [
            part.tolist() for part in cascade.predict(logits, from_logits=True)
        ]


@both_heads
@all_forms
def test_extreme_cascades_and_batches(rng: np.random.Generator, tied: bool, form: str) -> None:
    embeddings, heads, logits = problem(rng, tied=tied, bias=True)
    given_as = heads[0] if tied else heads
    for threshold, stage in ((1.0, 3), (-1.0, 0)):
        labels, exit_dims = FORMS[form](Cascade(DIMS, (threshold,) * 3), given_as)(embeddings)
        assert labels.tolist() == logits[stage].argmax(-1).tolist()
        assert set(exit_dims.tolist()) == {DIMS[stage]}
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    whole = cascade.classify(embeddings, given_as)
    for found, wanted in zip(FORMS[form](cascade, given_as)(embeddings), whole, strict=True):
        assert found.tolist() == wanted.tolist()
    if form != "rows":
        labels, exit_dims = FORMS[form](cascade, given_as)(embeddings[:0])
        assert labels.shape == exit_dims.shape == (0,)
        assert labels.dtype == exit_dims.dtype == np.int64


def test_a_single_width_is_its_head(rng: np.random.Generator) -> None:
    embeddings, weight = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    for heads in ((weight, None), [(weight, None)], [[weight, None]]):
        for form in FORMS.values():
            labels, exit_dims = form(Cascade((4,), ()), heads)(embeddings)
            assert labels.tolist() == (embeddings @ weight.T).argmax(-1).tolist()
            assert exit_dims.tolist() == [4] * 5


@all_forms
def test_inputs_stay_as_they_are_and_nothing_is_recorded(rng: np.random.Generator, form: str) -> None:
    torch = load("torch")
    embeddings, heads, _ = problem(rng, tied=True, bias=True)
    x, weight, bias = (torch.tensor(a, requires_grad=True) for a in (embeddings, *heads[0]))
    saved: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        FORMS[form](Cascade(DIMS, (0.5, 0.6, 0.7)), (weight, bias))(x)
    assert saved == []
    for tensor, array in ((x, embeddings), (weight, heads[0][0]), (bias, heads[0][1])):
        np.testing.assert_array_equal(tensor.detach().numpy(), array)


@both_heads
@all_forms
@pytest.mark.parametrize("half", [library for library in HALVES if library.name != "jax"], ids=str)
def test_half_precision_runs(rng: np.random.Generator, half: Library, tied: bool, form: str) -> None:
    load(half.name)
    embeddings, heads, logits = problem(rng, tied=tied, bias=True)
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    labels, exit_dims = FORMS[form](cascade, on(half, heads, tied=tied))(half.array(embeddings))
    expected = cascade.predict(logits, from_logits=True)
    assert np.mean(half.to_numpy(labels) == expected[0]) > 0.95
    assert np.mean(half.to_numpy(exit_dims) == expected[1]) > 0.9


@both_heads
@both_forms
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_rows_that_are_not_finite_are_counted_and_named(
    rng: np.random.Generator, tied: bool, form: str, value: float, library: str
) -> None:
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    embeddings[[4, 7], 0] = value
    kind = Library(library, "float64")
    load(library)
    rows, pairs = kind.array(embeddings), on(kind, heads, tied=tied)
    for thresholds in ((-1.0,) * 3, (0.5,) * 3, (1.0,) * 3):
        answer = FORMS[form](Cascade(DIMS, thresholds), pairs)
        with pytest.raises(ValueError, match=r"`embeddings` must have finite logits.* 2 of 90 rows \(first: 4, 7\)"):
            answer(rows)
        for row in (rows[4], rows[7:8]):
            with pytest.raises(ValueError, match=r"`embeddings` must have finite logits.* 1 of 1 rows \(first: 0\)"):
                answer(row)


@both_heads
@pytest.mark.parametrize("n_rows", [2, 8, 9])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_few_rows_that_are_not_finite_are_counted_too(
    rng: np.random.Generator, tied: bool, n_rows: int, library: str
) -> None:
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    embeddings[1, 0] = math.nan
    kind = Library(library, "float64")
    load(library)
    answer = Cascade(DIMS, (0.5,) * 3, confidence="margin").classifier(on(kind, heads, tied=tied))
    with pytest.raises(ValueError, match=rf"got NaN or infinity in 1 of {n_rows} rows \(first: 1\)"):
        answer(kind.array(embeddings[:n_rows]))


@pytest.mark.parametrize("confidence", ["max_probability", "margin", "entropy"])
@all_forms
def test_a_single_class_is_sure(writable: Library, rng: np.random.Generator, confidence: str, form: str) -> None:
    cascade = Cascade((2, 4), (0.999,), confidence=confidence)
    heads = writable.array(rng.normal(size=(1, 4))), writable.array(np.array([0.3]))
    labels, exit_dims = FORMS[form](cascade, heads)(writable.array(rng.normal(size=(20, 4))))
    assert (labels.tolist(), exit_dims.tolist()) == ([0] * 20, [2] * 20)


@pytest.mark.parametrize("confidence", ["max_probability", "margin"])
@all_forms
def test_the_two_best_classes_may_be_equal(writable: Library, confidence: str, form: str) -> None:
    weight = np.array([[1.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 2.0]])
    cascade = Cascade((2, 4), (0.01 if confidence == "margin" else 0.51,), confidence=confidence)
    rows = np.tile([1.0, 0.0, 0.0, 1.0], (20, 1))
    rows[1::2, 0] = -1.0  # the first class leads
    labels, exit_dims = FORMS[form](cascade, (writable.array(weight), None))(writable.array(rows))
    assert (labels.tolist(), exit_dims.tolist()) == ([2, 0] * 10, [4, 2] * 10)


@both_heads
def test_few_rows_are_classified_without_a_copy_of_the_head(rng: np.random.Generator, tied: bool) -> None:
    embeddings, weight = rng.normal(size=(8, 2048)), rng.normal(size=(400, 2048))
    heads = (weight, None) if tied else [(weight[:, :m], None) for m in (16, 1024, 2048)]
    cascade = Cascade((16, 1024, 2048), (0.9999, 0.9999), confidence="margin")
    cascade.classify(embeddings[0], heads)
    for rows in (embeddings[0], embeddings):
        tracemalloc.start()
        cascade.classify(rows, heads)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < weight.nbytes / 20


@both_heads
@pytest.mark.parametrize("measure", ["max_probability", "margin"])
def test_a_device_gets_the_label_minus_one_instead(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tied: bool, measure: str
) -> None:
    load("torch")
    monkeypatch.setattr(_stages, "is_remote", lambda array: True)
    library = Library("torch", "float64")
    embeddings, heads, logits = problem(rng, tied=tied, bias=True)
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7), confidence=measure)
    labels, exit_dims = cascade.predict(logits, from_logits=True)
    embeddings[[4, 7], 0] = math.nan
    labels[[4, 7]], exit_dims[[4, 7]] = -1, 20
    for form in FORMS.values():
        found = form(cascade, on(library, heads, tied=tied))(library.array(embeddings))
        assert [part.tolist() for part in found] == [labels.tolist(), exit_dims.tolist()]


@all_forms
def test_columns_behind_the_exit_are_not_read(rng: np.random.Generator, form: str) -> None:
    embeddings, heads, _ = problem(rng, tied=True, bias=True)
    answer = FORMS[form](Cascade(DIMS, (-1.0,) * 3), heads[0])
    expected = answer(embeddings)
    embeddings[4, DIMS[0]] = math.nan
    for found, wanted in zip(answer(embeddings), expected, strict=True):
        assert found.tolist() == wanted.tolist()


def whole_numbers(rng: np.random.Generator, scale: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (24, 20), a weight (300, 20) and logits (4, 24, 300), exact in any order of summation."""
    embeddings = rng.integers(-2, 3, size=(24, 20)).astype(float)
    weight = scale * rng.integers(-3, 4, size=(300, 20)) / 4.0
    embeddings[::2] = 2 * np.sign(weight[:12])  # such rows are surer
    return embeddings, weight, np.stack([embeddings[:, :m] @ weight[:, :m].T for m in DIMS])


def close_calls(logits: Any, measure: str, temperature: float) -> list[float]:
    """Confidences of some rows (n, c), as Python floats, and floats just beside them."""
    xp = namespace(("logits", logits))
    confidences = np.unique(to_numpy(MEASURES[measure](mass_of_logits(logits, temperature, xp), xp)))
    confidences = confidences[(confidences > 0) & (confidences < 1)]
    picked = confidences[np.linspace(0, len(confidences) - 1, 3).astype(int)]
    below = np.nextafter(picked, np.zeros(3, picked.dtype))
    wide = picked.astype(float)
    return [float(value) for value in np.concatenate([wide, below.astype(float), wide * (1 - 1e-8), wide * (1 + 1e-8)])]


@pytest.mark.parametrize(("scale", "shift"), [(1, 0.0), (12, 0.0), (1, -100.0)], ids=["small", "large", "low"])
@pytest.mark.parametrize("temperatures", [None, (0.7, 3.0, 1.0, 1.0)], ids=["plain", "scaled"])
@pytest.mark.parametrize("confidence", ["max_probability", "margin", "entropy"])
@both_heads
def test_close_calls_fall_as_in_predict(
    writable: Library,
    rng: np.random.Generator,
    scale: int,
    shift: float,
    temperatures: Any,
    confidence: str,
    tied: bool,
) -> None:
    embeddings, weight, logits = whole_numbers(rng, scale)
    rows, given = writable.array(embeddings), writable.array(logits + shift)
    bias = np.full(300, shift) if shift else None
    heads = [(weight, bias)] if tied else [(weight[:, :m], bias) for m in DIMS]
    exits = set()
    for threshold in close_calls(given[1], confidence, 1.0 if temperatures is None else temperatures[1]):
        cascade = Cascade(DIMS, (1.5, threshold, threshold), confidence=confidence, temperatures=temperatures)
        expected = [part.tolist() for part in cascade.predict(given, from_logits=True)]
        exits.add(tuple(expected[1]))
        for form in FORMS.values():
            found = form(cascade, on(writable, heads, tied=tied))(rows)
            assert [part.tolist() for part in found] == expected
    assert len(exits) > 4


@pytest.mark.parametrize("library", ["numpy", "torch"])
@both_heads
def test_what_happens_to_heads_later_is_not_seen(rng: np.random.Generator, library: str, tied: bool) -> None:
    load(library)
    kind = Library(library, "float64")
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    cascade, pairs, rows = Cascade(DIMS, (0.5, 1.0, 0.7)), on(kind, heads, tied=tied), kind.array(embeddings)
    answer = cascade.classifier(pairs)
    before = [part.tolist() for part in answer(rows)]
    for weight, bias in [pairs] if tied else pairs:
        weight *= -1
        bias *= -1
    assert [part.tolist() for part in answer(rows)] == before
    assert [part.tolist() for part in cascade.classify(rows, pairs)] != before


@both_heads
@pytest.mark.parametrize("largest", [0, 2**24], ids=["new", "kept"])
def test_batches_of_any_size_follow_each_other(
    writable: Library, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, largest: int, tied: bool
) -> None:
    monkeypatch.setattr(_classify, "_LARGEST_SPACE", largest)
    embeddings, heads, logits = problem(rng, tied=tied, bias=True)
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    answer, expected = cascade.classifier(on(writable, heads, tied=tied)), cascade.predict(logits, from_logits=True)
    for start, stop in ((0, 5), (3, 90), (90, 90), (20, 21), (7, 40)):
        for found, wanted in zip(answer(writable.array(embeddings[start:stop])), expected, strict=True):
            writable.assert_close(found, wanted[start:stop], atol=0)


@both_heads
def test_memory_of_inference_mode_serves_outside_it_too(rng: np.random.Generator, tied: bool) -> None:
    torch = load("torch")
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    rows, pairs = torch.asarray(embeddings), [tuple(map(torch.asarray, pair)) for pair in heads]
    answer = Cascade(DIMS, (0.6, 0.6, 0.6)).classifier(pairs[0] if tied else pairs)
    with torch.inference_mode():
        inside = answer(rows)
    for found, expected in zip(answer(rows), inside, strict=True):
        assert torch.equal(found, expected)


@both_heads
def test_only_a_tied_head_keeps_logits_from_width_to_width(rng: np.random.Generator, tied: bool) -> None:
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    answer = Cascade(DIMS, (0.5, 0.6, 0.7)).classifier(heads[0] if tied else heads)
    answer(embeddings)
    (memory,) = answer._spare
    assert memory["sums"].shape[0] == (90 if tied else 0)


def test_a_classifier_may_be_called_from_several_threads(rng: np.random.Generator) -> None:
    embeddings, heads, _ = problem(rng, tied=True, bias=True)
    answer = Cascade(DIMS, (0.5, 0.6, 0.7)).classifier(heads[0])
    expected = [part.tolist() for part in answer(embeddings)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(answer, [embeddings] * 40):
            assert [part.tolist() for part in found] == expected


@both_heads
@pytest.mark.parametrize("how", ["pickled", "copied"])
def test_a_classifier_goes_to_other_processes(
    writable: Library, rng: np.random.Generator, tied: bool, how: str
) -> None:
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    rows = writable.array(embeddings)
    answer = Cascade(DIMS, (0.5, 1.0, 0.7), confidence="margin").classifier(on(writable, heads, tied=tied))
    expected = answer(rows), answer(rows[5])
    pickled = pickle.dumps(answer)
    other = pickle.loads(pickled) if how == "pickled" else copy.deepcopy(answer)
    for found, wanted in zip((other(rows), other(rows[5])), expected, strict=True):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.tolist() == theirs.tolist()
    assert repr(other) == repr(answer)
    for stage in other._stages.stages:
        assert np.shares_memory(to_numpy(stage.factor), to_numpy(stage.transposed))
    with pytest.raises(ValueError, match="the last axis of `embeddings`"):
        other(rows[:, :8])


def test_a_pickled_classifier_holds_each_weight_once(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(1000, 64))
    answer = Cascade((8, 32, 64), (0.5, 0.6)).classifier((weight, None))
    answer(rng.normal(size=(500, 64)))
    assert len(pickle.dumps(answer)) < 1.05 * weight.nbytes


def test_a_classifier_says_what_it_is(rng: np.random.Generator) -> None:
    _, heads, _ = problem(rng, tied=False, bias=True)
    answer = Cascade(DIMS, (0.5, 1.0, 0.7)).classifier(heads)
    assert isinstance(answer, CascadeClassifier)
    assert (answer.dims, answer.exit_dims, answer.n_classes) == (DIMS, (3, 8, 20), N_CLASSES)
    assert repr(answer) == "CascadeClassifier(n_classes=11, dims=(3, 7, 8, 20), exit_dims=(3, 8, 20))"


def test_rows_that_do_not_fit_the_heads_are_refused(rng: np.random.Generator) -> None:
    embeddings, heads, _ = problem(rng, tied=True, bias=True)
    torch, jnp = load("torch"), load("jax.numpy")
    answer = Cascade(DIMS, (0.5, 0.6, 0.7)).classifier(heads[0])
    of_torch = Cascade(DIMS, (0.5, 0.6, 0.7)).classifier(tuple(map(torch.tensor, heads[0])))
    refused: list[tuple[Answer, Any, type[Exception], str]] = [
        (answer, embeddings[:, :8], ValueError, "the last axis of `embeddings` must be as wide as the nesting, 20"),
        (answer, embeddings[0, :8], ValueError, "the last axis of `embeddings` must be as wide as the nesting, 20"),
        (answer, embeddings[None], ValueError, r"`embeddings` must have shape \(rows, dim\), or \(dim,\), got"),
        (answer, np.array(1.0), ValueError, r"`embeddings` must have shape \(rows, dim\), or \(dim,\), got"),
        (answer, embeddings.astype("f4"), TypeError, "`embeddings` and `heads` must have one dtype"),
        (answer, embeddings.astype(int), TypeError, "`embeddings` must hold floating-point numbers"),
        (answer, embeddings.tolist(), TypeError, "`embeddings` must be an array"),
        (answer, np.ma.masked_array(embeddings), TypeError, "`embeddings` must be a plain array"),
        (answer, torch.tensor(embeddings), TypeError, "`embeddings` and `heads` must come from one array library"),
        (answer, jnp.asarray(embeddings), TypeError, "`embeddings` and `heads` must come from one array library"),
        (of_torch, embeddings, TypeError, "one array library, got numpy and torch; .* torch.from_numpy, or give NumPy"),
        (of_torch, torch.tensor(embeddings).half(), TypeError, "`embeddings` and `heads` must have one dtype"),
        (of_torch, torch.tensor(embeddings).to_sparse(), TypeError, "`embeddings` must be a plain array"),
        (of_torch, torch.tensor(embeddings, device="meta"), ValueError, "must lie on one device"),
    ]
    for classifier, rows, error, message in refused:
        with pytest.raises(error, match=message):
            classifier(rows)


@dataclass
class Layer:
    """A head of some framework."""

    nesting: tuple[int, ...]
    tied: bool
    pairs: list[Any]

    def heads(self) -> list[Any]:
        return self.pairs


@both_heads
@both_forms
def test_a_layer_stands_for_its_heads(rng: np.random.Generator, tied: bool, form: str) -> None:
    embeddings, heads, logits = problem(rng, tied=tied, bias=True)
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    found = FORMS[form](cascade, Layer(DIMS, tied, heads))(embeddings)
    expected = cascade.predict(logits, from_logits=True)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]
    for dims in ((3, 7, 8), (3, 7, 9, 20)):
        with pytest.raises(ValueError, match=r"`heads` must be a head for the widths of the cascade, \(3, 7, 8, 20\)"):
            FORMS[form](cascade, Layer(dims, tied, heads))(embeddings)


@both_heads
@both_forms
def test_kernels_that_are_transposed_are_told(rng: np.random.Generator, tied: bool, form: str) -> None:
    embeddings, heads, _ = problem(rng, tied=tied, bias=True)
    kernels = [(weight.T, bias) for weight, bias in heads]
    with pytest.raises(ValueError, match=r"which looks like a kernel \(width, n_classes\); transpose it"):
        FORMS[form](Cascade(DIMS, (0.5, 0.6, 0.7)), kernels[0] if tied else kernels)(embeddings)


def test_a_square_weight_is_taken_as_it_is(rng: np.random.Generator) -> None:
    weight, embeddings = rng.normal(size=(4, 4)), rng.normal(size=(9, 4))
    labels, _ = Cascade((2, 4), (1.0,)).classify(embeddings, (weight, None))
    assert labels.tolist() == (embeddings @ weight.T).argmax(-1).tolist()


def test_outputs_in_the_layout_of_keras_are_told(rng: np.random.Generator) -> None:
    logits, labels = rng.normal(size=(30, 4, 5)), np.arange(30) % 5
    cascade = Cascade(DIMS, (0.5, 0.6, 0.7))
    calls: list[Callable[[Any], object]] = [
        lambda given: cascade.predict(given, from_logits=True),
        lambda given: cascade.evaluate(given, labels, from_logits=True),
        lambda given: Cascade.calibrate(given, labels, nesting=DIMS, from_logits=True),
        lambda given: Cascade.certify(given, labels, nesting=DIMS, from_logits=True),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"looks like \(rows, prefixes, classes\).*np.moveaxis\(probabilities, 1, 0\)"
        ):
            call(logits)
        call(np.moveaxis(logits, 1, 0))
    with pytest.raises(ValueError, match="`probabilities` must hold one") as caught:
        cascade.predict(rng.normal(size=(30, 5, 5)), from_logits=True)
    assert "looks like" not in str(caught.value)


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
        (lambda: cascade.classify(embeddings[None], tied), ValueError, r"`embeddings` must have shape \(rows, dim\)"),
        (lambda: cascade.classifier((tied[0], tied[1].astype("f4"))), TypeError, "must have one dtype"),
        (lambda: cascade.classifier((tied[0].tolist(), None)), TypeError, "`heads` must be a sequence of"),
        (lambda: cascade.classifier([(np.array(1.0), None)] * 4), ValueError, r"`heads\[0\]\[0\]` must have shape"),
        (
            lambda: cascade.classifier(tuple(map(jnp.asarray, tied))),
            TypeError,
            r"`heads\[0\]` must be a NumPy or PyTorch array here",
        ),
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
