"""Read and write files so that nothing is executed by reading and nothing is half written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8: whole, or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`: whole, or not at all."""
    target = Path(path)
    with tempfile.NamedTemporaryFile(
        "wb", dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
    _give_usual_permissions(temporary, 0o666)
    temporary.replace(target)


def write_together(folder: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Write files into `folder`, which is made if absent: all are written before the first takes its place."""
    target = Path(folder)
    made = not target.exists()
    target.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target, prefix=".", suffix=".tmp") as temporary:
            for name, data in contents.items():
                write_bytes(Path(temporary, name), data)
            for name in contents:
                Path(temporary, name).replace(target / name)
    except BaseException:
        if made:
            shutil.rmtree(target)
        raise


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, and move it to `path` if the block ends without an error.

    A folder that stands at `path` is replaced only then; until the move, readers see the old one.
    """
    target = Path(path)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield temporary
        _give_usual_permissions(temporary, 0o777)
        if target.exists():
            old = temporary.with_suffix(".old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_array(path: str | os.PathLike[str], *, mmap: bool = False) -> np.ndarray:
    """Read one array from a .npy file, memory-mapped if asked; pickled objects are refused.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file holds no plain array.
    """
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if mmap else None)
    except (ValueError, EOFError) as error:
        msg = f"`{os.fspath(path)}` must be a .npy file of numbers, got something else ({error}); save it with np.save."
        raise ValueError(msg) from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        msg = f"`{os.fspath(path)}` must hold one array, got an .npz archive; save the one array with np.save."
        raise ValueError(msg)  # noqa: TRY004 (the file's content is wrong, not the kind of an argument)
    return loaded


def _give_usual_permissions(path: Path, mode: int) -> None:
    """Give a temporary file, which is private at first, the permissions of an ordinary new one."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)
