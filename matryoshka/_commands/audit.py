"""The command `matryoshka audit`: can these embeddings be truncated, and down to which width?"""

from __future__ import annotations

import argparse
from typing import Any

from matryoshka import _files
from matryoshka._commands._options import folder, publish, require_plots, widths
from matryoshka.audit import audit


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "audit",
        help="tell whether embeddings can be truncated",
        description="Tell from embeddings alone whether they can be cut to a prefix, down to which width, and what "
        "that loses, beside random columns and principal directions. Prints a verdict and a table.",
    )
    parser.add_argument("embeddings", metavar="EMB.npy", help="array (rows, columns); large files are sampled")
    parser.add_argument("--labels", metavar="L.npy", help="array (rows,) of class ids: adds accuracies to the table")
    parser.add_argument(
        "--dims", type=widths, metavar="8,16,...", help="widths; default the full one, halved down to 8"
    )
    parser.add_argument("--k", type=int, default=10, help="nearest neighbours that are to be kept; default 10")
    parser.add_argument("--seed", type=int, default=0, help="draws rows and column orders; default 0")
    parser.add_argument(
        "-o", "--output", type=folder, metavar="DIR", help="write audit.txt, audit.json and audit.png to this folder"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Audit, print the result, and then write it."""
    require_plots(options.output, "-o")
    embeddings = _files.load_array(options.embeddings, "EMB.npy", mmap=True)
    labels = None if options.labels is None else _files.load_array(options.labels, "--labels")
    report = audit(embeddings, labels=labels, dims=options.dims, k=options.k, seed=options.seed)
    publish(report, "audit", options.output, dpi=150)
