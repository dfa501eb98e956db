"""The command `matryoshka calibrate`: choose the thresholds of a cascade from probabilities and labels."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka import _files, _pictures
from matryoshka._commands._options import new_file, require_plots, widths
from matryoshka._promises.binomial import interval
from matryoshka.cascade import Cascade, CascadeEvaluation, OracleRouting, oracle_routing
from matryoshka.nesting import Nesting

FOR_CERTIFY = ("max_gap", "max_error", "delta", "path", "cost", "seed")


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "calibrate",
        help="choose the thresholds of a cascade",
        description="Choose the thresholds of a cascade from probabilities of every prefix and the true labels, by the "
        "published rule, or with --certify such that a promise about new rows holds. Prints where rows exit, how "
        "accurate they are there and what it costs, with 95 % intervals (Wilson), on the rows given.",
    )
    parser.add_argument("probabilities", metavar="PROBS.npy", help="array (prefixes, rows, classes), narrowest first")
    parser.add_argument("labels", metavar="LABELS.npy", help="array (rows,) of class ids")
    parser.add_argument("--dims", type=widths, metavar="8,16,...", help="widths of the prefixes; default 8, doubling")
    parser.add_argument("--logits", action="store_true", help="PROBS.npy holds logits")
    parser.add_argument("--confidence", default="max_probability", help="max_probability (default), margin or entropy")
    parser.add_argument("--temperature", action="store_true", help="fit a temperature to each prefix first")
    parser.add_argument("--variant", help="of the published rule: code (default) or paper")
    promise = parser.add_argument_group("promise")
    promise.add_argument(
        "--certify", action="store_true", help="test thresholds until a promise holds (Learn then Test)"
    )
    promise.add_argument(
        "--max-gap", type=float, metavar="P", help="P(wrong where the full width is right); default 0.01"
    )
    promise.add_argument("--max-error", type=float, metavar="P", help="P(wrong), instead of the gap or besides it")
    promise.add_argument("--delta", type=float, metavar="P", help="P(the promise does not hold); default 0.1")
    promise.add_argument("--path", help="policies to test: auto (default), shared or fitted")
    promise.add_argument("--cost", help="what to keep low: expected_dim (default, tied head) or cumulative_dim")
    promise.add_argument("--seed", type=int, help="draws the rows that fit a fitted path; default 0")
    parser.add_argument("-o", "--output", type=new_file, metavar="FILE.json", help="write the cascade to this file")
    parser.add_argument("--figure", type=new_file, metavar="FILE.png", help="plot accuracy against expected dimension")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Calibrate, print the result, and then write it."""
    _check_figure(options)
    probabilities = _files.load_array(options.probabilities, "PROBS.npy", mmap=True)
    labels = _files.load_array(options.labels, "LABELS.npy")
    dims = options.dims or _doubling(probabilities)
    cascade = _calibrate(options, probabilities, labels, dims)
    evaluation = cascade.evaluate(probabilities, labels, from_logits=options.logits)
    oracle = oracle_routing(probabilities, labels, nesting=dims, from_logits=options.logits)
    text = report(cascade, evaluation, oracle)
    if options.dims is None:
        text += f"\n\nWidths taken to double from 8 to {dims[-1]}; --dims names others."
    print(text, flush=True)
    contents: dict[Path, bytes] = {}
    if options.output is not None:
        contents[options.output] = f"{cascade.to_json()}\n".encode()
    if options.figure is not None:
        curve = cascade.curve(probabilities, labels, from_logits=options.logits)
        drawing = figure(curve, evaluation, oracle)
        contents[options.figure] = _pictures.rendered(drawing, kind=_kind(options.figure))
    _files.write_all(contents)
    for path in contents:
        print(f"wrote {path}")


def _check_figure(options: argparse.Namespace) -> None:
    """Refuse a figure that cannot be drawn, before any work is done."""
    require_plots(options.figure, "--figure")
    if options.figure is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    types = FigureCanvasBase.get_supported_filetypes()
    if _kind(options.figure) not in types:
        msg = f"--figure must end in one of {', '.join(sorted(types))}, got '{options.figure}'; choose one of these."
        raise ValueError(msg)
    if options.figure == options.output:
        msg = f"--figure and -o must be two files, got '{options.figure}' for both; rename one."
        raise ValueError(msg)


def _kind(path: Path) -> str:
    return path.suffix[1:] or "png"


