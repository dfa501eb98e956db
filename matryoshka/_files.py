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
    write_all({Path(path): data})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write files, each whole: all are written before the first takes its place."""
    written: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            with _naming(path):
                written[path] = _write_beside(path, data)
        for path, temporary in written.items():
            with _naming(path):
                temporary.replace(path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def write_together(folder: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Write files into `folder`, which is made if absent: all are written before the first takes its place."""
    target = Path(folder)
    made = not target.exists()
    target.mkdir(exist_ok=True)
    try:
        write_all({target / name: data for name, data in contents.items()})
    except BaseException:
        if made:
            shutil.rmtree(target)
        raise


def _write_beside(path: Path, data: bytes) -> Path:
    """Write `data` to a temporary file beside `path`, and return that."""
    with tempfile.NamedTemporaryFile(
        "wb", dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
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
    return temporary


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of the system name `path`, not the temporary file behind it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def check_replaceable(path: str | os.PathLike[str], marker: str) -> None:
    """Refuse to replace anything but an empty folder or one that holds the file `marker`, which says whose it is."""
    target = Path(path)
    ours = target.is_dir() and ((target / marker).is_file() or not any(target.iterdir()))
    if target.exists() and not ours:
        msg = (
            f"`path` must be new, empty, or a folder that was saved here before, got {os.fspath(path)!r}, "
            f"which holds other things and no {marker}; choose another path."
        )
        raise FileExistsError(msg)


def check_saved(path: str | os.PathLike[str], marker: str, *, by: str) -> None:
    """Refuse what stands at `path` unless it is a folder with the file `marker`, which the method `by` writes."""
    if Path(path).exists() and not Path(path, marker).is_file():
        msg = f"`path` must be a folder that {by} wrote, got {os.fspath(path)!r} without {marker}; save anew."
        raise ValueError(msg)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, and move it to `path` if the block ends without an error.

    A folder that stands at `path` is replaced only then; until the move, readers see the old one.
    """
    target = Path(path)
    with _naming(target):
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


def load_array(
    path: str | os.PathLike[str],
    name: str = "path",
    *,
    mmap: bool = False,
    remedy: str = "save a numeric array with np.save",
) -> np.ndarray:
    """Read one array from a .npy file, memory-mapped if asked; pickled objects are refused, with a `remedy`.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read; the message calls it the argument `name`.
    ValueError
        The file holds no plain array.
    """
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if mmap else None)
    except OSError as error:
        msg = f"`{name}` must be a file to read, got {os.fspath(path)!r}: {error.strerror}; check the path."
        raise type(error)(msg) from error
    except (ValueError, EOFError) as error:
        msg = f"`{os.fspath(path)}` must be a .npy file of numbers, got {_instead(path)}; {remedy}."
        raise ValueError(msg) from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        msg = f"`{os.fspath(path)}` must hold one array, got an .npz archive; save the one array with np.save."
        raise ValueError(msg)  # noqa: TRY004 (the file's content is wrong, not the kind of an argument)
    return loaded


def _instead(path: str | os.PathLike[str]) -> str:
    """Say what a file that NumPy refused holds."""
    with Path(path).open("rb") as file:
        if file.read(6) != np.lib.format.MAGIC_PREFIX:
            return "a file of another format"
        file.seek(0)
        try:
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            _, _, dtype = read(file)
        except ValueError:
            return "a damaged one"
    if dtype.hasobject:
        return "Python objects (numbers among them can be cast with astype(np.float32))"
    return "a damaged or shortened one"


def _give_usual_permissions(path: Path, mode: int) -> None:
    """Give a temporary file, which is private at first, the permissions of an ordinary new one."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)
