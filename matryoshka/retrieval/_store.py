"""A corpus as a folder: its rows, what was derived from them, and a JSON file that says what belongs together."""

from __future__ import annotations

import json
import os
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka import _checks, _files, _folders, _values
from matryoshka._array import to_numpy
from matryoshka._typing import Array
from matryoshka.retrieval._codes import WORD, Code, of_words
from matryoshka.retrieval._prefix import Prefix, of_block
from matryoshka.retrieval._rows import HostRows, Rows

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_KEYS = ("metric", "shape", "dtype", "search_dims", "scaled")
_BITS = "search_bits"
"""Key of the widths that are coded, where there are any: folders from before there were codes have none."""


def save(
    path: str | os.PathLike[str], rows: Rows, prefixes: dict[int, Prefix], bits: dict[int, Code], metric: str
) -> None:
    """Write everything to a new folder, which takes its place only when it is whole."""
    prefixes, bits = dict(prefixes), dict(bits)  # searches on other threads may add to them
    small = {"squares": rows.squares}
    if rows.scale is not None:
        small["scale"] = rows.scale
    small |= {f"prefix-{dim}": prefixes[dim].rows.array for dim in prefixes if dim < rows.shape[1]}
    for dim, code in bits.items():
        small |= {f"bits-{dim}": code.words, f"mean-{dim}": code.mean}
    with _folders.new_folder(path, _folders.CORPUS) as folder:
        dtype, checksum = _write_rows(folder / "embeddings.npy", rows)
        checksums = {"embeddings": checksum}
        for name, array in small.items():
            host = np.ascontiguousarray(to_numpy(array))
            np.save(folder / f"{name}.npy", host)
            checksums[name] = _checksum(host)
        record = {
            "kind": "corpus",
            "version": 1,
            "metric": metric,
            "shape": rows.shape,
            "dtype": "bfloat16" if dtype == np.uint16 else dtype.name,
            "search_dims": sorted(prefixes),
            "scaled": rows.scale is not None,
        }
        if bits:
            record[_BITS] = sorted(bits)
        text = json.dumps(_values.sealed(record, checksums))
        (folder / _folders.CORPUS.record).write_text(text, encoding="utf-8")


