"""The command `matryoshka benchmark`: what searches with prefixes save and lose, by count and by the clock.

Here stand its options, the vectors it reads or generates, and its report; `_measure` does the measuring.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matryoshka import _checks, _files
from matryoshka._array import row_blocks
from matryoshka._commands import _measure, _picture
from matryoshka._commands._measure import Engine, Measured, Task
from matryoshka._commands._options import batches, folder, progress, publish, require_plots, widths
from matryoshka._pictures import table
from matryoshka._threads import n_threads
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Corpus, Funnel

GENERATED_ROWS, GENERATED_QUERIES, GENERATED_DIM = 20_000, 1000, 2048
ROWS_PER_CLASS = 50


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "benchmark",
        help="measure what searches with prefixes save and lose",
        description="Search with every prefix alone, with adaptive retrieval, with funnels and with a calibrated "
        "funnel; print multiply-adds, bytes, time per query and recall of each beside the exact search. Without files "
        "it runs on generated vectors of the paper's width.",
    )
    parser.add_argument("corpus", metavar="CORPUS.npy", nargs="?", help="array (rows, columns)")
    parser.add_argument("queries", metavar="QUERIES.npy", nargs="?", help="array (queries, columns)")
    parser.add_argument("--labels", metavar="L.npy", help="array (rows,) of class ids: adds mAP@k to the table")
    parser.add_argument("--query-labels", metavar="QL.npy", help="array (queries,) of class ids")
    parser.add_argument(
        "--engine",
        type=engines,
        default="exact",
        metavar="E,...",
        help="exact (default), faiss:TEXT such as faiss:HNSW32, or faiss:TEXT@SETTINGS such as "
        "faiss:IVF64,Flat@nprobe=8; several with commas between them",
    )
    parser.add_argument("--k", type=int, default=10, help="results per query; default 10")
    parser.add_argument("--batch", type=batches, default=(1, 64), metavar="1,64", help="queries asked at once")
    parser.add_argument("--dims", type=widths, metavar="8,16,...", help="widths; default the full one, halved to 8")
    parser.add_argument("--metric", choices=("cosine", "ip", "l2"), default="cosine", help="default cosine")
    parser.add_argument(
        "--recall", type=float, default=0.95, metavar="R", help="that the calibrated funnel promises; default 0.95"
    )
    parser.add_argument("--n", type=int, help="generated rows, instead of files; default 20000")
    parser.add_argument("--dim", type=int, help="generated columns; default 2048")
    parser.add_argument("--seed", type=int, default=0, help="draws vectors and the queries that calibrate; default 0")
    parser.add_argument(
        "-o", "--output", type=folder, metavar="DIR", help="write benchmark.txt, .json and .png to this folder"
    )
    parser.set_defaults(run=run)


def engines(text: str) -> tuple[Engine, ...]:
    """Read engines such as exact,faiss:IVF64,Flat@nprobe=8, where commas also stand within an engine."""
    found = []
    for name in re.split(r",(?=exact(?:,|$)|faiss:)", text):
        index, _, parameters = name.removeprefix("faiss:").partition("@")
        if name != "exact" and (not name.startswith("faiss:") or not index):
            msg = f"engines must be exact or faiss:TEXT with commas between them, got {name!r}"
            raise argparse.ArgumentTypeError(msg)
        found.append(Engine(name) if name == "exact" else Engine(name, index, parameters))
    if len(set(found)) < len(found):
        msg = f"engines must differ, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return tuple(found)


@dataclass(frozen=True)
class Vectors:
    """What is searched: from files, or generated."""

    rows: np.ndarray
    queries: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None
    source: str


@dataclass(frozen=True)
class Report:
    """All that was measured, and on what."""

    settings: dict[str, Any]
    measured: list[Measured]
    notes: list[str]

    def to_json(self) -> str:
        """Return everything as JSON text."""
        record = {"kind": "benchmark", "version": 1, **self.settings, "notes": self.notes}
        return json.dumps(record | {"plans": [row.to_record() for row in self.measured]})

    def figure(self) -> Any:
        """Draw it with matplotlib."""
        return _picture.figure(self.settings, self.measured)

    def __str__(self) -> str:
        settings = self.settings
        title = (
            f"{settings['source']}: {settings['n']:,} rows of {settings['dim']:,} columns, {settings['metric']}; "
            f"{settings['n_queries']:,} queries, {settings['threads']} threads; counts and times are per query"
        )
        meaning = "clock = exact / ms; exact: the median ms of the exact search that ran in turn with this plan"
        return "\n".join((title, "", *_table(self), "", meaning, *_advice(self), *self.notes))


def run(options: argparse.Namespace) -> None:
    """Measure, print the result, and then write it."""
    require_plots(options.output, "-o")
    _checks.integer(options.seed, "seed", minimum=0)
    vectors = _load(options) if options.corpus is not None else _generate(options)
    publish(_benchmark(options, vectors), "benchmark", options.output, dpi=130)


def _load(options: argparse.Namespace) -> Vectors:
    """Read and check the files; integers become float32, queries take the precision of the corpus."""
    if options.queries is None:
        msg = "QUERIES.npy must come with CORPUS.npy, got none; name both, or neither to generate vectors."
        raise ValueError(msg)
    if options.n is not None or options.dim is not None:
        msg = "--n and --dim must come without files, got them with CORPUS.npy; they are of generated vectors."
        raise ValueError(msg)
    if (options.labels is None) != (options.query_labels is None):
        msg = "--labels and --query-labels must come together, got one of them; name both or leave both out."
        raise ValueError(msg)
    rows = _files.load_array(options.corpus, "CORPUS.npy", mmap=True)
    queries = _files.load_array(options.queries, "QUERIES.npy")
    for array, name in ((rows, "corpus"), (queries, "queries")):
        _checks.signed_numbers(array, name, np)
        _checks.ndim(array, name, 2, "(n, dim)")
        _checks.not_empty(array, name)
        _checks.not_empty(array, name, axis=1)
    _checks.shape(queries, "queries", (len(queries), rows.shape[1]), "(n_queries, dim)")
    if rows.dtype.kind == "i":
        rows = rows.astype(np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is reported as such
        queries = queries.astype(np.float64 if rows.dtype == np.float64 else np.float32, copy=False)
    for array, name in ((queries, "queries"), (rows, "corpus")):
        _checks.no_bad_rows(_bad_rows(array), len(array), name)
    if options.labels is None:
        return Vectors(rows, queries, None, f"{options.corpus}")
    labels = _files.load_array(options.labels, "--labels")
    query_labels = _files.load_array(options.query_labels, "--query-labels")
    _checks.labels(labels, "labels", (len(rows),), np)
    _checks.labels(query_labels, "query_labels", (len(queries),), np)
    return Vectors(rows, queries, (labels, query_labels), f"{options.corpus}")


def _bad_rows(array: np.ndarray) -> list[int]:
    """Return which rows hold NaN or infinity, reading a block at a time."""
    step = max(1, 2**22 // array.shape[1])
    bad = [~np.isfinite(array[block]).all(axis=1) for block in row_blocks(len(array), step)]
    found: list[int] = np.flatnonzero(np.concatenate(bad)).tolist()
    return found


def _generate(options: argparse.Namespace) -> Vectors:
    """Draw classes and rows around them, whose columns shrink like those of vectors from nested training."""
    if options.labels is not None or options.query_labels is not None:
        msg = "--labels and --query-labels must come with CORPUS.npy and QUERIES.npy; generated vectors have their own."
        raise ValueError(msg)
    n = _checks.integer(GENERATED_ROWS if options.n is None else options.n, "n", minimum=1)
    dim = _checks.integer(GENERATED_DIM if options.dim is None else options.dim, "dim", minimum=1)
    rng = np.random.default_rng(options.seed)
    scale = ((1.0 + np.arange(dim)) ** -0.8).astype(np.float32)
    centres = rng.standard_normal((-(-n // ROWS_PER_CLASS), dim), np.float32)
    rows = np.empty((n + GENERATED_QUERIES, dim), np.float32)
    labels = rng.integers(0, len(centres), len(rows))
    for part in row_blocks(len(rows), ROWS_PER_CLASS):
        noise = rng.standard_normal(rows[part].shape, np.float32)
        rows[part] = (centres[labels[part]] + noise) * scale
    return Vectors(rows[:n], rows[n:], (labels[:n], labels[n:]), "generated")


def _benchmark(options: argparse.Namespace, vectors: Vectors) -> Report:
    """Check all options, calibrate on one half of the queries, and measure on the other."""
    k = _checks.integer(options.k, "k", minimum=1, maximum=len(vectors.rows))
    wanted = _checks.dims(options.batch, "batch")
    corpus = Corpus(vectors.rows, metric=options.metric)
    dims = _checks.dims(options.dims or Nesting.halving(corpus.dim, smallest=min(8, corpus.dim)))
    _checks.dims_within(dims, corpus.dim, of="corpus")
    dims = dims if dims[-1] == corpus.dim else (*dims, corpus.dim)
    for engine in options.engine:
        engine.check(dims, options.metric)
    order = np.random.default_rng(options.seed).permutation(len(vectors.queries))
    half = len(order) // 2
    calibrated, notes = _calibrated(options, copy.copy(corpus), vectors.queries[order[:half]], dims)
    asked = order[half:]
    batches = tuple(dict.fromkeys(min(batch, len(asked)) for batch in wanted))
    if batches != wanted:
        notes.insert(0, f"batch {wanted[-1]}: only {len(asked)} queries are left to measure on, asked all at once.")
    labels = None if vectors.labels is None else (vectors.labels[0], vectors.labels[1][asked])
    task = Task(corpus, vectors.queries[asked], k, batches, labels)
    chosen = _measure.plans(corpus.dim, dims, k, calibrated)
    with progress(len(chosen) * len(options.engine), "plan") as advance:
        measured = _measure.measure(task, options.engine, chosen, advance)
    settings = {
        "source": vectors.source,
        "n": len(corpus),
        "dim": corpus.dim,
        "metric": corpus.metric,
        "k": k,
        "n_queries": len(asked),
        "batches": batches,
        "threads": n_threads(),
        "recall": options.recall,
    }
    return Report(settings, measured, notes)


def _calibrated(
    options: argparse.Namespace, corpus: Corpus, queries: np.ndarray, dims: Sequence[int]
) -> tuple[Funnel | None, list[str]]:
    """Certify a funnel, and say of it what there is to say."""
    if len(queries) < 2:
        return None, ["calibrated: left out, too few queries; pass at least 4."]
    longest = max(1000, options.k)
    funnel = Funnel.calibrate(
        corpus, queries, options.k, recall=options.recall, dims=dims, longest=longest, seed=options.seed
    )
    kind = "calibrated" if funnel.keep else "calibrated: left out, no funnel passed"
    notes = [f"{kind}: {funnel}; {funnel.certificate}."]
    if any(engine.index for engine in options.engine) and funnel.keep:
        notes.append("The promise is about the exact engine: an index misses rows of its own.")
    return funnel, notes


def _table(report: Report) -> list[str]:
    k, labelled = report.settings["k"], report.measured[0].mean_average_precision is not None
    header = ["engine", "plan", "multiply-adds", "MB read", "theory"]
    for batch in report.settings["batches"]:
        header += [f"ms, batch {batch}", "p95", "exact", "clock"]
    lines = [[*header, f"recall@{k}", *([f"mAP@{k}"] if labelled else [])]]
    for row in report.measured:
        cells = [row.engine, str(row.plan)]
        cells += ["-"] * 3 if row.multiply_adds is None else [f"{row.multiply_adds:,.0f}"]
        cells += [] if row.bytes is None else [f"{row.bytes / 1e6:,.2f}", f"{row.theory:.1f} x"]
        for times in row.times:
            cells += [f"{1e3 * seconds:.3f}" for seconds in (times.median, times.p95, times.exact)]
            cells.append(f"{times.speedup:.1f} x")
        cells.append(f"{row.recall:.3f}")
        cells += [f"{row.mean_average_precision:.3f}"] if row.mean_average_precision is not None else []
        lines.append(cells)
    return table(lines, left=(0, 1))


def _advice(report: Report) -> list[str]:
    """Name the fastest plan that loses little, for each batch size."""
    wanted, name = report.settings["recall"], f"recall@{report.settings['k']}"
    good = [row for row in report.measured if row.recall >= wanted]
    if not good:
        best = max(report.measured, key=lambda row: row.recall)
        return [f"nothing reached {name} >= {wanted:g}; {best.engine}, {best.plan} came closest: {best.recall:.3f}."]
    lines = []
    for i, batch in enumerate(report.settings["batches"]):
        best = max(good, key=lambda row: row.times[i].speedup)
        theory = "" if best.theory is None else f", {best.theory:.1f} x by count"
        lines.append(
            f"fastest with {name} >= {wanted:g} at batch {batch}: {best.engine}, {best.plan}: "
            f"{best.times[i].speedup:.1f} x on the clock{theory}."
        )
    return lines
