"""Read files without executing anything in them, and write files completely or not at all."""

from __future__ import annotations

import functools
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, the leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]
Result = TypeVar("Result")

_TRIES = 5

_HIDDEN = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(tmp|old)")
"""Hidden names beside a path: `.tmp` is being written or was replaced, `.old` is just being replaced."""


def write_text(path: PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write `data` to `path`, completely or not at all."""
    write_all({Path(path): data})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write files, each completely, and all before the first replaces another. Links are followed and kept."""
    with ExitStack() as stack:
        written = []
        for path, data in contents.items():
            with naming(path):
                place = real(path)
                _clear_leftovers(place)
                written.append((path, place, stack.enter_context(_write_beside(place, data))))
        for path, place, temporary in written:
            with naming(path):
                temporary.replace(place)
        for folder in {place.parent for _, place, _ in written}:
            sync_folder(folder)


def write_together(folder: PathLike, contents: Mapping[str, bytes]) -> None:
    """Write files into `folder`, which is made if absent, all of them before the first replaces another."""
    target = Path(folder)
    made = not target.exists()
    target.mkdir(exist_ok=True)
    try:
        write_all({target / name: data for name, data in contents.items()})
    except BaseException:
        if made:
            for name in contents:
                (target / name).unlink(missing_ok=True)
            with suppress(OSError):  # another process has put something there
                target.rmdir()
        raise


def _clear_leftovers(target: Path) -> None:
    """Remove the temporary files that killed processes have left beside `target`."""
    for path in hidden(target, ".tmp"):
        with locked(path) as dead, suppress(OSError):
            if dead and path.is_file():
                path.unlink()


@contextmanager
def _write_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a temporary file beside `path` that holds `data`; it is removed if it is still there after the block."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        msg = f"`path` must be a file, got {os.fspath(path)!r}, which is a device or the like; choose another path."
        raise FileExistsError(msg)
    with hidden_beside(path, functools.partial(Path.touch, exist_ok=False)) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def checksum(file: PathLike) -> int:
    """Return the CRC-32 of a file."""
    with Path(file).open("rb") as stream:
        parts = iter(functools.partial(stream.read, 1 << 20), b"")
        return functools.reduce(lambda value, part: zlib.crc32(part, value), parts, 0)


def load_array(
    path: PathLike, name: str = "path", *, mmap: bool = False, remedy: str = "save a numeric array with np.save"
) -> np.ndarray:
    """Read one array from a .npy file, memory-mapped with `mmap`; pickled objects are refused.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read; the message calls it the argument `name`.
    ValueError
        The file holds no plain array, or less than its header claims, which is noticed before memory is allocated. The
        message ends with `remedy`.
    """
    try:
        if (fault := _parsing(_fault, path)) is None:
            return _parsing(np.load, path, allow_pickle=False, mmap_mode="r" if mmap else None)
    except OSError as error:
        msg = f"`{name}` must be a file to read, got {os.fspath(path)!r}: {error.strerror}; check the path."
        raise type(error)(msg) from error
    except MemoryError as error:
        msg = f"`{name}` must be a file that fits into memory, got {os.fspath(path)!r}; make memory free."
        raise OSError(msg) from error
    except Exception as error:  # of whatever type NumPy happens to raise
        msg = f"`{os.fspath(path)}` must be a .npy file of numbers, got a damaged one; {remedy}."
        raise ValueError(msg) from error
    if fault == "an .npz archive":
        msg = f"`{os.fspath(path)}` must hold one array, got an .npz archive; save the one array with np.save."
    else:
        msg = f"`{os.fspath(path)}` must be a .npy file of numbers, got {fault}; {remedy}."
    raise ValueError(msg)


def _parsing(read: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Read a .npy file, whose header Python's parser reads, which up to 3.11 may fail beside that of another thread."""
    for _ in range(_TRIES - 1):
        with suppress(SystemError):  # "AST constructor recursion depth mismatch": python/cpython#106905
            return read(*arguments, **options)
    return read(*arguments, **options)


def _fault(path: PathLike) -> str | None:
    """Say what is wrong with a .npy file; None if it holds an array of numbers as large as its header claims."""
    with Path(path).open("rb") as file:
        start = file.read(6)
        if start != np.lib.format.MAGIC_PREFIX:
            return "an .npz archive" if start.startswith(b"PK\3\4") else "a file of another format"
        file.seek(0)
        try:
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except SystemError:
            raise
        except Exception:  # of whatever type Python's parser raises
            return "a damaged one"
        there = os.fstat(file.fileno()).st_size - file.tell()
    if dtype.hasobject:
        return "Python objects (numbers among them can be cast with astype(np.float32))"
    whole = min(shape, default=1) >= 0 and math.prod(shape) * dtype.itemsize <= there
    return None if whole else "a damaged or shortened one"


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Make errors of the system name `path`, not the temporary file behind it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of our own, with its own message
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def real(path: PathLike) -> Path:
    """Return where a path leads, through all links."""
    return Path(os.path.realpath(path))


def visible(path: Path) -> str:
    """Return the name that a hidden one stands for."""
    hidden = _HIDDEN.fullmatch(path.name)
    return path.name if hidden is None else hidden[1]


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def hidden(target: Path, suffix: str) -> list[Path]:
    """Return what is beside `target` under one of its hidden names with this suffix."""
    return [path for path in entries(target.parent) if path.suffix == suffix and visible(path) == target.name]


@contextmanager
def hidden_beside(target: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Make something under a hidden name of `target`, locked during the block so that other saves leave it alone."""
    while True:
        path = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        make(path)
        with locked(path, wait=True):
            if path.exists():  # else another save took it for a leftover just before it was locked
                yield path
                return


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to lock a path during the block, and yield whether it is locked; the lock ends with the process at latest."""
    if fcntl is None:
        yield False
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, on systems where that can be asked for."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
