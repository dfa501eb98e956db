"""A corpus as a folder: its rows, what was derived from them, and a JSON file that says what belongs together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka import _checks, _files, _values
from matryoshka._array import to_numpy
from matryoshka._typing import Array
from matryoshka.retrieval._prefix import Prefix, of_block
from matryoshka.retrieval._rows import Rows
from matryoshka.retrieval._scores import METRICS

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def save(path: str | os.PathLike[str], rows: Rows, prefixes: dict[int, Prefix], metric: str) -> None:
    """Write everything to a new folder, which takes its place only when it is whole."""
    _files.check_replaceable(path, "corpus.json")
    with _files.new_folder(path) as folder:
        dtype = _write_rows(folder / "embeddings.npy", rows)
        np.save(folder / "squares.npy", to_numpy(rows.squares))
        if rows.scale is not None:
            np.save(folder / "scale.npy", to_numpy(rows.scale))
        for dim in prefixes:
            if dim < rows.shape[1]:
                np.save(folder / f"prefix-{dim}.npy", to_numpy(prefixes[dim].rows.array))
        record = {
            "kind": "corpus",
            "version": 1,
            "metric": metric,
            "shape": rows.shape,
            "dtype": "bfloat16" if dtype == np.uint16 else dtype.name,
            "search_dims": sorted(prefixes),
            "scaled": rows.scale is not None,
        }
        (folder / "corpus.json").write_text(json.dumps(record), encoding="utf-8")


def load(path: str | os.PathLike[str], *, mmap: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the record and the arrays of a folder, after checking that they fit each other."""
    folder = Path(path)
    record_file = folder / "corpus.json"
    _files.check_saved(folder, "corpus.json", by="Corpus.save")
    keys = ("metric", "shape", "dtype", "search_dims", "scaled")
    record = _values.record(record_file.read_bytes(), kind="corpus", keys=keys, source=record_file)
    n, dim = _shape(record["shape"])
    _checks.choice(record["metric"], "metric", METRICS)
    stored = _checks.choice(record["dtype"], "dtype", _DTYPES)
    sums = np.dtype("float64" if stored == "float64" else "float32")
    raw = np.dtype("uint16" if stored == "bfloat16" else stored)
    expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "embeddings": ((n, dim), raw),
        "squares": ((n,), sums),
    }
    if record["scaled"]:
        expected["scale"] = (n,), sums
    for width in record["search_dims"]:
        if _checks.integer(width, "search_dims", minimum=1, maximum=dim) < dim:
            expected[f"prefix-{width}"] = (n, width), sums
    arrays = {}
    for name, (shape, dtype) in expected.items():
        file = folder / f"{name}.npy"
        arrays[name] = array = _read(file, mmap=mmap and name == "embeddings")
        if array.shape != shape or array.dtype != dtype:
            msg = (
                f"`{file}` must hold {dtype} of shape {shape}, as corpus.json says, got {array.dtype} of shape "
                f"{array.shape}; the folder is damaged or mixed from several: save the corpus anew."
            )
            raise ValueError(msg)
    return record, arrays


def restore(record: dict[str, Any], arrays: dict[str, Array], rows: Rows) -> tuple[Rows, dict[int, Prefix]]:
    """Return rows with what was derived from them, and their prefixes; `arrays` are of the library of `rows`."""
    rows, metric = rows.knowing(scale=arrays.get("scale"), squares=arrays["squares"]), record["metric"]
    return rows, {dim: of_block(rows, dim, metric, arrays.get(f"prefix-{dim}")) for dim in record["search_dims"]}


def _shape(sizes: object) -> tuple[int, int]:
    if not isinstance(sizes, list) or len(sizes) != 2:
        msg = f"`shape` must hold two sizes, got {sizes!r} in corpus.json; the folder is damaged: save the corpus anew."
        raise ValueError(msg)
    n, dim = (_checks.integer(size, "shape", minimum=1) for size in sizes)
    return n, dim


def _read(file: Path, *, mmap: bool) -> np.ndarray:
    if not file.is_file():
        msg = f"`{file}` must exist, as corpus.json says; the folder is damaged: save the corpus anew."
        raise ValueError(msg)
    return _files.load_array(file, mmap=mmap, remedy="the folder is damaged: save the corpus anew")


def _write_rows(file: Path, rows: Rows) -> np.dtype[Any]:
    """Write the rows as they were given, a block at a time, bfloat16 as its bits; return what was written."""
    with file.open("wb") as stream:
        for block in rows.blocks():
            part = np.ascontiguousarray(rows.raw(block))
            if block.start == 0:
                descr = np.lib.format.dtype_to_descr(part.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": rows.shape}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(part.data.cast("B"))
        stream.flush()
        os.fsync(stream.fileno())
    return part.dtype
