"""Folders that are saved and read as a unit: replaced in one step, and only if they hold nothing but our files."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from matryoshka import _files
from matryoshka._files import PathLike

Result = TypeVar("Result")

_TRIES = 20


@dataclass(frozen=True)
class Layout:
    """What a folder of one kind holds. Its record and its names tell our folders from others.

    Attributes
    ----------
    kind : str
        The kind that the record gives.
    record : str
        Name of the JSON file that describes the folder.
    files : str
        Regular expression of the names of all other files.
    folders : mapping of str to Layout
        Folders within it.
    """

    kind: str
    record: str
    files: str
    folders: Mapping[str, Layout] = field(default_factory=dict)

    def within(self, path: Path) -> Layout | None:
        """Return the layout of a folder within; None if it is not one of ours."""
        return self.folders.get(_files.visible(path)) if path.is_dir() and not path.is_symlink() else None

    def has_file(self, path: Path) -> bool:
        """Tell whether a path in such a folder is a file with one of our names."""
        name = _files.visible(path)
        ours = name == self.record or re.fullmatch(self.files, name) is not None
        return ours and path.is_file() and not path.is_symlink()

    def strangers(self, folder: Path) -> list[str]:
        """Return the names of what a folder holds that is not ours."""
        found: list[str] = []
        for path in sorted(folder.iterdir()):
            if (inner := self.within(path)) is not None:
                found += [f"{path.name}/{name}" for name in inner.strangers(path)]
            elif self.has_file(path):
                found += [path.name] if path.name == self.record and not self._is_record(path) else []
            elif os.path.lexists(path):  # else a concurrent save has just replaced the folder
                found.append(path.name)
        return found

    def _is_record(self, path: Path) -> bool:
        try:
            record = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return False
        return isinstance(record, dict) and record.get("kind") == self.kind

    def check_replaceable(self, path: PathLike, target: Path) -> None:
        """Refuse to replace anything but an empty folder or one that holds only what was saved before."""
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        if not (target / self.record).is_file():
            holds, remedy = f"which holds other things and no {self.record}", "choose another path"
        elif others := self.strangers(target):
            shown = ", ".join(others[:5]) + (" and more" if len(others) > 5 else "")
            holds, remedy = f"which also holds {shown}", "move that elsewhere or choose another path"
        else:
            return
        msg = (
            f"`path` must be new, empty, or a folder that was saved here before, got {os.fspath(path)!r}, {holds}; "
            f"{remedy}."
        )
        raise FileExistsError(msg)


CORPUS = Layout("corpus", "corpus.json", r"(embeddings|squares|scale|(prefix|bits|mean)-\d+)\.npy")
"""What Corpus.save writes."""

ROTATION = Layout("rotation", "rotation.json", r"(matrix|energy)\.npy")
"""What Rotation.save writes."""


@contextmanager
def new_folder(path: PathLike, layout: Layout) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to fill, which replaces `path` if the block ends without an error.

    An existing folder is replaced in one step, and only if it is of the same layout; until then, readers see the old
    one. A link is followed and kept.
    """
    target = _files.real(path)
    _put_back(target)
    layout.check_replaceable(path, target)
    _clear_leftovers(target, layout)
    with ExitStack() as stack:
        with _files.naming(path):
            new = stack.enter_context(_files.hidden_beside(target, Path.mkdir))
        try:
            yield new
            with _files.naming(path):
                _sync(new)
                _switch(new, target)
                _files.sync_folder(target.parent)
        finally:
            _remove(new, layout, heir=target)  # the folder that was replaced, or one that was not finished


def read_folder(path: PathLike, layout: Layout, read: Callable[[Path, bytes], Result], *, by: str) -> Result:
    """Return `read(folder, text of its record)`; `by` names in errors the method that writes such folders.

    If a save has replaced the folder meanwhile, it is read again.
    """
    for _ in range(_TRIES):
        before, error = _state(path, layout), None
        try:
            result = read(before.folder, before.checked_text(path, layout, by))
        except (OSError, ValueError) as caught:
            error = caught
        if _state(path, layout) == before:
            if error is not None:
                raise error
            return result
    msg = f"`path` must rest while it is read, got {os.fspath(path)!r}, which is saved again and again; load it later."
    raise OSError(msg)


