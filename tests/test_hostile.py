"""Every public callable with every kind of bad argument, one at a time, generated from the signatures.

A call may end in a TypeError, ValueError, ImportError or OSError that has the argument in backticks, or return what the
same call returns for the properly converted argument: `converted` says which arguments can be converted, and a mere
return of any other is a failure. Nothing may warn, and nothing may write to an argument.

Whoever adds a public callable or a parameter finds here a failing test that says what to add to `GOOD`.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import fractions
import functools
import importlib
import importlib.util
import inspect
import itertools
import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import load

from matryoshka import Cascade, Corpus, Evaluation, Funnel, Nesting, Rotation, audit
from matryoshka.audit import AuditDisplay
from matryoshka.cascade import CascadeDisplay, CascadeMonitor, Certificate, oracle_routing
from matryoshka.evaluation import EvaluationDisplay
from matryoshka.retrieval import FunnelDisplay

MODULES = ("", "audit", "cascade", "costs", "embeddings", "evaluation", "losses", "metrics", "nesting", "retrieval",
           "rotation", "torch", "faiss")  # fmt: skip
OPTIONAL = {"torch": "torch", "faiss": "faiss"}
DRAWN = {"plot"}
"""Methods that need matplotlib."""
FOUND_BY_THE_PACKAGE = {
    "Audit", "AuditRow", "CascadeClassifier", "CascadeEvaluation", "Certificate", "ClassTrends", "CorpusBytes",
    "Evaluation", "FirstStage", "FunnelPoint", "HardNegativeGradients", "InfoNCEGradients", "MRLEGradients",
    "MRLGradients", "OracleRouting", "RecallCertificate", "Searchable",
}  # fmt: skip
"""Results, which nobody builds, and a protocol."""

ALLOWED = (TypeError, ValueError, ImportError, OSError)
REFUSED = object()
LEAST_CALLS = 10_000

pytestmark = pytest.mark.filterwarnings("ignore")  # of making what is bad: in the calls, `quiet` makes warnings errors


# What is good --------------------------------------------------------------------------------------------------------


def frozen(array: Any) -> np.ndarray:
    array = np.asarray(array)
    array.flags.writeable = False
    return array


rng = np.random.default_rng(0)
DIMS = (2, 4)
ROWS = frozen(rng.normal(size=(6, 4)))
QUERIES = frozen(rng.normal(size=(3, 4)))
LABELS = frozen(np.array([0, 1, 2, 0, 1, 2]))
SEEN = frozen(np.arange(18).reshape(3, 6) % 7 != 5)
WEIGHT, BIAS = frozen(rng.normal(size=(3, 4))), frozen(rng.normal(size=3))
HEADS = [(frozen(rng.normal(size=(3, m))), BIAS) for m in DIMS]
PROBABILITIES = frozen(rng.dirichlet(np.ones(3), size=(2, 6)) * 0.5 + 0.5 * (np.arange(3) == LABELS[:, None]))
IDS = frozen(np.array([[0, 5, -1], [1, 2, 3], [4, 0, 1]]))
RELEVANT = frozen(np.array([[True, False, True], [False, False, True], [True, True, False]]))
AUDITED = frozen(rng.normal(size=(16, 8)) * 0.7 ** np.arange(8))
CORPUS = Corpus(ROWS)
CERTIFICATE = Certificate(
    thresholds=(0.6,), max_gap=None, max_error=None, max_disagreement=0.5, delta=0.2, path="shared", n_rows=20,
    n_fit_rows=0, p_values=(0.01,), chosen=0, rows_needed=3,
)  # fmt: skip
CASCADE = Cascade(DIMS, (0.6,), certificate=CERTIFICATE)
MONITOR = CASCADE.monitor()
FUNNEL = Funnel(DIMS, (3,))
POINTS = Funnel.pareto(CORPUS, QUERIES, 2, dims=DIMS, cost="multiply_adds")
CALIBRATED = Funnel.calibrate(CORPUS, QUERIES, 2, dims=DIMS, cost="multiply_adds").certificate
EVALUATION = Evaluation({m: {"ndcg@10": m / 9, "recall@5": m / 8} for m in DIMS}, "cosine", 8, 3)
CURVE, FRONTIER = CASCADE.curve(PROBABILITIES, LABELS), Cascade.frontier(PROBABILITIES, LABELS, nesting=DIMS)
ROTATION = Rotation.fit(ROWS)


def any_loss(student: Any, teacher: Any) -> Any:
    """A loss that takes any shapes, so that none of its own errors comes in between."""
    return (student * student).sum() - 2 * student.sum() * teacher.sum() + (teacher * teacher).sum()


def any_encoder(rows: Any) -> Any:
    return rows


def first_stage(prefixes: Any, count: int) -> np.ndarray:
    return np.tile(np.arange(count), (len(prefixes), 1))


GOOD: dict[str, tuple[str, Any]] = {
    "after": ("int", 1),
    "answers": ("array", LABELS),
    "arrays": ("array", ROWS),
    "ax": ("object", None),
    "batch_size": ("int", 2),
    "bias": ("array", BIAS),
    "bound": ("float", 0.1),
    "budget": ("float", 4.0),
    "cascade": ("object", CASCADE),
    "certificate": ("object", None),
    "code": ("str", "bits"),
    "confidence": ("str", "margin"),
    "corpus": ("object", CORPUS),
    "corpus_labels": ("array", LABELS),
    "cost": ("str", "cumulative_dim"),
    "count": ("int", 3),
    "curve": ("object", CURVE),
    "delta": ("float", 0.2),
    "dim": ("int", 4),
    "dims": ("ints", DIMS),
    "dip": ("float", 0.2),
    "embeddings": ("array", ROWS),
    "encoder": ("callable", any_encoder),
    "energy": ("array", frozen(np.array([0.5, 0.25, 0.25, 0.0]))),
    "executed": ("flag", True),
    "failures": ("array", frozen(np.arange(6) % 4 == 1)),
    "first_stage": ("callable", first_stage),
    "from_logits": ("flag", True),
    "full_answers": ("array", LABELS[::-1]),
    "gains": ("array", frozen(np.array([[3.0, 0.0, 1.0], [0.0, 2.0, 0.5], [1.0, 1.0, 0.0]]))),
    "frontier": ("object", FRONTIER),
    "funnel": ("object", FUNNEL),
    "gather": ("flag", True),
    "grid": ("set of floats", (0.5, 0.7)),
    "groups": ("array", frozen(np.zeros_like(LABELS))),
    "heads": ("heads", HEADS),
    "ideal": ("array", frozen(np.array([[1.0, 3.0, 2.0, 0.0], [0.5, 0.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0]]))),
    "ids": ("array", IDS),
    "ignore_index": ("int", 2),
    "importance": ("floats", (1.0, 2.0)),
    "index": ("text", "Flat"),
    "itemsize": ("int", 2),
    "k": ("int", 2),
    "keep": ("ints", (3,)),
    "keys": ("array", ROWS),
    "kind": ("str", "energy"),
    "label_smoothing": ("float", 0.1),
    "labels": ("array", LABELS),
    "last": ("int", 2),
    "learnable_temperature": ("flag", True),
    "like": ("array", ROWS),
    "linear": ("object", None),  # made when it is asked for, where there is PyTorch
    "logits": ("arrays", frozen(rng.normal(size=(2, 6, 3)))),
    "longest": ("int", 4),
    "loss": ("callable", any_loss),
    "m": ("int", 4),
    "mask": ("array", SEEN),
    "matrix": ("array", frozen(np.eye(4)[[2, 0, 3, 1]])),
    "max_disagreement": ("float", 0.5),
    "max_error": ("float", 0.9),
    "max_gap": ("float", 0.5),
    "max_queries": ("int", 20),
    "max_rows": ("int", 30),
    "measures": ("names", ("ndcg@2", "map@3")),
    "metric": ("str", "ip"),
    "mini_batch": ("int", 2),
    "mmap": ("flag", True),
    "n": ("int", 100),
    "n_classes": ("int", 3),
    "n_failures": ("int", 1),
    "n_relevant": ("counts", 3),
    "n_rows": ("int", 3),
    "negatives": ("array", frozen(rng.normal(size=(3, 2, 4)))),
    "nesting": ("nesting", DIMS),
    "normalize": ("flag", True),
    "num_classes": ("int", 3),
    "of": ("int", 8),
    "oracle": ("object", oracle_routing(PROBABILITIES, LABELS, nesting=DIMS)),
    "orders": ("int", 99),
    "p_value": ("float", 0.5),
    "parameters": ("text", ""),
    "path": ("str", "shared"),
    "points": ("object", POINTS),
    "predictions": ("arrays", frozen(np.array([[0, 1, 1, 0, 1, 2], [0, 1, 2, 0, 2, 2]]))),
    "progress": ("callable", None),
    "probabilities": ("arrays", PROBABILITIES),
    "promise": ("str", "max_disagreement"),
    "queries": ("array", QUERIES),
    "query_labels": ("array", frozen(np.array([0, 1, 2]))),
    "recall": ("float", 0.5),
    "reduction": ("str", "sum"),
    "reference_ids": ("array", IDS),
    "relevance": ("array", RELEVANT),
    "return_parts": ("flag", True),
    "row_block": ("int", 3),
    "rows": ("array", ROWS),
    "sample": ("int", 5),
    "sample_weight": ("array", frozen(np.linspace(0.5, 1.0, 6))),
    "search_dims": ("ints", (2,)),
    "seed": ("int", 3),
    "smallest": ("int", 2),
    "stakes": ("floats", tuple(range(-10, 0))),
    "superclasses": ("array", frozen(np.array([0, 0, 1]))),
    "symmetric": ("flag", True),
    "targets": ("array", frozen(SEEN / SEEN.sum(axis=1, keepdims=True))),
    "temperature": ("float", 0.1),
    "temperatures": ("floats", (1.0, 2.0)),
    "text": ("text", "Flat"),
    "thresholds": ("floats", (0.6,)),
    "tied": ("flag", True),
    "tolerance": ("float", 0.1),
    "variant": ("str", "paper"),
    "weight": ("array", WEIGHT),
    "xp": ("namespace", np),
}
"""For each parameter its kind, which says what can be converted, and a good value."""

OWN: dict[tuple[str, str], tuple[str, Any]] = {
    ("AuditDisplay", "audit"): ("object", audit(AUDITED, k=2)),
    ("Cascade.calibrate", "temperature"): ("flag", True),
    ("MRLHead", "bias"): ("flag", True),
    ("head_parameters", "bias"): ("flag", True),
    ("Cascade.certify", "temperature"): ("flag", False),
    ("Cascade.from_json", "text"): ("json", CASCADE.to_json()),
    ("CascadeDisplay", "certificate"): ("object", CERTIFICATE),
    ("CascadeMonitor", "cascade"): ("int", 7),
    ("CascadeMonitor.from_json", "text"): ("json", MONITOR.to_json()),
    ("Corpus", "code"): ("str", "float"),  # under "ip" these rows are not of one length
    ("Corpus.rerank", "dim"): ("int", None),
    ("Corpus.search", "dim"): ("int", None),
    ("Corpus.search", "first_stage"): ("callable", None),
    ("FaissCorpus.rerank", "dim"): ("int", None),
    ("FaissCorpus.search", "dim"): ("int", None),
    ("EvaluationDisplay", "evaluations"): ("object", EVALUATION),
    ("EvaluationDisplay.plot", "measure"): ("str", "recall@5"),
    ("FunnelDisplay", "certificate"): ("object", CALIBRATED),
    ("Funnel.from_json", "text"): ("json", FUNNEL.to_json()),
    ("Funnel.calibrate", "queries"): ("array", frozen(rng.normal(size=(12, 4)))),
    ("Funnel.calibrate", "cost"): ("str", "multiply_adds"),
    ("Funnel.pareto", "cost"): ("str", "multiply_adds"),
    ("Funnel.halving", "keep"): ("int", 8),
    ("MRLCrossEntropy.forward", "logits"): ("tensors", (PROBABILITIES[0], PROBABILITIES[1])),
    ("Nesting.from_json", "text"): ("json", Nesting(DIMS).to_json()),
    ("Nesting.halving", "importance"): ("floats", (1.0, 2.0)),
    ("Nesting.uniform", "importance"): ("floats", (1.0, 2.0, 3.0)),
    ("audit", "dims"): ("ints", (2, 4)),
    ("audit", "embeddings"): ("array", AUDITED),
    ("audit", "labels"): ("array", frozen(np.arange(16) % 2)),
    ("evaluate", "qrels"): ("array", None),  # beside labels
    ("info_nce", "queries"): ("array", QUERIES),
    ("nearest_class_mean_accuracy", "queries"): ("array", QUERIES),
    ("superclass_accuracy", "predictions"): ("array", LABELS),
}
"""Where a name means something else, by callable."""
for method in ("smallest_correct_dim", "oracle_routing", "class_trends", "Cascade.predict", "Cascade.evaluate",
               "Cascade.curve", "Cascade.calibrate", "Cascade.certify", "Cascade.frontier",
               "Cascade.within_budget"):  # fmt: skip
    OWN[method, "from_logits"] = ("flag", False)
for method in ("predict", "evaluate", "curve"):
    OWN[f"Cascade.{method}", "confidence"] = ("array", None)  # the example decides by a measure
for method in ("from_json", "to_json"):
    OWN[f"Cascade.{method}", "nesting"] = ("nesting", DIMS)

THEIRS = {"device", "dtype"}
"""Handed to the framework as they are."""

PATHS = {"Cascade.load", "Cascade.save", "CascadeMonitor.load", "CascadeMonitor.save",
         "Corpus.load", "Corpus.save", "FaissCorpus.load", "FaissCorpus.save",
         "Funnel.load", "Funnel.save", "Nesting.load", "Nesting.save",
         "Rotation.load", "Rotation.save"}  # fmt: skip
"""What takes a path is tested with other options here, and with damaged files by the tests of storage."""

ALSO_NAMED = {
    ("FaissCorpus.empty_index", "text"): "index",
    ("nested_loss", "loss"): "arrays",
    ("NestedLoss.forward", "embeddings"): "arrays",
}
"""What a message may name in place of the parameter."""


# What is bad ---------------------------------------------------------------------------------------------------------

SCALARS: list[Any] = [
    None, "", "False", "abc", "2", b"abc", bytearray(b"2"), True, False, 0, 1, 2, 3, -1, -7, 2**31, 2**40, 2**63,
    -(2**70), 10**400, -(10**400), 10**5000, 0.0,
    0.5, 2.0, -0.5, 1e300, 1e-300, float("nan"), float("inf"), -float("inf"),
    1j, 2 + 0j, np.bool_(True), np.bool_(False), *(np.dtype(code).type(2) for code in "bBhHiIqQefdFD"),
    np.float32("nan"), np.str_("abc"), np.str_("margin"), np.bytes_(b"abc"), np.datetime64("2020-01-01"),
    np.timedelta64(2, "s"), decimal.Decimal("0.5"), decimal.Decimal("sNaN"), fractions.Fraction(1, 2),
    fractions.Fraction(10**400), dt.timedelta(2), ..., NotImplemented, object(), object, int, len, np,
]  # fmt: skip
CONTAINERS: list[Callable[[], Any]] = [
    list, tuple, set, dict, frozenset, lambda: [None], lambda: [2, 4], lambda: [4, 2], lambda: (2, 4), lambda: {2, 4},
    lambda: {2: 1, 4: 1}, lambda: {2: 1}.keys(), lambda: [[2, 4]], lambda: [[2], [2, 4]], lambda: ["2", "4"],
    lambda: [2.0, 4.0], lambda: [0.5, 0.7], lambda: [True, True], lambda: [2, None], lambda: [2, 10**400],
    lambda: range(2, 5, 2), lambda: Once(2, 4), lambda: Once(0.5, 0.7), lambda: Once(None), lambda: itertools.count(),
    lambda: memoryview(b"abc"), lambda: collections.deque([2, 4]), lambda: [float("nan"), 1.0], lambda: [1j, 2j],
    lambda: np.array(2), lambda: np.array(0.5), lambda: np.array(True), lambda: np.array(None),
    lambda: np.array([2, 4]),
    lambda: np.array([2.0, 4.0]), lambda: np.array([[2, 4]]), lambda: np.array([], int), lambda: np.array(["2", "4"]),
    lambda: np.array([2, None], object), lambda: np.array([True, False]), lambda: np.array([2, 4], np.uint8),
    lambda: np.array([1 + 1j]), lambda: np.ma.masked_array([2, 4], [True, False]), lambda: np.ma.masked,
    lambda: np.zeros(2, [("a", float)]), lambda: np.zeros((1,) * 5), lambda: np.array(["2020-01-01"], "M8[D]"),
    lambda: np.asmatrix([[2, 4]]), lambda: types.SimpleNamespace(shape=(2,), dtype=np.dtype(float)),
    lambda: CORPUS, lambda: FUNNEL, lambda: CASCADE, lambda: Nesting((2, 4)), lambda: first_stage,
]  # fmt: skip


class Once:
    """An iterator that can be read once, and tells what it holds."""

    def __init__(self, *entries: Any) -> None:
        self.entries, self._left = entries, iter(entries)

    def __iter__(self) -> Once:
        return self

    def __next__(self) -> Any:
        return next(self._left)


def of_torch(array: np.ndarray) -> Any:
    return load("torch").tensor(array.copy())


def of_jax(array: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of float64, which it cuts
        return load("jax.numpy").asarray(array)


FROM_ARRAY: list[Callable[[np.ndarray], Any]] = [
    np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a[::-1], lambda a: a.T,
    lambda a: a.astype(a.dtype.newbyteorder()), lambda a: a.astype(np.float16), lambda a: a.astype(np.float32),
    lambda a: a.astype(np.longdouble), lambda a: a.astype(complex), lambda a: a.astype(object), lambda a: a.astype(str),
    lambda a: a.astype(np.uint8), lambda a: a.astype(np.int8), lambda a: a.astype(np.int64), lambda a: a.astype(bool),
    lambda a: a.astype("M8[s]") if a.dtype.kind == "i" else a.astype(np.uint64),
    lambda a: a.tolist(), lambda a: a[None], lambda a: a[:0], lambda a: a[..., :0], lambda a: a[..., :1],
    lambda a: a[0],
    lambda a: a[:1], lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)), lambda a: np.ma.masked_less(a, 1),
    lambda a: np.asmatrix(a) if a.ndim < 3 else np.asmatrix(a[0]), lambda a: a * np.nan, lambda a: a + np.inf,
    lambda a: a * 1e300, lambda a: -a if a.dtype != bool else ~a, lambda a: a * 0, lambda a: a + 10**6,
    lambda a: a.reshape(*a.shape, 1, 1), lambda a: np.full(a.shape, None), lambda a: list(a), lambda a: tuple(a),
    lambda a: [*a[:-1], None], lambda a: [*list(a)[:-1], "x"], lambda a: memoryview(np.ascontiguousarray(a)),
    of_torch, lambda a: of_torch(a).to_sparse(), lambda a: of_torch(a).float(), lambda a: of_torch(a) > 0, of_jax,
]  # fmt: skip
FROM_LIST: list[Callable[[Any], Any]] = [
    list, tuple, lambda v: v[:-1], lambda v: [*v, v[-1]], lambda v: v[::-1], lambda v: [None, *v[1:]], lambda v: [],
    lambda v: [*v[:-1], None], lambda v: [*v[:-1], "x"], lambda v: [v], lambda v: iter(v), lambda v: dict(enumerate(v)),
    lambda v: [*v[:-1], (None, None)], lambda v: [*v[:-1], (v[-1][0], None)], lambda v: [*v[:-1], (v[-1][0], "x")],
    lambda v: [*v[:-1], (v[-1][0].tolist(), None)], lambda v: [*v[:-1], v[-1][:1]],
    lambda v: [list(pair) for pair in v],
]  # fmt: skip


def bad_values(kind: str, good: Any) -> Iterator[Any]:
    """Give what to put in place of one argument."""
    if kind == "namespace":  # a module: whoever hands one in answers for it
        yield from (value for value in SCALARS if value is not np)
        yield from (make() for make in CONTAINERS)
        return
    made = itertools.chain(SCALARS, (make() for make in CONTAINERS))
    yield from (value for value in made if kind != "callable" or not callable(value))  # what it raises is its own
    arrays = [good] if isinstance(good, np.ndarray) else []
    for array, change in itertools.product(arrays, FROM_ARRAY):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # what is made here may be odd
            try:
                value = change(array)
            except (TypeError, ValueError):  # of this array there is no such change
                continue
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        yield value
    if kind in ("heads", "tensors"):
        for change in FROM_LIST:
            try:
                yield change(good)
            except AttributeError:  # tensors are no pairs
                continue


def converted(kind: str, value: Any, good: Any) -> Any:
    """Return the argument of the proper type that `value` stands for; REFUSED where it stands for none."""
    single = isinstance(value, np.generic | np.ndarray) and value.shape == () and value.dtype.kind in "iuf"
    if value is np.ma.masked:
        return REFUSED
    if kind == "counts":
        kind = "array" if isinstance(value, np.ndarray) and value.ndim else "int"
    if kind == "flag":
        return bool(value) if isinstance(value, bool | np.bool_) else REFUSED
    if kind == "int":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return int(value) if whole or (single and value.dtype.kind in "iu") else REFUSED
    if kind == "float":
        number = isinstance(value, int | float | decimal.Decimal | fractions.Fraction) and not isinstance(value, bool)
        try:
            return float(value) if number or single else REFUSED
        except (OverflowError, ValueError):  # 400 digits, a signalling NaN
            return REFUSED
    if kind in ("str", "text", "json"):
        return str(value) if isinstance(value, str) else REFUSED
    if kind in ("ints", "floats", "set of floats", "nesting"):
        return _numbers(kind, value)
    if kind == "callable":
        return value if callable(value) else REFUSED
    if kind == "object":
        return value if good is not None and type(value) is type(good) else REFUSED
    if kind in ("array", "arrays"):
        return _array(kind, value)
    if kind in ("heads", "tensors"):
        return list(value) if isinstance(value, list | tuple) else REFUSED
    return REFUSED


def _numbers(kind: str, value: Any) -> Any:
    if isinstance(value, Nesting):
        return value if kind == "nesting" else converted(kind, value.dims, None)
    if isinstance(value, Once):
        return _numbers(kind, value.entries)
    ordered = isinstance(value, list | tuple | range | collections.deque) or (
        isinstance(value, np.ndarray) and value.ndim == 1 and type(value) is np.ndarray
    )
    if not ordered and not (kind == "set of floats" and isinstance(value, collections.abc.Set)):
        return REFUSED
    each = [converted("float" if "floats" in kind else "int", entry, None) for entry in value]
    return REFUSED if any(entry is REFUSED for entry in each) else tuple(each)


def _array(kind: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and kind == "arrays":
        entries = [_array("array", entry) for entry in value]
        return REFUSED if any(entry is REFUSED for entry in entries) else entries
    if isinstance(value, np.ma.MaskedArray | np.matrix):
        return REFUSED
    if isinstance(value, np.ndarray | np.generic):
        plain = value.dtype.kind in "biuf"
        return np.array(value, dtype=value.dtype.newbyteorder("="), order="C") if plain else REFUSED
    if hasattr(value, "__array__") and type(value).__module__.partition(".")[0] in ("torch", "jaxlib", "jax"):
        return np.asarray(value) if "sparse" not in str(getattr(value, "layout", "")) else REFUSED
    return REFUSED


# What is called ------------------------------------------------------------------------------------------------------


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Give every public function, class and method by its name."""
    seen: set[int] = set()
    for name in MODULES:
        if name in OPTIONAL:
            try:
                importlib.import_module(OPTIONAL[name])
            except ModuleNotFoundError:
                continue
        module = importlib.import_module(f"matryoshka.{name}".rstrip("."))
        for key in module.__all__:
            value = getattr(module, key)
            if id(value) in seen or isinstance(value, types.ModuleType) or not callable(value):
                continue
            seen.add(id(value))
            if not inspect.isclass(value):
                yield key, value
            elif key not in FOUND_BY_THE_PACKAGE:
                yield key, value
                yield from methods(value)


def methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Give the public methods that this package defines, bound to an example."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("matryoshka")]
    names = {name for base in own for name, value in vars(base).items() if not name.startswith("_") and callable(
        getattr(kind, name)) and not isinstance(value, property)}  # fmt: skip
    drawn = set() if importlib.util.find_spec("matplotlib") else DRAWN
    for name in sorted(names - {"extra_repr", "reset_parameters"} - drawn):
        yield f"{kind.__name__}.{name}", functools.partial(_on_an_example, kind, name)


def _on_an_example(kind: type, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return getattr(example(kind.__name__), name)(*args, **kwargs)


@functools.cache
def example(name: str) -> Any:
    """Return an object of a public class."""
    if name in ("MRLHead", "MRLCrossEntropy", "InfoNCE", "NestedLoss"):
        modules = importlib.import_module("matryoshka.torch")
        made: dict[str, Callable[[], Any]] = {
            "MRLHead": lambda: modules.MRLHead(DIMS, 3, dtype=load("torch").float64),
            "MRLCrossEntropy": lambda: modules.MRLCrossEntropy(DIMS),
            "InfoNCE": lambda: modules.InfoNCE(DIMS),
            "NestedLoss": lambda: modules.NestedLoss(any_loss, DIMS),
        }
        return made[name]()
    if name == "FaissCorpus":
        return importlib.import_module("matryoshka.faiss").FaissCorpus(CORPUS, "Flat", dim=2)
    if name == "CascadeMonitor":
        return CascadeMonitor.from_json(MONITOR.to_json())  # one of its own, since it is fed
    examples = {
        "AuditDisplay": AuditDisplay(good("AuditDisplay", "audit")[1]), "Cascade": CASCADE,
        "CascadeDisplay": CascadeDisplay(CURVE), "Corpus": CORPUS,
        "EvaluationDisplay": EvaluationDisplay(EVALUATION), "Funnel": FUNNEL,
        "FunnelDisplay": FunnelDisplay(POINTS), "Nesting": Nesting(DIMS), "Rotation": ROTATION,
    }  # fmt: skip
    if name not in examples:
        pytest.fail(f"`{name}` is public and new: give `example` one, or name it in FOUND_BY_THE_PACKAGE")
    return examples[name]


@functools.cache
def _linear() -> Any:
    return load("torch").nn.Linear(4, 3)


def signature(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    if isinstance(function, functools.partial):
        kind, method = function.args
        function = getattr(example(kind.__name__), method)
    kept = (p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD)
    return [p for p in kept if p.name not in THEIRS]


def good(name: str, parameter: str) -> tuple[str, Any]:
    """Return the kind of a parameter and a good value."""
    if parameter == "linear":
        return "object", _linear()
    own = OWN.get((name, parameter)) or OWN.get((name.removesuffix("_with_grad"), parameter)) or GOOD.get(parameter)
    if own is None:
        pytest.fail(f"`{parameter}` of {name} is new: add to GOOD of {__file__} its kind and a good value")
    return own


def call(parameters: list[inspect.Parameter], function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call with each argument in its place."""
    args, kwargs = [], {}
    for p in parameters:
        if p.name not in arguments:
            continue
        if p.kind is p.VAR_POSITIONAL:
            args += [arguments[p.name], ROWS if p.name == "arrays" else tensor(ROWS)]
        elif p.kind is p.KEYWORD_ONLY:
            kwargs[p.name] = arguments[p.name]
        else:
            args.append(arguments[p.name])
    return function(*args, **kwargs)


def tensor(value: Any) -> Any:
    return of_torch(value) if isinstance(value, np.ndarray) else value


# How a call ends -----------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Tell whether two results are alike: numbers within what half precision makes of them."""
    if isinstance(other, Iterator):
        other = list(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, Corpus):
        return repr(one) == repr(other) and len(one) == len(other)
    if dataclasses.is_dataclass(one) or isinstance(one, str | type(None)):
        return bool(one == other)
    if type(one).__name__ == "CachedStep":
        return repr(one) == repr(other)
    if type(one).__name__ == "CascadeClassifier":
        return repr(one) == repr(other) and same(one(ROWS), other(ROWS))
    if hasattr(one, "state_dict"):
        return repr(one) == repr(other) and one.state_dict().keys() == other.state_dict().keys()
    if type(one).__name__ in ("FaissCorpus",) or "faiss" in type(one).__module__ or isinstance(one, slice):
        return repr(one).partition(" at ")[0] == repr(other).partition(" at ")[0]
    one, other = (np.asarray(a.detach() if hasattr(a, "detach") else a) for a in (one, other))
    return one.shape == other.shape and np.allclose(
        one.astype(float), other.astype(float), rtol=2e-3, atol=2e-3, equal_nan=True
    )


@dataclasses.dataclass
class Place:
    """Where a bad argument stands: a parameter of a callable, its kind, and how to call with another value there."""

    name: str
    parameter: inspect.Parameter
    others: list[str]
    run: Callable[[Any], Any]
    wrap: Callable[[Any], Any]

    def problem(self, value: Any) -> str | None:
        """Call with a bad value, and say what is wrong with how the call ends."""
        kind, usual = good(self.name, self.parameter.name)
        expected = converted(kind, value, usual)
        if value is None and "None" in str(self.parameter.annotation):
            expected = None
        try:
            result = self.run(value)
            if isinstance(result, Iterator):
                result = list(result)
        except ALLOWED as error:
            # What is good by itself and does not fit the others is told by the name of any of them.
            also = ALSO_NAMED.get((self.name, self.parameter.name), self.parameter.name)
            names = {self.parameter.name, also, *(self.others if expected is not REFUSED else ())}
            if re.search(rf"`({'|'.join(names)})[`\[.]", str(error)):
                return None
            return f"{type(error).__name__} without the argument: {str(error)[:150]}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:150]}"
        if expected is REFUSED:
            return "returned, though it stands for nothing good"
        if expected is value:
            return None
        try:
            alike = same(result, self.run(self.wrap(expected)))
        except Exception as error:
            return f"returned, where {describe(expected)} ends in {type(error).__name__}: {str(error)[:100]}"
        return None if alike else f"returned another result than {describe(expected)}"


def describe(value: object) -> str:
    kind = type(value).__name__
    if hasattr(value, "dtype"):
        return f"{type(value).__module__.partition('.')[0]}.{kind} {value.dtype} {getattr(value, 'shape', '')}"
    return kind if isinstance(value, int) and abs(value) > 10**30 else f"{kind} {str(value)[:60]}"


def hostile(name: str, function: Callable[..., Any]) -> tuple[int, list[str]]:
    """Put every bad value in place of every argument; return how many calls that were, and what went wrong."""
    parameters = [p for p in signature(name, function) if not (name in PATHS and p.name == "path")]
    if name in PATHS:
        return 0, []
    values = {p.name: good(name, p.name) for p in parameters}
    wrap = tensor if name.endswith(".forward") else (lambda value: value)
    arguments = {key: wrap(value) for key, (_, value) in values.items() if value is not None}
    if name.endswith("MRLCrossEntropy.forward"):
        arguments["logits"] = tuple(map(tensor, values["logits"][1]))
    count, wrong = 0, []
    try:
        with quiet():
            call(parameters, function, arguments)
    except Exception as error:
        return 0, [f"{name}: the good call fails: {error!r}"]
    for p in parameters:
        kind, value = values[p.name]

        def run(bad: Any, name: str = p.name) -> Any:
            with quiet(bad):
                return call(parameters, function, arguments | {name: bad})

        place = Place(name, p, [other.name for other in parameters], run, wrap)
        for bad in bad_values(kind, value):
            count += 1
            if (found := place.problem(bad)) is not None:
                wrong.append(f"{name}({p.name}={describe(bad)}): {found}")
    return count, wrong


class quiet(warnings.catch_warnings):  # noqa: N801 (a context like those of the standard library)
    """Let every warning be an error, but those that are documented: few rows, and NumPy's of what is not finite."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        floats = isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
        numbers = np.asarray(value, np.longdouble).ravel() if floats else ()
        self._is_plain = all(1e-20 < abs(number) < 1e20 or number == 0 for number in numbers)

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Calibrating on", UserWarning)
        if not self._is_plain:
            warnings.filterwarnings("ignore", "(invalid value|overflow) encountered", RuntimeWarning)
        return entered


CALLABLES = dict(public())
COUNTED: dict[str, int] = {}


@pytest.mark.parametrize("name", CALLABLES)
def test_bad_arguments_are_named_or_converted(name: str) -> None:
    COUNTED[name], wrong = hostile(name, CALLABLES[name])
    assert not wrong, f"{len(wrong)} of {COUNTED[name]} calls:\n" + "\n".join(wrong[:40])


def test_there_were_enough_calls() -> None:
    if len(COUNTED) < len(CALLABLES):
        pytest.skip("only some of the callables were tested")
    print(f"{sum(COUNTED.values())} hostile calls of {len(COUNTED)} callables")
    assert sum(COUNTED.values()) >= LEAST_CALLS
