"""The command `matryoshka benchmark`: what searches with prefixes save and lose, by count and by the clock.

Here stand its options, the vectors it reads or generates, and the order of its work; `_measure` does the measuring,
`_report` says what was found.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matryoshka import _checks
from matryoshka._array import row_blocks
from matryoshka._commands import _measure, _report
from matryoshka._commands._elsewhere import Elsewhere
from matryoshka._commands._inputs import bad_rows, load_array
from matryoshka._commands._measure import Engine, Measured, Plan, Task
from matryoshka._commands._options import (
    Progress,
    add_json,
    batches,
    folder,
    integer,
    number,
    progress,
    require_plots,
    widths,
    write,
)
from matryoshka._commands._report import Layout, Report
from matryoshka._threads import n_threads
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Corpus, Funnel
from matryoshka.rotation import Rotation

MOST_MEASURED, MOST_CALIBRATING = 500, 1000
"""Queries that are measured on, unless a batch is larger, and that a funnel is calibrated with."""

ENGINES = (
    "exact (default), faiss:TEXT such as faiss:HNSW32, or faiss:TEXT@SETTINGS such as faiss:IVF64,Flat@nprobe=8; "
    "dask:FOLDER[@HOST:PORT], postgres:[SCHEMA.]TABLE@SERVER and qdrant:NAME@FOLDER or @URL, which hold the rows of "
    "the corpus (a name ends at its first @, a folder at its last); several with commas between"
)

GENERATED_ROWS, GENERATED_QUERIES, GENERATED_DIM = 20_000, 1000, 2048
ROWS_PER_CLASS = 50


DESCRIPTION = (
    "Search with every prefix alone, with adaptive retrieval, with funnels and with a calibrated "
    "funnel; print multiply-adds, bytes, time per query and recall of each beside the exact search. Without files "
    "it runs on generated vectors of the paper's width."
)
EXAMPLE = "matryoshka benchmark CORPUS.npy QUERIES.npy --k 10 --batch 1,64"


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("corpus", metavar="CORPUS.npy", nargs="?", help="array (rows, columns)")
    parser.add_argument("queries", metavar="QUERIES.npy", nargs="?", help="array (queries, columns)")
    parser.add_argument("--labels", metavar="L.npy", help="array (rows,) of class ids: adds mAP@k to the table")
    parser.add_argument("--query-labels", metavar="QL.npy", help="array (queries,) of class ids")
    parser.add_argument("--engine", type=engines, default="exact", metavar="E,...", help=ENGINES)
    parser.add_argument("--k", type=integer, default=10, help="results per query; default 10")
    parser.add_argument(
        "--batch", type=batches, default="1,64", metavar="1,64", help="queries asked at once; default 1,64"
    )
    parser.add_argument("--dims", type=widths, metavar="8,16,...", help="widths; default the full one, halved to 8")
    parser.add_argument("--metric", choices=_checks.METRICS, default="cosine", help="default cosine")
    parser.add_argument(
        "--recall", type=number, default=0.95, metavar="R", help="that the calibrated funnel promises; default 0.95"
    )
    parser.add_argument(
        "--in-memory", action="store_true", help="read the corpus into memory; by default it is mapped from its file"
    )
    parser.add_argument(
        "--rotation", metavar="DIR", help="rotate corpus (in memory) and queries by what Rotation.save wrote here"
    )
    _add_generated(parser)
    parser.add_argument(
        "--seed", type=integer, default=0, help="draws vectors and the queries that calibrate; default 0"
    )
    parser.add_argument(
        "-o", "--output", type=folder, metavar="DIR", help="write benchmark.txt, .json and .png to this folder"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def _add_generated(parser: argparse.ArgumentParser) -> None:
    """Describe what is generated where no files are given."""
    parser.add_argument("--n", type=integer, help="generated rows, instead of files; default 20000")
    parser.add_argument("--dim", type=integer, help="generated columns; default 2048")


def engines(text: str) -> tuple[Engine, ...]:
    """Read engines such as exact,faiss:IVF64,Flat@nprobe=8, where commas also stand within an engine."""
    found: list[Engine] = []
    for name in re.split(r",(?=exact(?:,|$)|faiss:|dask:|postgres:|qdrant:)", text):
        if (elsewhere := Elsewhere.read(name)) is not None:
            found.append(elsewhere)
            continue
        index, _, parameters = name.removeprefix("faiss:").partition("@")
        if name != "exact" and (not name.startswith("faiss:") or not index):
            got = repr(name.partition("@")[0])  # what follows may hold a password
            kinds = "exact, faiss:TEXT, dask:FOLDER, postgres:[SCHEMA.]TABLE@SERVER or qdrant:NAME@FOLDER"
            msg = f"engines must be {kinds} with commas between, and a name ends at the first @, got {got}"
            raise argparse.ArgumentTypeError(msg)
        found.append(Engine(name) if name == "exact" else Engine(name, index, parameters))
    if len(set(found)) < len(found):
        msg = f"engines must differ, got {', '.join(engine.name for engine in found)}"
        raise argparse.ArgumentTypeError(msg)
    return tuple(found)


@dataclass(frozen=True)
class Vectors:
    """What is searched: from files, or generated."""

    rows: np.ndarray
    queries: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None
    source: str


def run(options: argparse.Namespace) -> None:
    """Measure, print each row as it is found, and then write all."""
    require_plots(options.output, "-o")
    _checks.integer(options.seed, "seed", minimum=0)
    _checks.real(options.recall, "recall", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    rotation = None if options.rotation is None else _rotation(options.rotation)
    vectors = _load(options) if options.corpus is not None else _generate(options)
    if rotation is not None and rotation.dim != vectors.rows.shape[1]:
        msg = (
            f"--rotation must be of {vectors.rows.shape[1]} columns, as the corpus is, got one of {rotation.dim}; fit "
            "one on these vectors."
        )
        raise ValueError(msg)
    report = _benchmark(options, vectors, rotation)
    if options.json:  # else all of it was shown as it was found
        print(report.to_json(), flush=True)
    write(report, "benchmark", options, dpi=130)


def _rotation(path: str) -> Rotation:
    """Read a rotation, or say which option named something else."""
    try:
        return Rotation.load(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}".rstrip(".")
        if isinstance(error, FileNotFoundError):
            reason = "No such file or directory"
        msg = (
            f"--rotation must be a folder that holds a rotation, got {path!r}: {reason}; write one with "
            "matryoshka audit EMB.npy --rotation DIR."
        )
        raise ValueError(msg) from error


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
    rows = load_array(options.corpus, "CORPUS.npy", mmap=not options.in_memory)
    queries = load_array(options.queries, "QUERIES.npy")
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
        _checks.no_bad_rows(bad_rows(array), len(array), name)
    if options.labels is None:
        return Vectors(rows, queries, None, f"{options.corpus}")
    labels = load_array(options.labels, "--labels")
    query_labels = load_array(options.query_labels, "--query-labels")
    _checks.labels(labels, "labels", (len(rows),), np)
    _checks.labels(query_labels, "query_labels", (len(queries),), np)
    return Vectors(rows, queries, (labels, query_labels), f"{options.corpus}")


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


def _benchmark(options: argparse.Namespace, vectors: Vectors, rotation: Rotation | None) -> Report:
    """Check all options, measure on one half of the queries, calibrate on the other, and measure what came of it."""
    k = _checks.integer(options.k, "k", minimum=1, maximum=len(vectors.rows))
    wanted = _checks.dims(options.batch, "batch")
    dim = vectors.rows.shape[1]
    dims = _checks.dims(options.dims or Nesting.halving(dim, smallest=min(8, dim)), most=dim, of="corpus")
    dims = dims if dims[-1] == dim else (*dims, dim)
    for engine in options.engine:
        engine.check(dims, options.metric)
    order = np.random.default_rng(options.seed).permutation(len(vectors.queries))
    half = len(order) // 2
    asked = order[half:][: max(MOST_MEASURED, wanted[-1])]
    batches = tuple(dict.fromkeys(min(batch, len(asked)) for batch in wanted))
    rows = vectors.rows if rotation is None else _measure.rotate(rotation, vectors.rows)
    corpus = Corpus(rows, metric=options.metric)
    plans = _measure.plans(dim, dims, k, coded="bits" in corpus.codes)
    left_out = _left_out(options.engine, plans)
    steps = sum(len(engine.takes(plans)) + 1 for engine in options.engine) + 1
    with progress(steps, "step", quiet=options.json) as shown:
        shown.now("exact search")
        labels = None if vectors.labels is None else (vectors.labels[0], vectors.labels[1][asked])
        task = Task(corpus, vectors.queries[asked], k, batches, labels, rotation)
        settings = _settings(options, vectors.source, task) | {"dtype": rows.dtype.name}
        calibrating = vectors.queries[order[:half][:MOST_CALIBRATING]]
        if rotation is not None:
            calibrating = _measure.rotate(rotation, calibrating)
        measured, notes = _measure_all(options, task, plans, settings, calibrating, shown)
        notes = [*left_out, *notes]
        if batches != wanted:
            notes.insert(0, f"batch {wanted[-1]}: only {len(asked)} queries are left to measure on, asked all at once.")
        report = Report(settings, measured, notes)
        shown.show(report.closing())
    return report


def _left_out(engines: Iterable[Engine], plans: Sequence[Plan]) -> list[str]:
    """Note widths at which engines start nothing; one that starts nothing at all is refused."""
    notes = []
    for engine in engines:
        if not (starts := _measure.widths(engine.takes(plans))):
            msg = (
                f"--engine must name what serves these rows, got {engine.name!r}: codes compare directions, and the "
                "lengths of rows differ too much for this metric; leave it out, or use --metric cosine."
            )
            raise ValueError(msg)
        if others := sorted(set(_measure.widths(plans)) - set(starts)):
            shown = ", ".join(map(str, others))
            notes.append(f"{engine.name}: left out {shown} columns; it starts at {engine.starts_at}.")
    return notes


def _measure_all(
    options: argparse.Namespace,
    task: Task,
    plans: Sequence[Plan],
    settings: dict[str, Any],
    calibrating: np.ndarray,
    shown: Progress,
) -> tuple[list[Measured], list[str]]:
    """Show each plan as it is measured, on each engine the calibrated one last; return them and what to say of it."""
    layout = Layout(settings, [engine.name for engine in options.engine], plans, labelled=task.labels is not None)
    measured: list[Measured] = []

    def show(rows: Iterable[Measured]) -> None:
        for row in rows:
            if not measured:
                shown.show("\n".join((_report.opening(settings), *layout.head())))
            measured.append(row)
            shown.show(layout.line(row))
            shown.step()

    last: list[Plan] | None = None
    for engine in options.engine:
        show(_measure.measure(task, engine, plans, shown.now))
        if last is None:  # only now: it is what takes longest
            funnel, notes = _calibrated(options, task, calibrating, _measure.widths(plans), shown.now)
            last = [] if funnel is None else [Plan("calibrated", funnel)]
            shown.step()
        show(_measure.measure(task, engine, last, shown.now))
    return measured, notes


def _settings(options: argparse.Namespace, source: str, task: Task) -> dict[str, Any]:
    """Return what stands above the table and in the record."""
    held = task.corpus.nbytes
    return {
        "source": source,
        "n": len(task.corpus),
        "dim": task.corpus.dim,
        "metric": task.corpus.metric,
        "k": task.k,
        "n_queries": len(task.queries),
        "batches": task.batches,
        "threads": n_threads(),
        "recall": options.recall,
        "mapped": held.mapped > 0,
        "rows_bytes": held.rows + held.mapped,
        "rotation": None if options.rotation is None else str(options.rotation),
    }


def _calibrated(
    options: argparse.Namespace,
    task: Task,
    queries: np.ndarray,
    dims: Sequence[int],
    now: Callable[[str], object],
) -> tuple[Funnel | None, list[str]]:
    """Certify a funnel, or none, and say of it what there is to say."""
    if len(queries) < 2:
        return None, ["calibrated: left out, too few queries; pass at least 4."]
    corpus, doing = copy.copy(task.corpus), f"calibrating with {len(queries)} queries"
    now(doing)
    funnel = Funnel.calibrate(
        corpus,
        queries,
        task.k,
        recall=options.recall,
        dims=dims,
        longest=max(1000, task.k),
        batch_size=task.batches[0],
        progress=lambda done, total: now(f"{doing}, {done} of {total}"),
        seed=options.seed,
    )
    if funnel == Funnel((corpus.dim,)):
        return None, [f"calibrated: left out, it is the exact search: {funnel}; {funnel.certificate}."]
    notes = [f"calibrated: {funnel}; {funnel.certificate}."]
    if others := [engine.name for engine in options.engine if not engine.takes([Plan("calibrated", funnel)])]:
        notes.append(f"It was not measured on {', '.join(others)}, where it cannot start.")
    if any(engine.index and not isinstance(engine, Elsewhere) for engine in options.engine):
        notes.append("The promise is about the exact engine: an index misses rows of its own.")
    return funnel, notes