def _doubling(probabilities: np.ndarray) -> tuple[int, ...]:
    n_prefixes = probabilities.shape[0] if probabilities.ndim == 3 else 1
    return Nesting(8 * 2**i for i in range(n_prefixes)).dims


def _calibrate(
    options: argparse.Namespace, probabilities: np.ndarray, labels: np.ndarray, dims: tuple[int, ...]
) -> Cascade:
    chosen = {name: value for name in FOR_CERTIFY if (value := getattr(options, name)) is not None}
    common: dict[str, Any] = {
        "nesting": dims,
        "confidence": options.confidence,
        "temperature": options.temperature,
        "from_logits": options.logits,
    }
    if options.certify:
        if options.variant is not None:
            msg = "--variant is of the published rule, got it with --certify; leave one of them out."
            raise ValueError(msg)
        return Cascade.certify(probabilities, labels, **common, **chosen)
    if chosen:
        names = ", ".join("--" + name.replace("_", "-") for name in chosen)
        msg = f"{names} must come with --certify; the published rule promises nothing."
        raise ValueError(msg)
    return Cascade.calibrate(probabilities, labels, variant=options.variant or "code", **common)


def report(cascade: Cascade, evaluation: CascadeEvaluation, oracle: OracleRouting) -> str:
    """Return the table and what follows from it, in plain ASCII."""
    n, full = evaluation.n_rows, evaluation.dims[-1]
    rule = "published rule" if cascade.certificate is None else "certified"
    cells = [["width".rjust(8), "threshold", "rows exiting", "right among them", "right if alone"]]
    for i, dim in enumerate(evaluation.dims):
        threshold = f"{cascade.thresholds[i]:.4f}" if i < len(cascade.thresholds) else "-"
        count = round(evaluation.exit_shares[i] * n)
        there = evaluation.exit_accuracy[i]
        among = "-" if there is None else _rate(there, count)
        cells.append([str(dim), threshold, f"{count / n:.1%}", among, _rate(evaluation.prefix_accuracy[i], n)])
    lines = [
        f"Cascade ({rule}, confidence {cascade.confidence}) on {n:,} rows of {evaluation.n_classes:,} classes.",
        "Measured on the rows that chose the thresholds.",
        "",
        *_pictures.table(cells),
        "",
        f"accuracy        {_rate(evaluation.accuracy, n)}",
        f"full width      {_rate(evaluation.prefix_accuracy[-1], n)}",
        f"perfect router  {_rate(oracle.accuracy, n)}",
        f"gap             {_rate(evaluation.gap, n)}  wrong where the full width is right",
        "",
        _cost("expected dim", evaluation.expected_dim, full, evaluation.tied_multiply_adds, "a tied head"),
        _cost("cumulative dim", evaluation.cumulative_dim, full, evaluation.separate_multiply_adds, "separate heads"),
    ]
    if cascade.temperatures is not None:
        lines += ["", "temperatures    " + ", ".join(f"{t:.3g}" for t in cascade.temperatures)]
    if cascade.certificate is not None:
        lines += ["", *textwrap.wrap(f"certificate: {cascade.certificate}.", 100)]
    return "\n".join(lines)


def _rate(share: float, n: int) -> str:
    low, high = interval(round(share * n), n)
    return f"{share:7.2%} [{low:7.2%}, {high:7.2%}]"


def _cost(name: str, dim: float, full: int, multiply_adds: float, head: str) -> str:
    return f"{name:<14}  {dim:7.1f}  {full / dim:5.1f} x less than {full}; {multiply_adds:,.0f} multiply-adds of {head}"


def figure(curve: list[CascadeEvaluation], evaluation: CascadeEvaluation, oracle: OracleRouting) -> Any:
    """Draw accuracy against the expected dimension, for every cap and for each width alone."""
    drawing = _pictures.new(6.4, 4.4, purpose="--figure")
    axes = drawing.subplots()
    dims = evaluation.dims
    axes.plot(dims, [100 * a for a in evaluation.prefix_accuracy], "s--", color="0.5", label="one width alone")
    points = curve or [evaluation]
    label = "cascade: a point for each widest prefix allowed"
    axes.plot([p.expected_dim for p in points], [100 * p.accuracy for p in points], "o-", label=label)
    axes.axhline(100 * oracle.accuracy, linestyle=":", color="0.3", label="perfect router")
    _pictures.width_axis(axes, dims)
    axes.set_xlabel("expected dimension")
    axes.set_ylabel("accuracy [%]")
    _pictures.legend_below(axes)
    return drawing
