"""The command `matryoshka apply`: let a saved cascade answer new rows."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from matryoshka import _files, _pictures
from matryoshka._commands import _rows
from matryoshka._commands._options import add_json, folder, wrote
from matryoshka.cascade import Cascade

DESCRIPTION = (
    "Let a cascade that `matryoshka calibrate -o` wrote answer new rows. Prints where rows exit and "
    "what it costs, and with labels how good the answers are, with 95 % intervals (Wilson)."
)
EXAMPLE = "matryoshka apply cascade.json PROBS.npy LABELS.npy -o answers"


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("cascade", metavar="CASCADE.json", help="the cascade")
    parser.add_argument("probabilities", metavar="PROBS.npy", help="array (prefixes, rows, classes), narrowest first")
    parser.add_argument("labels", nargs="?", metavar="LABELS.npy", help="array (rows,) of class ids, -1 for none")
    parser.add_argument("--logits", action="store_true", help="PROBS.npy holds logits")
    parser.add_argument(
        "-o", "--output", type=folder, metavar="DIR", help="write answers.npy and exit_dims.npy to this folder"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Apply, print the result, and then write it."""
    cascade = _cascade(options.cascade)
    if cascade.confidence == "precomputed":
        msg = f"{options.cascade} must decide by the probabilities, got precomputed confidences; use it in Python."
        raise ValueError(msg)
    rows = _rows.load(options.probabilities, options.labels, cascade.dims)
    rows.doing("measuring on")
    evaluation = cascade.evaluate(*rows.labelled().arrays, from_logits=options.logits)
    if options.json:
        record = {"kind": "application", "version": 1, "cascade": json.loads(cascade.to_json())}
        print(json.dumps(record | {"evaluation": asdict(evaluation)}), flush=True)
    else:
        print(*_pictures.wrapped([f"Cascade of {options.cascade} (confidence {cascade.confidence})."]), "", sep="\n")
        print(evaluation)
        if cascade.certificate is not None:
            print("", *_pictures.wrapped([f"certificate: {cascade.certificate}."]), sep="\n")
    if options.output is None:
        return
    rows.doing("answering")
    answers, exit_dims = cascade.predict(rows.probabilities, from_logits=options.logits)
    contents = {"answers.npy": _stored(answers), "exit_dims.npy": _stored(exit_dims)}
    _files.write_together(options.output, contents)
    wrote(options, " and ".join(str(options.output / name) for name in contents))


def _cascade(path: str) -> Cascade:
    """Read a cascade; of a folder of groups, say which files may be meant."""
    if not Path(path).is_dir():
        try:
            return Cascade.load(path)
        except OSError as error:
            msg = f"CASCADE.json must be a file to read, got {path!r}: {error.strerror}; name what calibrate -o wrote."
            raise ValueError(msg) from error
    groups = sorted(each.name for each in Path(path).glob("*.json"))
    which = f"the cascades {', '.join(groups[:3])}{', ...' * (len(groups) > 3)}" if groups else "no cascade"
    remedy = f"name that of a group, such as {Path(path, groups[0])}" if groups else "name a file"
    msg = f"CASCADE.json must be one file, got the folder {path!r} with {which}; {remedy}."
    raise ValueError(msg)


def _stored(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
