"""The command `matryoshka calibrate`: choose the thresholds of a cascade, and judge it on rows that chose nothing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matryoshka import _files, _pictures
from matryoshka._commands import _rows
from matryoshka._commands._options import add_json, integer, new_file, number, require_plots, widths, wrote
from matryoshka._commands._rows import Rows
from matryoshka.cascade import Cascade, CascadeDisplay, CascadeEvaluation, OracleRouting, oracle_routing

BOUNDS = ("max_gap", "max_error", "max_disagreement")
FOR_CERTIFY = (*BOUNDS, "delta", "path", "cost")


DESCRIPTION = (
    "Choose the thresholds of a cascade from what every prefix says, by the published rule, or such "
    "that a promise about new rows holds: with --max-disagreement no labels are needed. Prints where rows exit, "
    "how good the answers are there and what it costs, with 95 % intervals (Wilson), on rows that chose nothing."
)
EXAMPLE = "matryoshka calibrate PROBS.npy LABELS.npy --dims 8,16,32 --max-gap 0.01 -o cascade.json"


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("probabilities", metavar="PROBS.npy", help="array (prefixes, rows, classes), narrowest first")
    parser.add_argument(
        "labels",
        nargs="?",
        metavar="LABELS.npy",
        help="array (rows,) of class ids; with a bound on the gap, -1 for none",
    )
    parser.add_argument("--dims", type=widths, metavar="8,16,...", help="widths of the prefixes, which no file tells")
    parser.add_argument("--logits", action="store_true", help="the files hold logits")
    parser.add_argument(
        "--test",
        nargs="+",
        metavar=("PROBS.npy", "LABELS.npy"),
        help="other rows that judge: probabilities, labels if known, with --groups their groups; name them after those "
        "that choose; by default a random fifth of the rows, kept apart",
    )
    parser.add_argument(
        "--confidence", help="max_probability, margin or entropy; default max_probability, with a promise margin"
    )
    parser.add_argument("--temperature", action="store_true", help="fit a temperature to each prefix first")
    parser.add_argument("--variant", help="of the published rule: code (default) or paper")
    parser.add_argument("--seed", type=integer, default=0, help="draws the rows that judge or fit a path; default 0")
    _add_promise(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=new_file,
        metavar="FILE.json",
        help="write the cascade to this file, or those of groups to a new folder",
    )
    parser.add_argument("--figure", type=new_file, metavar="FILE.png", help="plot accuracy against expected dimension")
    add_json(parser)
    parser.set_defaults(run=run)


def _add_promise(parser: argparse.ArgumentParser) -> None:
    """Describe what `Cascade.certify` takes."""
    promise = parser.add_argument_group("promise", "Thresholds are tested until it holds (Learn then Test).")
    promise.add_argument("--certify", action="store_true", help="promise a gap of 0.01, unless other bounds are given")
    promise.add_argument("--max-gap", type=number, metavar="P", help="P(wrong where the full width is right)")
    promise.add_argument("--max-error", type=number, metavar="P", help="P(wrong)")
    promise.add_argument(
        "--max-disagreement", type=number, metavar="P", help="P(answers otherwise than the full width)"
    )
    promise.add_argument("--delta", type=number, metavar="P", help="P(the promise does not hold); default 0.1")
    promise.add_argument(
        "--groups", metavar="GROUPS.npy", help="array (rows,) of group ids: promise it to each of them"
    )
    promise.add_argument(
        "--path", help="policies to test: shared, tapered or fitted; default auto, by the number of rows"
    )
    promise.add_argument("--cost", help="what to keep low: expected_dim (default, tied head) or cumulative_dim")


def run(options: argparse.Namespace) -> None:
    """Calibrate, print the result, and then write it."""
    _check_figure(options)
    _check_promise(options)
    chosen, judged = _read(options)
    chosen.doing("choosing thresholds on")
    cascades = _calibrate(options, chosen)
    judged.doing("measuring on")
    contents: dict[Path, bytes] = {}
    results: list[dict[str, Any]] = []
    for group, cascade in cascades.items():
        curve, oracle = _measured(cascade, judged.of(group), from_logits=options.logits)
        counts = chosen.count(group), judged.count(group)
        results.append(_record(cascade, curve, oracle) | {"group": group, "n_chosen": counts[0], "n_judged": counts[1]})
        if not options.json:
            told = _told(options, *counts, group)
            print(report(cascade, curve, oracle, told), end="\n" if group is None else "\n\n", flush=True)
        if options.output is not None:
            place = options.output if group is None else options.output / f"{group}.json"
            contents[place] = f"{cascade.to_json()}\n".encode()
        if options.figure is not None:
            contents[options.figure] = _pictures.rendered(figure(cascade, curve, oracle), kind=_kind(options.figure))
    if options.json:
        print(json.dumps({"kind": "calibration", "version": 1, "results": results}), flush=True)
    if options.groups is not None and contents:
        _files.write_together(options.output, {path.name: data for path, data in contents.items()})
    else:
        _files.write_all(contents)
    for path in contents:
        wrote(options, f"{path}")


def _record(cascade: Cascade, curve: list[CascadeEvaluation], oracle: OracleRouting | None) -> dict[str, Any]:
    """Return what was chosen and how it was judged, ready for JSON."""
    return {
        "cascade": json.loads(cascade.to_json()),
        "curve": [asdict(point) for point in curve],
        "perfect_router": None if oracle is None else asdict(oracle),
    }


def _measured(
    cascade: Cascade, judged: Rows, *, from_logits: bool
) -> tuple[list[CascadeEvaluation], OracleRouting | None]:
    """Return the curve of a cascade, and what a perfect router reaches; where no row judges, neither."""
    if not len(judged):
        return [], None
    read = {"from_logits": from_logits}
    curve = cascade.curve(*judged.arrays, **read) or [cascade.evaluate(*judged.arrays, **read)]
    return curve, None if judged.labels is None else oracle_routing(*judged.arrays, nesting=cascade.dims, **read)


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
    if options.output is not None and options.figure.resolve() == options.output.resolve():
        msg = f"--figure and -o must be two files, got '{options.figure}' for both; rename one."
        raise ValueError(msg)


def _kind(path: Path) -> str:
    return path.suffix[1:] or "png"


def _check_promise(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before any file is read; a bound asks for a promise."""
    if options.confidence == "precomputed":
        msg = (
            "--confidence must be max_probability, margin or entropy, which follow from PROBS.npy, got precomputed; "
            "cascades of confidences of your own are calibrated in Python."
        )
        raise ValueError(msg)
    bounds = [name for name in BOUNDS if getattr(options, name) is not None]
    if options.labels is None and bounds != ["max_disagreement"]:
        got = _options(bounds) or "no bound either"
        msg = f"LABELS.npy must be given for all but --max-disagreement alone, got {got}; add it, or drop the others."
        raise ValueError(msg)
    options.certify = options.certify or bool(bounds)
    if options.certify and options.variant is not None:
        msg = (
            f"--variant is of the published rule, got it with {_options(bounds) or '--certify'}; leave one of them out."
        )
        raise ValueError(msg)
    given = [name for name in (*FOR_CERTIFY, "groups") if getattr(options, name) is not None]
    if given and not options.certify:
        msg = f"{_options(given)} must come with --certify or a bound; the published rule promises nothing."
        raise ValueError(msg)
    if options.groups is not None and options.figure is not None:
        msg = "--groups must come without --figure, which is of one cascade; leave it out."
        raise ValueError(msg)
    if options.groups is not None and options.output is not None and options.output.exists():
        msg = f"-o must be a new folder with --groups, got '{options.output}', a file; name another."
        raise ValueError(msg)
    _check_test(options)


