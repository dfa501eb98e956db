"""Arrays as commands take them: an .npy file, or by its name one of an archive, a table or a data set on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka import _files
from matryoshka._array import row_blocks
from matryoshka._optional import require

_MEMORY = "must fit into memory, where all but .npy files are read; make memory free, or write it as an .npy file"


def load_array(place: str, name: str, *, mmap: bool = False) -> np.ndarray:
    """Read one array.

    Parameters
    ----------
    place : str
        FILE.npy; FILE.npz:NAME; FILE.parquet:COLUMN; or FOLDER:COLUMN, of a data set that `datasets` saved. A name
        may be left out where there is but one. What a file is, its first bytes tell.
    name : str
        What the command calls it, for messages.
    mmap : bool, default False
        Whether an .npy file is to be mapped; the others are read into memory.

    Raises
    ------
    ImportError
        A table or a data set needs the extra `datasets`.
    OSError
        There is no such file, or it cannot be read.
    ValueError
        What it holds is not an array of numbers; pickled objects are refused.
    """
    path, chosen = _parts(place)
    if path.exists() and not (path.is_file() or path.is_dir()):
        msg = f"`{name}` must be a file to read, got {place!r}, a pipe or a device; write it to a file first."
        raise ValueError(msg)
    start = _start(path)
    if start == b"PK\3\4":
        return _of_archive(path, chosen)
    if start == b"PAR1":
        return _of_table(path, chosen)
    if (path / "state.json").is_file():
        return _of_data_set(path, chosen)
    if (path / "dataset_dict.json").is_file():
        msg = f"`{name}` must be one split of a data set, got all of {str(path)!r}; name one of its folders."
        raise ValueError(msg)
    return _files.load_array(place, name, mmap=mmap)


def bad_rows(array: np.ndarray) -> list[int]:
    """Return which rows (n, width) hold NaN or infinity, reading a block at a time."""
    blocks = row_blocks(len(array), max(1, 2**22 // max(1, array.shape[1])))
    found: list[int] = np.flatnonzero(
        np.concatenate([~np.isfinite(array[block]).all(axis=1) for block in blocks])
    ).tolist()
    return found


def _parts(place: str) -> tuple[Path, str | None]:
    """Split FILE:NAME, unless that is itself the name of a file."""
    before, colon, after = place.rpartition(":")
    if colon and not Path(place).exists() and Path(before).exists():
        return Path(before), after
    return Path(place), None


def _start(path: Path) -> bytes:
    """Return the first bytes of a file; nothing of one that cannot be read, which whoever reads it will say."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _of_archive(path: Path, chosen: str | None) -> np.ndarray:
    with _reading(path, "an archive that np.savez wrote"):
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in archive.infolist()}
        found = np.load(path, allow_pickle=False)
    with found:
        key = _one(list(sizes), chosen, path)
        with _reading(f"{path}:{key}", "an array of numbers without Python objects"):
            array = found[key]
    if not isinstance(array, np.ndarray):
        msg = f"`{path}:{key}` must be an array, got another file in the archive; name an array."
        raise ValueError(msg)  # noqa: TRY004 (what is wrong is the file)
    return array


def _of_table(path: Path, chosen: str | None) -> np.ndarray:
    parquet = require("pyarrow.parquet", extra="datasets", purpose="a .parquet file")
    with _reading(path, "a .parquet file"):
        table = parquet.ParquetFile(path)
    key = _one(table.schema_arrow.names, chosen, path)
    with _reading(path, "a .parquet file"):
        column = table.read(columns=[key]).column(key)
    return _numbers(column, f"{path}:{key}")


def _of_data_set(path: Path, chosen: str | None) -> np.ndarray:
    datasets = require("datasets", extra="datasets", purpose="a data set of Hugging Face")
    datasets.utils.disable_progress_bars()
    with _reading(path, "a data set that save_to_disk wrote"):
        rows = datasets.load_from_disk(path)
    key = _one(rows.column_names, chosen, path)
    with _reading(path, "a data set that save_to_disk wrote"):
        column = rows.select_columns([key]).with_format("arrow")[:].column(key)
    return _numbers(column, f"{path}:{key}")


@contextmanager
def _reading(place: Path | str, rule: str) -> Iterator[None]:
    """Say in one line what could not be read, whatever the reader tripped over."""
    try:
        yield
    except MemoryError as error:
        msg = f"`{place}` {_MEMORY}."
        raise OSError(msg) from error
    except Exception as error:
        msg = f"`{place}` must be {rule}, got one that cannot be read: {error}; write it anew."
        raise ValueError(msg) from error


def _one(names: Sequence[str], chosen: str | None, path: Path) -> str:
    """Return the name that was chosen, or the only one there is."""
    if chosen in names or (chosen is None and len(names) == 1):
        return names[0] if chosen is None else chosen
    shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
    got = "none" if chosen is None else repr(chosen)
    remedy = f"write {path}:{names[0]}, for instance" if names else "name another file"
    msg = f"`{path}` must be followed by the name of one of its arrays ({shown}), got {got}; {remedy}."
    raise ValueError(msg)


def _numbers(column: Any, place: str) -> np.ndarray:
    """Return a column of numbers, or of lists of them that are all as long, as one array."""
    blocks = [_block(chunk, place) for chunk in column.chunks if len(chunk)]
    if len({block.shape[1:] for block in blocks}) != 1:
        raise _refusal(place, "lists of several lengths" if blocks else "no row")
    return np.concatenate(blocks)


def _block(array: Any, place: str) -> np.ndarray:
    """Return one piece of a column, level by level."""
    import pyarrow as pa  # whatever read the column brought it

    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    is_a, kind = pa.types, array.type
    if array.null_count:
        raise _refusal(place, "missing values")
    if is_a.is_integer(kind) or is_a.is_floating(kind):
        numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
        return numbers
    if not (is_a.is_list(kind) or is_a.is_large_list(kind) or is_a.is_fixed_size_list(kind)):
        raise _refusal(place, str(kind))
    inner = _block(array.flatten(), place)
    if len(np.unique(array.value_lengths().to_numpy())) != 1:
        raise _refusal(place, "lists of several lengths")
    return inner.reshape(len(array), -1, *inner.shape[1:])


def _refusal(place: str, got: str) -> ValueError:
    return ValueError(
        f"`{place}` must hold numbers, or lists of them that are all as long, got {got}; name another column."
    )
