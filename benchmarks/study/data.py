"""Rows to study: scikit-learn's digits, or a set of the user's own, cut into training, calibration and test rows.

`load` accepts, as text:

- ``digits``: 1,797 grey 8 x 8 images of handwritten digits, embedded in scikit-learn. They have no test rows of their
  own, so every run cuts its own.
- ``FILE.npz``: arrays ``train_features`` (n, …), ``train_labels`` (n,), and with them ``test_features`` and
  ``test_labels``. Without test rows every run cuts its own.
- a folder with the same names as .npy files: ``train_features.npy`` and so on.
- a folder with the four idx files of MNIST or Fashion-MNIST, gzipped or not: ``train-images-idx3-ubyte.gz``,
  ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz``, ``t10k-labels-idx1-ubyte.gz``.

Features are numbers of any real dtype and are flattened to one row per item; labels are integers, of any values.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ARRAYS = ("train_features", "train_labels", "test_features", "test_labels")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FEWEST_PER_CLASS = 10
TEST_SHARE = 0.25
CALIBRATION_SHARE = 0.2
MOST_CALIBRATION_ROWS = 10_000  # what the paper holds out


@dataclass(frozen=True)
class Rows:
    """Features (n, d) float32 with labels (n,) int64 in 0 … n_classes - 1, and the texts (n,) they were made from."""

    features: np.ndarray
    labels: np.ndarray
    texts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """What one run sees: rows to train on, to calibrate with, and to be judged by."""

    train: Rows
    calibration: Rows
    test: Rows


@dataclass(frozen=True)
class Dataset:
    """A set with its own test and calibration rows, or with None, in which case each split cuts some off.

    `shape` is that of an image, of which a row of features is the flat form. `superclasses` holds the superclass of
    each class.
    """

    name: str
    train: Rows
    test: Rows | None
    n_classes: int
    calibration: Rows | None = None
    shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    superclasses: np.ndarray | None = None
    superclass_names: tuple[str, ...] | None = None

    @property
    def n_features(self) -> int:
        return self.train.features.shape[1]

    def split(self, seed: int) -> Split:
        """Cut the rows by `seed`, each class in proportion, and scale them by the training rows' mean and deviation."""
        train, test = (self.train, self.test) if self.test is not None else _cut(self.train, TEST_SHARE, seed)
        held_out = min(MOST_CALIBRATION_ROWS, max(self.n_classes, round(CALIBRATION_SHARE * len(train))))
        train, calibration = _cut(train, held_out, seed)
        mean, deviation = float(train.features.mean()), float(train.features.std()) or 1.0
        return Split(*(Rows((rows.features - mean) / deviation, rows.labels) for rows in (train, calibration, test)))


def load(source: str) -> Dataset:
    """Read the data that `source` names; the module's docstring lists the forms.

    Raises
    ------
    FileNotFoundError
        There is no such file, or the folder lacks one.
    ValueError
        What the files hold does not fit.
    """
    if source == "digits":
        digits = load_digits()
        return _dataset("digits", (digits.data, digits.target))
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        return _dataset(path.stem, *_pairs(_npz(path)))
    if path.is_dir():
        return _dataset(path.resolve().name, *_pairs(_folder(path)))
    msg = f"`--data` must be digits, an .npz file or a folder that exists, got {source!r}; check the path."
    raise FileNotFoundError(msg)


def mixtures(rows: Rows, n: int, seed: int) -> Rows:
    """Make `n` rows, each somewhere between two random rows of one class: a large corpus from a small one."""
    rng = np.random.default_rng(seed)
    first = rng.integers(len(rows), size=n)
    by_class = np.argsort(rows.labels, kind="stable")
    start = np.searchsorted(rows.labels[by_class], rows.labels[first], side="left")
    stop = np.searchsorted(rows.labels[by_class], rows.labels[first], side="right")
    second = by_class[rng.integers(start, stop)]
    share = rng.random((n, 1), dtype=np.float32)
    return Rows(share * rows.features[first] + (1 - share) * rows.features[second], rows.labels[first])


def _cut(rows: Rows, size: float, seed: int) -> tuple[Rows, Rows]:
    kept, cut = train_test_split(np.arange(len(rows)), test_size=size, random_state=seed, stratify=rows.labels)
    return Rows(rows.features[kept], rows.labels[kept]), Rows(rows.features[cut], rows.labels[cut])


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in ARRAYS if name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{path} must be an .npz file of plain arrays, got something else ({error}); write it with np.savez."
        raise ValueError(msg) from error