def _check_test(options: argparse.Namespace) -> None:
    n_groups = int(options.groups is not None)
    if options.test is not None and not 1 <= len(options.test) - n_groups <= 2:
        names, number = ("labels, and last groups", "two or three") if n_groups else ("labels", "one or two")
        msg = f"--test must name probabilities and {names}, got {len(options.test)} files; name {number}."
        raise ValueError(msg)


def _options(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _read(options: argparse.Namespace) -> tuple[Rows, Rows]:
    """Read the rows that choose and those that judge."""
    rows = _rows.load(options.probabilities, options.labels, options.dims, options.groups)
    if options.test is None:
        chosen, judged = rows.split(options.seed)
        return chosen, judged.labelled()
    *others, groups = options.test if rows.groups is not None else (*options.test, None)
    judged = _rows.load(others[0], others[1] if len(others) > 1 else None, options.dims, groups, name="--test")
    if strangers := judged.ids - rows.ids:
        msg = (
            f"--test must hold rows of the groups in --groups, got {len(strangers)} other groups, such as "
            f"{min(strangers)}; leave their rows out, and name the groups last."
        )
        raise ValueError(msg)
    return rows, judged.labelled()


def _told(options: argparse.Namespace, n_chosen: int, n_judged: int, group: int | None) -> str:
    """Say how many rows of a group, or of all, chose and how many judge, and which these are."""
    which = f"the {n_judged:,} rows of --test"
    if options.test is None:
        which = f"{n_judged:,} others, drawn from the same file (--test names rows of your own)"
    lead = "" if group is None else f"Group {group}. "
    return f"{lead}Chosen on {n_chosen:,} rows, measured on {which}."


def _calibrate(options: argparse.Namespace, rows: Rows) -> dict[int, Cascade] | dict[None, Cascade]:
    """Return the cascade of each group; None stands for all rows."""
    common: dict[str, Any] = {
        "nesting": options.dims,
        "temperature": options.temperature,
        "from_logits": options.logits,
    }
    if options.confidence is not None:
        common["confidence"] = options.confidence
    if options.certify:
        chosen = {name: value for name in FOR_CERTIFY if (value := getattr(options, name)) is not None}
        found = Cascade.certify(*rows.arrays, **common, **chosen, groups=rows.groups, seed=options.seed)
        return found if isinstance(found, dict) else {None: found}
    return {None: Cascade.calibrate(*rows.arrays, variant=options.variant or "code", **common)}


def report(cascade: Cascade, curve: list[CascadeEvaluation], oracle: OracleRouting | None, told: str) -> str:
    """Return the table and what belongs to it, in plain ASCII."""
    rule = "published rule" if cascade.certificate is None else "certified"
    lines = [*_pictures.wrapped([f"Cascade ({rule}, confidence {cascade.confidence}). {told}"]), ""]
    lines.append(str(curve[-1]) if curve else "No row judges it.")
    if oracle is not None:
        lines.append(
            f"perfect router  {oracle.expected_dim_all:7.1f}  expected dim, right on {oracle.accuracy:.2%} of the rows"
        )
    if cascade.temperatures is not None:
        temperatures = "temperatures    " + ", ".join(f"{t:.3g}" for t in cascade.temperatures)
        lines += ["", *_pictures.wrapped([temperatures], indent=16)]
    promise = f"No promise about new rows: ask for one with --certify, or a bound: {_options([*BOUNDS])}."
    if cascade.certificate is not None:
        promise = f"certificate: {cascade.certificate}."
    lines += ["", *_pictures.wrapped([promise])]
    return "\n".join(lines)


def figure(cascade: Cascade, curve: list[CascadeEvaluation], oracle: OracleRouting | None) -> Any:
    """Draw accuracy, or agreement with the full width, against the expected dimension, with what was promised."""
    drawing = _pictures.new(6.4, 5.2, purpose="--figure")
    CascadeDisplay(curve, oracle=oracle, certificate=cascade.certificate).plot(drawing.subplots())
    return drawing
