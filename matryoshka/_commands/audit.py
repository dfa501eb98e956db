"""The command `matryoshka audit`: can these embeddings be truncated, and down to which width?"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from matryoshka import _checks, _files, _folders
from matryoshka._commands._inputs import load_array
from matryoshka._commands._options import add_json, folder, integer, publish, require_plots, widths, wrote
from matryoshka.audit import audit
from matryoshka.rotation import Rotation

MOST_ROWS = 4096
"""Rows that are audited; of more a sample."""


DESCRIPTION = (
    "Tell from embeddings alone whether they can be cut to a prefix, down to which width, and what "
    "that loses, beside random columns and after a rotation. Prints a verdict, a recommendation and a table."
)
EXAMPLE = "matryoshka audit EMB.npy --labels L.npy --dims 32,64,128 -o report"


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("embeddings", metavar="EMB.npy", help="array (rows, columns); large files are sampled")
    parser.add_argument("--labels", metavar="L.npy", help="array (rows,) of class ids: adds accuracies to the table")
    parser.add_argument(
        "--dims", type=widths, metavar="8,16,...", help="widths; default the full one, halved down to 8"
    )
    parser.add_argument("--k", type=integer, default=10, help="nearest neighbours that are to be kept; default 10")
    parser.add_argument("--seed", type=integer, default=0, help="draws rows and column orders; default 0")
    parser.add_argument(
        "-o", "--output", type=folder, metavar="DIR", help="write audit.txt, audit.json and audit.png to this folder"
    )
    parser.add_argument(
        "--rotation",
        type=rotation_folder,
        metavar="DIR",
        help="fit a rotation on the file, and write it to this folder: new, empty, or one that holds a rotation",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Audit, print the result, and then write it, and a rotation."""
    require_plots(options.output, "-o")
    _check_apart(options.output, options.rotation)
    k = _checks.integer(options.k, "--k", minimum=1, maximum=(MOST_ROWS - 1) // 2)
    embeddings = load_array(options.embeddings, "EMB.npy", mmap=True)
    labels = None if options.labels is None else load_array(options.labels, "--labels")
    rotation = None if options.rotation is None else _fitted(embeddings)
    report = audit(embeddings, labels=labels, dims=options.dims, k=k, max_rows=MOST_ROWS, seed=options.seed)
    publish(report, "audit", options, dpi=150)
    if rotation is not None:
        with _files.naming(options.rotation):
            rotation.save(options.rotation)
        where = os.fspath(options.rotation)
        wrote(options, f"{where}: Rotation.load({where!r}).apply(rows) turns rows and queries, before they are cut")


def _fitted(embeddings: np.ndarray) -> Rotation:
    """Fit a rotation before the audit, so that what cannot be done is known before any work."""
    try:
        return Rotation.fit(embeddings)
    except (TypeError, ValueError) as error:
        msg = f"--rotation must get rows that it can be fitted on, or be left out: {error}"
        raise ValueError(msg) from error


def _check_apart(output: Path | None, rotation: Path | None) -> None:
    if output is not None and rotation is not None and output.resolve() == rotation.resolve():
        msg = f"`--rotation` must be another folder than `-o`, got {os.fspath(rotation)!r} for both; choose two."
        raise ValueError(msg)


def rotation_folder(text: str) -> Path:
    """Read the path of a folder to write a rotation to: that it can be, and holds nothing else, is known at once."""
    path = folder(text)
    try:
        _folders.ROTATION.check_replaceable(text, path)
    except FileExistsError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
    return path
