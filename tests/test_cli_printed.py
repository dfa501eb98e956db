"""No line that a command prints is wider than 100 columns, at the widest ladders, names and counts that people have."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from commands import unwrapped

from matryoshka import Cascade, Funnel
from matryoshka._commands import _measure, calibrate
from matryoshka._commands._measure import Measured, Plan, Times
from matryoshka._commands._report import Layout, Report
from matryoshka.audit import Audit, AuditRow
from matryoshka.audit._rule import FirstStage
from matryoshka.cascade import CascadeEvaluation, oracle_routing

RUNGS = tuple(8 << i for i in range(12))
ROWS = 10_000_000


def wide_audit() -> Audit:
    worst = dict.fromkeys(AuditRow._fields, 1.0) | {"worth": 2048.0, "gain_low": -1.0, "gain_high": -1.0}
    rows = [AuditRow(**worst | {"dim": dim, "p_value": 0.01, "gain": 1.0}) for dim in RUNGS]
    stage = FirstStage(dim=RUNGS[-2], code="bits", bytes=1024, candidates=20_470, kept=0.9512, rotated=True)
    counts = {"n_rows": ROWS, "n_audited": 999_999, "n_queries": 4000, "n_duplicates": 12_345}
    fitted = {"n_fitted": 65_536, "n_rotated": 499_999, "first_stage": stage, "cut": RUNGS[-2]}
    return Audit(tuple(rows), Funnel(RUNGS, (100_000,) * 11), k=2047, orders=99, seed=0, **counts, **fitted)


def wide_evaluation(*, labelled: bool, dims: tuple[int, ...] = RUNGS) -> CascadeEvaluation:
    n = len(dims)
    return CascadeEvaluation(
        dims=dims,
        thresholds=(0.98765,) * (n - 1),
        n_rows=ROWS,
        n_classes=1_000_000,
        accuracy=1.0 if labelled else None,
        gap=1.0 if labelled else None,
        disagreement=1.0,
        expected_dim=dims[-2] * 1.3,
        cumulative_dim=dims[-1] * 1.9,
        exit_shares=(1.0,) * n,
        exit_accuracy=(1.0 if labelled else None,) * n,
        prefix_accuracy=(0.5,) * (n - 2) + (1.0, 1.0) if labelled else None,
        prefix_disagreement=(1.0,) * n,
    )


def wide_calibration(group: int | None) -> str:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(3, size=800), np.arange(800) % 2 + (2**63 - 2)
    probabilities = np.repeat(0.2 + 0.4 * np.eye(3)[labels][None], 12, axis=0)
    found = Cascade.certify(probabilities, labels, nesting=RUNGS, max_gap=0.012345, max_error=0.123456, groups=groups)
    cascade = replace(found[2**63 - 1], temperatures=(0.0012345,) * 12)
    oracle = oracle_routing(probabilities, labels, nesting=RUNGS)
    told = calibrate._told(argparse.Namespace(test=None), ROWS, ROWS // 5, group)
    return calibrate.report(cascade, [wide_evaluation(labelled=True)], oracle, told)


def wide_benchmark(engine: str, batches: tuple[int, ...], *, labelled: bool) -> Report:
    dim, code = RUNGS[-1], "bits"
    plans = [
        *_measure.plans(dim, RUNGS, 1000, coded=True),
        Plan("calibrated", Funnel((dim, dim), (90_000,), code=code)),
    ]
    most, quality = float(2 * ROWS * dim), 0.123 if labelled else None
    slow, fast = (tuple(Times(batch, median, 9.9999, 9.9999) for batch in batches) for median in (9.9999, 0.05))
    rows = [Measured(engine, plan, most, 4 * most, ROWS / 3, slow, 0.999, quality, 1000.0) for plan in plans]
    rows += [replace(row, engine="exact", theory=128.0, times=fast) for row in rows]
    settings = {
        "source": "a folder/of many parts/" * 4 + "corpus.npy", "n": ROWS, "dim": dim, "metric": "cosine", "k": 1000,
        "n_queries": 10_000, "batches": batches, "threads": 192, "recall": 0.999, "mapped": True,
        "rows_bytes": 4 * ROWS * dim, "rotation": "some/other folder", "dtype": "float16",
    }  # fmt: skip
    return Report(settings, rows, [f"{engine}: left out {', '.join(map(str, RUNGS))} columns; it starts elsewhere."])


ENGINES = ("exact", "faiss:OPQ64_256,IVF65536_HNSW32,PQ64x4fs", "dask:" + "long/" * 18)
BENCHMARKS = list(itertools.product(ENGINES, [(1,), (1, 64, 4096)], [False, True]))

CASES: dict[str, Callable[[], object]] = {
    "audit": wide_audit,
    "audit without labels": lambda: replace(
        wide_audit(), rows=tuple(row._replace(nearest_neighbor_accuracy=None) for row in wide_audit().rows)
    ),
    "audit that rotates nothing": lambda: replace(wide_audit(), n_fitted=0, n_rotated=0, first_stage=None, cut=None),
    "apply": lambda: wide_evaluation(labelled=True),
    "apply without labels": lambda: wide_evaluation(labelled=False),
    "apply to costs": lambda: wide_evaluation(labelled=True, dims=(23_000_000, 110_000_000, 1_760_000_000)),
    "calibrate": lambda: wide_calibration(None),
    "calibrate groups": lambda: wide_calibration(2**63 - 1),
    **{f"benchmark {case}": lambda case=case: wide_benchmark(*case[:2], labelled=case[2]) for case in BENCHMARKS},
}


@pytest.mark.parametrize("case", CASES)
def test_no_line_is_wider_than_100_columns(case: str) -> None:
    text = unwrapped(CASES[case]())  # which asserts it
    assert text.isascii()


@pytest.mark.parametrize("case", BENCHMARKS)
def test_numbers_end_where_their_names_do(case: tuple[str, tuple[int, ...], bool]) -> None:
    report = wide_benchmark(*case[:2], labelled=case[2])
    engines, plans = [row.engine for row in report.measured], [row.plan for row in report.measured]
    layout = Layout(report.settings, engines, plans, labelled=case[2])
    for row in report.measured:
        for names, cells in zip(layout.head(), layout.line(row).splitlines(), strict=True):
            assert len(cells) == len(names) or names.endswith(("engine", "plan"))