def _folder(path: Path) -> dict[str, np.ndarray]:
    idx = [_present(path, name, (name, f"{name}.gz")) for name in IDX_FILES]
    if any(idx):
        missing = [name for name, file in zip(IDX_FILES, idx, strict=True) if file is None]
        if missing:
            msg = f"{path} must hold four idx files, got none named {', '.join(missing)}; add the missing ones."
            raise FileNotFoundError(msg)
        return {name: _idx(file) for name, file in zip(ARRAYS, idx, strict=True) if file is not None}
    files = {name: path / f"{name}.npy" for name in ARRAYS}
    return {name: _npy(file) for name, file in files.items() if file.is_file()}


def _present(folder: Path, name: str, spellings: tuple[str, ...]) -> Path | None:
    return next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)


def _npy(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        msg = f"{path} must be a .npy file of numbers, got something else ({error}); write it with np.save."
        raise ValueError(msg) from error
    return np.asarray(loaded)


def _idx(path: Path) -> np.ndarray:
    """Read the format of MNIST: two zero bytes, 8 for uint8, the number of axes, their big-endian lengths, the data."""
    opened: Callable[..., gzip.GzipFile] = gzip.open if path.suffix == ".gz" else open  # type: ignore[assignment]
    try:
        with opened(path, "rb") as file:
            raw = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        msg = f"{path} must be a whole gzip file, got a damaged one ({error}); fetch it again."
        raise ValueError(msg) from error
    n_axes = raw[3] if len(raw) > 3 else 0
    shape = tuple(np.frombuffer(raw[4 : 4 + 4 * n_axes], ">u4").tolist()) if len(raw) >= 4 + 4 * n_axes else ()
    values = raw[4 + 4 * n_axes :]
    if raw[:3] != b"\0\0\x08" or not shape or math.prod(shape) != len(values):
        msg = f"{path} must be an idx file of unsigned bytes, got {len(raw)} bytes that do not fit; fetch it again."
        raise ValueError(msg)
    return np.frombuffer(values, np.uint8).reshape(shape)


def _pairs(arrays: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Order the arrays as (features, labels) of training rows and, where there are any, of test rows."""
    wanted = ARRAYS if any(name in arrays for name in ARRAYS[2:]) else ARRAYS[:2]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        msg = f"`--data` must hold {', '.join(wanted)}, got nothing named {', '.join(missing)}; add what is missing."
        raise FileNotFoundError(msg)
    pairs = [(arrays["train_features"], arrays["train_labels"])]
    return [*pairs, (arrays["test_features"], arrays["test_labels"])] if len(wanted) == 4 else pairs


def _dataset(
    name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray] | None = None
) -> Dataset:
    classes, counts = np.unique(_labels(*train, "train"), return_counts=True)
    if len(classes) < 2 or counts.min() < FEWEST_PER_CLASS:
        msg = (
            f"`train_labels` must have at least 2 classes with at least {FEWEST_PER_CLASS} rows each, got "
            f"{len(classes)} classes, the rarest with {counts.min() if len(counts) else 0}; drop rare classes."
        )
        raise ValueError(msg)
    rows = [_rows(*train, classes, "train")]
    if test is not None:
        _labels(*test, "test")
        rows.append(_rows(*test, classes, "test"))
        if rows[0].features.shape[1] != rows[1].features.shape[1]:
            widths = " and ".join(str(part.features.shape[1]) for part in rows)
            msg = f"`train_features` and `test_features` must be equally wide, got {widths}; check the files."
            raise ValueError(msg)
    return Dataset(name, rows[0], rows[1] if test is not None else None, len(classes))


def _labels(features: np.ndarray, labels: np.ndarray, part: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        msg = f"`{part}_labels` must be integers (n,), got {labels.dtype} {labels.shape}; cast or reshape them."
        raise ValueError(msg)
    if features.ndim < 2 or features.size == 0 or len(features) != len(labels):
        msg = (
            f"`{part}_features` must have shape (n, …) with one row for each of the {len(labels)} labels, "
            f"got {features.shape}; check that both belong together."
        )
        raise ValueError(msg)
    return labels


def _rows(features: np.ndarray, labels: np.ndarray, classes: np.ndarray, part: str) -> Rows:
    if features.dtype.kind not in "fiu":
        msg = f"`{part}_features` must be real numbers, got {features.dtype}; cast them, for instance to float32."
        raise ValueError(msg)
    with np.errstate(over="ignore"):  # what overflows is counted below
        flat = features.reshape(len(features), -1).astype(np.float32)
    bad = int((~np.isfinite(flat).all(axis=1)).sum())
    if bad:
        msg = f"`{part}_features` must be finite in float32, got {bad} rows that are not; remove or repair them."
        raise ValueError(msg)
    unknown = int((~np.isin(labels, classes)).sum())
    if unknown:
        msg = f"`{part}_labels` must name classes that the training rows have, got {unknown} others; drop these rows."
        raise ValueError(msg)
    return Rows(flat, np.searchsorted(classes, labels).astype(np.int64))
