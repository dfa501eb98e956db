"""Losses to test: arrays and options in float64 of NumPy, which every library converts for itself, and what is right.

Each kind of loss has the same methods; `arrays` returns what stands before the labels, in the order of the call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import oracles
from hypothesis import strategies as st

from matryoshka import (
    Funnel,
    Nesting,
    info_nce,
    info_nce_with_grad,
    mrl_cross_entropy,
    mrl_cross_entropy_with_grad,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
    mrl_logits_cross_entropy,
)

Options = Mapping[str, Any]

NESTING = Nesting((2, 3, 7), importance=(2.0, 0.0, 0.5))
N_ROWS, N_CLASSES, IGNORED = 6, 4, -7
N_QUERIES, N_KEYS = 5, 7
LABELS = np.array([3, 0, 1, 1, 2, 3])
SOME_IGNORED = np.array([3, IGNORED, 1, 1, IGNORED, 3])
SHARES = np.array(
    [[0, 0, 0.3, 0.7], [1, 0, 0, 0], [0.25, 0.5, 0.125, 0.125], [0, 1, 0, 0], [0.4] * 2 + [0.1] * 2, [0.25] * 4]
)
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25])
MASK = np.ones((N_QUERIES, N_KEYS), bool)
MASK[[0, 0, 2, 3, 4, 4], [3, 6, 0, 5, 0, 1]] = False  # all but one of the first five columns lose somebody
MASK[1] = np.arange(N_KEYS) == 1  # the second query has no negative left
TAUGHT = np.where(MASK, np.random.default_rng(22).random((N_QUERIES, N_KEYS)) ** 4, 0.0)
TAUGHT /= TAUGHT.sum(axis=1, keepdims=True)
IGNORING = {"labels": SOME_IGNORED, "ignore_index": IGNORED}
CLASSIFIED: dict[str, Options] = {
    "plain": {"labels": LABELS},
    "smoothed": {"labels": LABELS, "label_smoothing": 0.2},
    "ignoring": IGNORING,
    "weighted": {"labels": LABELS, "sample_weight": WEIGHTS},
    "all-options": {**IGNORING, "sample_weight": WEIGHTS, "label_smoothing": 0.1},
    "shares": {"labels": SHARES},
    "shares-and-all": {"labels": SHARES, "sample_weight": WEIGHTS, "label_smoothing": 0.1},
}
CONTRASTED: dict[str, Options] = {
    "plain": {"temperature": np.array(0.3)},
    "smoothed": {"temperature": np.array(0.3), "label_smoothing": 0.2},
    "symmetric": {"temperature": np.array(0.3), "symmetric": True},
    "all-options": {"temperature": np.array(2.5), "label_smoothing": 0.1, "symmetric": True},
    "masked": {"temperature": np.array(0.3), "mask": MASK},
    "masked-and-all": {"temperature": np.array(0.3), "mask": MASK, "label_smoothing": 0.1, "symmetric": True},
    "taught": {"temperature": np.array(0.3), "targets": TAUGHT},
    "taught-and-all": {
        "temperature": np.array(0.3),
        "targets": TAUGHT,
        "mask": MASK,
        "label_smoothing": 0.1,
        "symmetric": True,
    },
}


@dataclass(frozen=True)
class Heads:
    """Cross-entropy of classifiers: one for each prefix (MRL) or one for all (MRL-E), with or without a bias."""

    tied: bool
    bias: bool
    options: ClassVar = CLASSIFIED

    @property
    def names(self) -> tuple[str, ...]:
        return ("embeddings", "weight", "bias") if self.tied else ("embeddings", "heads")

    def arrays(self) -> tuple[Any, ...]:
        rng = np.random.default_rng(11)
        embeddings = rng.normal(size=(N_ROWS, NESTING.dim)) * np.linspace(0.3, 2.0, N_ROWS)[:, None]
        widths = (NESTING.dim,) if self.tied else NESTING.dims
        pairs = [(rng.normal(size=(N_CLASSES, m)), rng.normal(size=N_CLASSES) if self.bias else None) for m in widths]
        return (embeddings, *pairs[0]) if self.tied else (embeddings, pairs)

    def loss(self, arrays: Iterable[Any], *, labels: Any, **options: Any) -> Any:
        function = mrl_e_cross_entropy if self.tied else mrl_cross_entropy
        return function(*arrays, labels, **{"nesting": NESTING, **options})

    def with_grad(self, arrays: Iterable[Any], *, labels: Any, **options: Any) -> Any:
        function = mrl_e_cross_entropy_with_grad if self.tied else mrl_cross_entropy_with_grad
        return function(*arrays, labels, **{"nesting": NESTING, **options})

    def oracle(self, arrays: Iterable[Any], *, nesting: Nesting = NESTING, **options: Any) -> Any:
        embeddings, *head = arrays
        heads = [(head[0][:, :m], head[1]) for m in nesting] if self.tied else head[0]
        logits = oracles.losses_logits(embeddings, heads)
        return oracles.losses_cross_entropy(logits, importance=nesting.importance, **options)


@dataclass(frozen=True)
class Logits:
    """Cross-entropy of logits that are there already, in a sequence of arrays or in one array."""

    stacked: bool
    options: ClassVar = CLASSIFIED
    names: ClassVar = ("logits",)

    def arrays(self) -> tuple[Any, ...]:
        logits = np.random.default_rng(12).normal(size=(len(NESTING), N_ROWS, N_CLASSES)) * 3
        return (logits if self.stacked else list(logits),)

    def loss(self, arrays: Iterable[Any], *, labels: Any, **options: Any) -> Any:
        return mrl_logits_cross_entropy(*arrays, labels, **{"nesting": NESTING, **options})

    def oracle(self, arrays: Iterable[Any], **options: Any) -> Any:
        return oracles.losses_cross_entropy(*arrays, importance=NESTING.importance, **options)


@dataclass(frozen=True)
class Pairs:
    """InfoNCE of queries and more keys, of many lengths, with hard negatives or without: nothing here is normalised."""

    hard: bool
    options: ClassVar = CONTRASTED

    @property
    def names(self) -> tuple[str, ...]:
        return ("queries", "keys", "negatives")[: 2 + self.hard]

    def arrays(self) -> tuple[Any, ...]:
        rng = np.random.default_rng(21)
        queries = rng.normal(size=(N_QUERIES, NESTING.dim)) * np.array([[0.5], [1.0], [3.0], [20.0], [2.0]])
        keys = rng.normal(size=(N_KEYS, NESTING.dim)) * np.linspace(0.5, 4.0, N_KEYS)[:, None]
        negatives = rng.normal(size=(N_QUERIES, 2, NESTING.dim)) * np.linspace(3.0, 0.2, N_QUERIES)[:, None, None]
        return (queries, keys, negatives)[: 2 + self.hard]

    def _options(self, negatives: tuple[Any, ...], options: Options) -> dict[str, Any]:
        return {"nesting": NESTING, **dict(zip(["negatives"], negatives, strict=False)), **options}

    def loss(self, arrays: Iterable[Any], **options: Any) -> Any:
        queries, keys, *negatives = arrays
        return info_nce(queries, keys, **self._options(tuple(negatives), options))

    def with_grad(self, arrays: Iterable[Any], **options: Any) -> Any:
        queries, keys, *negatives = arrays
        loss, gradients = info_nce_with_grad(queries, keys, **self._options(tuple(negatives), options))
        if self.hard:  # in the order of the arrays, the temperature last
            gradients = gradients.queries, gradients.keys, gradients.negatives, gradients.temperature
        return loss, gradients

    def oracle(self, arrays: Iterable[Any], *, nesting: Nesting = NESTING, temperature: Any = 0.05, **rest: Any) -> Any:
        queries, keys, *negatives = arrays
        options = {"importance": nesting.importance, "temperature": float(temperature), **rest}
        options |= dict(zip(["negatives"], negatives, strict=False))
        return oracles.losses_info_nce(queries, keys, nesting.dims, **options)


KINDS: dict[str, Heads | Logits | Pairs] = {
    "mrl": Heads(tied=False, bias=True),
    "mrl-no-bias": Heads(tied=False, bias=False),
    "mrl-e": Heads(tied=True, bias=True),
    "mrl-e-no-bias": Heads(tied=True, bias=False),
    "logits": Logits(stacked=False),
    "stacked-logits": Logits(stacked=True),
    "info-nce": Pairs(hard=False),
    "info-nce-hard": Pairs(hard=True),
}


BAD_RERANKS = [
    ({"ids": np.ones((7, 2))}, TypeError, "`ids` must hold integers, got dtype float64"),
    ({"ids": np.ones((6, 2), int)}, ValueError, r"`ids` must have shape \(n_queries, m\)"),
    ({"ids": np.ones(7, int)}, ValueError, r"`ids` must have shape \(n_queries, m\)"),
    ({"funnel": Funnel((6, 24), (20,))}, TypeError, "exactly one of `dim` and `funnel` must be given"),
]
"""Arguments of a rerank at 6 of 24 columns for seven queries that every engine refuses, with error and message."""


def leaves(value: Any) -> Iterator[Any]:
    """Yield the arrays in nested tuples and lists, None left out."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def put(library: Any, value: Any) -> Any:
    """Put every array in nested tuples, lists and dicts on a library."""
    if isinstance(value, dict):
        return {name: put(library, item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([put(library, item) for item in value])
    return library.array(value) if isinstance(value, np.ndarray) else value


def slopes(kind: str, arrays: Any, **options: Any) -> list[np.ndarray]:
    """Differentiate the oracle in all arrays and in a temperature that is one."""
    varied = [*leaves(arrays), *(t for t in [options.get("temperature")] if isinstance(t, np.ndarray))]
    return [oracles.losses_slope(lambda: KINDS[kind].oracle(arrays, **options)[0], array) for array in varied]


@functools.cache
def expected_gradients(kind: str, options: str, reduction: str = "mean") -> list[np.ndarray]:
    return slopes(kind, KINDS[kind].arrays(), reduction=reduction, **KINDS[kind].options[options])


def call(kind: str, method: str = "loss", **changes: Any) -> Any:
    """Call a loss of NumPy arrays with some arguments replaced, by name."""
    case, options = KINDS[kind], {"labels": LABELS, **changes}
    if kind.startswith("info-nce"):
        options.pop("labels")
    arrays = [options.pop(name, value) for name, value in zip(case.names, case.arrays(), strict=True)]
    return getattr(case, method)(arrays, **options)


# For automatic differentiation: functions of tensors only, and large problems in float32.


def pairs_of(flat: Iterable[Any]) -> list[tuple[Any, Any]]:
    flat = list(flat)
    return list(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True)
class Flat:
    """A loss of one kind as a function of its arrays, one after the other; `last` names an option that is one, too."""

    kind: str
    options: Options
    last: str | None = None
    drawn: tuple[Any, ...] = field(default=())

    def arrays(self) -> list[np.ndarray]:
        return [*leaves(self.drawn or KINDS[self.kind].arrays()), *([self.options[self.last]] if self.last else [])]

    def __call__(self, *flat: Any, method: str = "loss", convert: Any = np.asarray, **options: Any) -> Any:
        """Call the loss, or another method of its kind, with labels as `convert` makes them."""
        arrays, named = (flat[:-1], {self.last: flat[-1]}) if self.last else (flat, {})
        if self.kind == "mrl":
            arrays = arrays[0], pairs_of(arrays[1:])
        elif self.kind == "logits":
            arrays = (arrays,)
        not_differentiated = ("labels", "mask", "targets")
        labels = {name: convert(value) for name, value in self.options.items() if name in not_differentiated}
        return getattr(KINDS[self.kind], method)(arrays, **{**self.options, **labels, **named, **options})


_SMOOTHED = {**IGNORING, "label_smoothing": 0.1, "sample_weight": WEIGHTS + 0.1}
FLAT = {
    "mrl": Flat("mrl", _SMOOTHED, "sample_weight"),
    "mrl-e": Flat("mrl-e", _SMOOTHED, "sample_weight"),
    "logits": Flat("logits", _SMOOTHED, "sample_weight"),
    "info-nce": Flat("info-nce", CONTRASTED["plain"], "temperature"),
    "info-nce-symmetric": Flat("info-nce", CONTRASTED["all-options"], "temperature"),
    "mrl-e-shares": Flat("mrl-e", {**CLASSIFIED["shares-and-all"], "sample_weight": WEIGHTS + 0.1}, "sample_weight"),
    "info-nce-hard": Flat("info-nce-hard", CONTRASTED["taught-and-all"], "temperature"),
}


def shares(name: str, reduction: str) -> Any:
    """Give a weight of its own to each row that the reduction leaves."""
    n = N_QUERIES if name.startswith("info-nce") else N_ROWS
    return np.linspace(-1.0, 2.0, n) if reduction == "none" else 3.0


@functools.cache
def value_and_slopes(name: str, reduction: str, scale: float = 1.0) -> tuple[float, list[np.ndarray]]:
    """Return what a loss of FLAT is, its rows weighted by `shares`, and its slopes in all its arrays times `scale`."""
    arrays = [np.array(scale * array) for array in FLAT[name].arrays()]

    def value() -> float:
        return float((shares(name, reduction) * FLAT[name](*arrays, method="oracle", reduction=reduction)[0]).sum())

    return value(), [oracles.losses_slope(value, array) for array in arrays]


def large(kind: str, n: int = 300) -> tuple[Flat, float, list[np.ndarray]]:
    """Return a problem of more than one block of rows in float32, and its value and gradients by NumPy."""
    rng, dims = np.random.default_rng(5), (8, 16, 32, 64)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    options: dict[str, Any] = {"nesting": dims, "row_block": 128}
    if kind == "info-nce":
        arrays: Any = drawn(n, 64), drawn(n + 100, 64)
        options |= {"temperature": 0.5, "symmetric": True}
    else:
        heads = [(drawn(50, m) / 8, drawn(50)) for m in (dims[-1:] if kind == "mrl-e" else dims)]
        arrays = (drawn(n, 64), *heads[0]) if kind == "mrl-e" else (drawn(n, 64), heads)
        options["labels"] = rng.integers(0, 50, size=n)
    flat = Flat(kind, options, drawn=arrays)
    value, gradients = KINDS[kind].with_grad(arrays, **options)
    return flat, value, list(leaves(gradients))[: len(flat.arrays())]


def assert_within_a_millionth(value: float, gradients: Iterable[np.ndarray], expected: tuple[float, list]) -> None:
    """Compare with what `large` returned, gradients by their length."""
    assert abs(value / expected[0] - 1) < 1e-6
    for ours, exact in zip(gradients, expected[1], strict=True):
        assert np.linalg.norm(np.asarray(ours) - exact) < 1e-6 * np.linalg.norm(exact)


# Strategies.


@st.composite
def nestings(draw: st.DrawFn) -> Nesting:
    dims = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    importance = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(dims), max_size=len(dims)))
    return Nesting(dims, importance if any(importance) else None)