def load(path: str | os.PathLike[str], *, mmap: bool, verify: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the record and the arrays of a folder, after checking that they fit each other and are as they were saved.

    Rows that stay in their file are compared with their checksum only on request.
    """
    read = partial(_read, mmap=mmap, verify=verify)
    return _folders.read_folder(path, _folders.CORPUS, read, by="Corpus.save")


def _read(folder: Path, text: bytes, *, mmap: bool, verify: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    source = folder / _folders.CORPUS.record
    record = _values.record(text, kind="corpus", keys=_KEYS, source=source)
    with _values.reading("corpus", source):
        expected = _expected(record)
        checksums = _values.checksums(record, expected)
    arrays = {}
    for name, (shape, dtype) in expected.items():
        file, mapped = folder / f"{name}.npy", mmap and name == "embeddings"
        arrays[name] = array = _load(file, shape, dtype, mmap=mapped)
        if checksums is not None and (verify or not mapped):
            _values.check_sum(checksums[name], _checksum(array), source=file)
        if name in ("squares", "scale"):
            _check_lengths(array, file, positive=name == "scale")
    for dim in record.get(_BITS, ()):
        _check_bits(arrays[f"bits-{dim}"], arrays[f"mean-{dim}"], folder / f"bits-{dim}.npy")
    _values.check_seal(record, (*_KEYS, _BITS), source=source)
    return record, arrays


def _expected(record: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of each array of a record, after checking what it says."""
    n, dim = _shape(record["shape"])
    _checks.choice(record["metric"], "metric", _checks.METRICS)
    stored = _checks.choice(record["dtype"], "dtype", _DTYPES)
    for name, kind in (("search_dims", list), ("scaled", bool)):
        if not isinstance(record[name], kind):
            msg = f"`{name}` must be a {kind.__name__}, got {_checks.describe(record[name])}; save the corpus anew."
            raise ValueError(msg)  # noqa: TRY004 (the file's content is wrong, not the kind of an argument)
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
    for width in _coded(record):
        expected[f"bits-{width}"] = (-(-width // WORD), n), np.dtype(np.uint64)
        expected[f"mean-{width}"] = (width,), sums
    return expected


def _coded(record: dict[str, Any]) -> list[int]:
    """Return the widths that are coded."""
    widths = record.get(_BITS, [])
    if not isinstance(widths, list):
        msg = f"`{_BITS}` must be a list, got {_checks.describe(widths)}; save the corpus anew."
        raise ValueError(msg)  # noqa: TRY004 (the file's content is wrong, not the kind of an argument)
    return [_checks.integer(width, _BITS, minimum=1, maximum=record["shape"][1]) for width in widths]


def restore(
    record: dict[str, Any], arrays: dict[str, Array], rows: Rows
) -> tuple[Rows, dict[int, Prefix], dict[int, Code]]:
    """Return rows with what was derived from them, their prefixes, and on the host their codes.

    The `arrays` are of the library of `rows`.
    """
    rows, metric = rows.knowing(scale=arrays.get("scale"), squares=arrays["squares"]), record["metric"]
    prefixes = {dim: of_block(rows, dim, metric, arrays.get(f"prefix-{dim}")) for dim in record["search_dims"]}
    if not isinstance(rows, HostRows):
        return rows, prefixes, {}
    bits = {dim: of_words(rows, arrays[f"bits-{dim}"], arrays[f"mean-{dim}"], metric) for dim in record.get(_BITS, ())}
    return rows, prefixes, bits


def _shape(sizes: object) -> tuple[int, int]:
    if not isinstance(sizes, list) or len(sizes) != 2:
        msg = f"`shape` must hold two sizes, got {_checks.describe(sizes)}; save the corpus anew."
        raise ValueError(msg)
    n, dim = (_checks.integer(size, "shape", minimum=1) for size in sizes)
    return n, dim


def _load(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, mmap: bool) -> np.ndarray:
    if not file.is_file():
        msg = f"`{file}` must exist, as corpus.json says; the folder is damaged: save the corpus anew."
        raise ValueError(msg)
    array = _files.load_array(file, mmap=mmap, remedy="the folder is damaged: save the corpus anew")
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else ", column by column"
        msg = (
            f"`{file}` must hold {dtype} of shape {shape}, as corpus.json says, got {array.dtype} of shape "
            f"{array.shape}{order}; the folder is damaged or mixed from several: save the corpus anew."
        )
        raise ValueError(msg)
    return array


def _check_lengths(array: np.ndarray, file: Path, *, positive: bool) -> None:
    """Check what rows are measured with, also in folders from before there were checksums."""
    least, limit = array.min(), "> 0" if positive else ">= 0"
    if not (np.isfinite(array).all() and (least > 0 if positive else least >= 0)):
        msg = f"`{file}` must hold finite numbers {limit}, got others; the folder is damaged: save the corpus anew."
        raise ValueError(msg)


def _check_bits(words: np.ndarray, mean: np.ndarray, file: Path) -> None:
    """Check that a code and its mean are such as we write, also where a record was made to fit other files."""
    left_over = len(mean) % WORD
    if not np.isfinite(mean).all() or (left_over and (words[-1] >> np.uint64(left_over)).any()):
        msg = (
            f"`{file}` must hold {len(mean)} bits for each row, and the file of their mean finite numbers, got others; "
            "the folder is damaged or mixed from several: save the corpus anew."
        )
        raise ValueError(msg)


def _checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of the numbers of an array, of whose file a few megabytes stay mapped."""
    if array.ndim == 1 or array.dtype == np.uint64:  # codes are read into memory
        return zlib.crc32(array.data.cast("B"))
    rows, checksum = HostRows(array), 0
    for block in rows.blocks():
        checksum = zlib.crc32(rows.raw(block).data.cast("B"), checksum)
    return checksum


def _write_rows(file: Path, rows: Rows) -> tuple[np.dtype[Any], int]:
    """Write the rows as they were given, a block at a time, bfloat16 as its bits; return dtype and checksum."""
    checksum = 0
    with file.open("wb") as stream:
        for block in rows.blocks():
            part = np.ascontiguousarray(rows.raw(block))
            if block.start == 0:
                descr = np.lib.format.dtype_to_descr(part.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": rows.shape}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(part.data.cast("B"))
            checksum = zlib.crc32(part.data.cast("B"), checksum)
    return part.dtype, checksum