class _State(NamedTuple):
    """What a save changes: where the folder is, its inode number (None: no such folder), and the text of its record."""

    folder: Path
    number: int | None
    text: bytes | None

    def checked_text(self, path: PathLike, layout: Layout, by: str) -> bytes:
        """Return the text of the record, or raise an error if there is none."""
        if self.number is None:
            msg = (
                f"`path` must be a folder that {by} wrote, got {os.fspath(path)!r}, which is not there; check the path."
            )
            raise FileNotFoundError(msg)
        if self.text is None:
            msg = (
                f"`path` must be a folder that {by} wrote, got {os.fspath(path)!r} without {layout.record}; save anew."
            )
            raise ValueError(msg)
        return self.text


def _state(path: PathLike, layout: Layout) -> _State:
    folder = _standing(path)
    try:
        number = folder.stat().st_ino
    except FileNotFoundError:
        return _State(folder, None, None)
    try:
        return _State(folder, number, (folder / layout.record).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return _State(folder, number, None)


def _clear_leftovers(target: Path, layout: Layout) -> None:
    """Remove the folders that killed processes have left beside `target`."""
    for path in _files.hidden(target, ".tmp") + list(filter(_is_abandoned, _files.hidden(target, ".old"))):
        with _files.locked(path) as dead:
            if dead and path.is_dir():
                _remove(path, layout, heir=target)


def _is_abandoned(old: Path) -> bool:
    """Tell whether the save that moved a folder to `old` is no longer running."""
    new = old.with_suffix(".tmp")
    with _files.locked(new) as free:
        return free or not new.exists()


def _standing(path: PathLike) -> Path:
    """Return where a folder is: at `path`, or where a save that was killed between two renames left it."""
    target = _files.real(path)
    waiting = [] if target.exists() else _files.hidden(target, ".old")
    return max(waiting, key=os.path.getmtime) if waiting and not target.exists() else Path(path)


def _put_back(target: Path) -> None:
    """Move a folder back to its place if a killed save has left it hidden."""
    place = _standing(target)
    if place != target and _is_abandoned(place):
        with suppress(OSError):  # another save was faster
            place.rename(target)


def _switch(new: Path, target: Path) -> None:
    """Exchange `new` and `target`; if `target` is absent or empty, rename `new`."""
    try:
        new.rename(target)
    except OSError:
        if not target.is_dir() or not any(target.iterdir()):
            raise
    else:
        return
    if _exchange(new, target):
        return
    old = new.with_suffix(".old")
    try:
        target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    with suppress(OSError):  # a concurrent save has removed it
        old.rename(new)


def _exchange(left: Path, right: Path) -> bool:
    """Exchange two paths in one step, and tell whether the system could; why it could not, two renames will show."""
    if (call := _renameat2()) is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        import ctypes

        call: Callable[..., int] = ctypes.CDLL(None).renameat2
    except (AttributeError, ImportError, OSError, TypeError):  # not Linux, or a very old one
        return None
    return call


def _remove(folder: Path, layout: Layout, *, heir: Path) -> None:
    """Remove our files from a folder that is out of use, and the folder; files of others in it move to `heir`."""
    for path in _files.entries(folder):
        with suppress(OSError):  # a concurrent save was faster; what cannot be removed is left to the next save
            if (inner := layout.within(path)) is not None:
                _remove(path, inner, heir=heir / path.name)
            elif layout.has_file(path):
                path.unlink()
            elif heir.is_dir():
                names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
                path.rename(next(heir / name for name in names if not os.path.lexists(heir / name)))
    with suppress(OSError):
        folder.rmdir()


def _sync(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _files.sync_folder(folder)
