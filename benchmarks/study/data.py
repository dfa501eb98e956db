"""Rows to study: digits, clothes, questions or a set of the user's own, cut into training, calibration and test rows.

`load` accepts, as text:

- ``digits``: 1,797 grey 8 x 8 images of handwritten digits, embedded in scikit-learn. They have no test rows of their
  own, so every run cuts its own.
- ``fashion-mnist``: 60,000 + 10,000 grey 28 x 28 images of clothes, which ``keras.datasets`` fetches once.
- ``FILE.npz``: arrays ``train_features`` (n, …), ``train_labels`` (n,), and with them ``test_features`` and
  ``test_labels``. Without test rows every run cuts its own.
- a folder with the same names as .npy files: ``train_features.npy`` and so on.
- a folder with the four idx files of MNIST or Fashion-MNIST, gzipped or not: ``train-images-idx3-ubyte.gz``,
  ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz``, ``t10k-labels-idx1-ubyte.gz``. One that is called
  fashion-mnist has its classes named.
- a folder with the files of CLINC150, 22,500 questions of 150 intents in 10 domains: ``data_full.json``, whose "train",
  "val" and "test" are lists of [text, intent], and ``domains.json``, the intents of each domain. The features are
  vectors of a sentence encoder (`texts`), made once; the rows of "val" serve calibration.

The name of the set, and so that of its grid, is the name of the file or folder. Features are numbers of any real dtype
and are flattened to one row per item; labels are integers, of any values. Rows of bytes with two axes are images.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.study.texts import encode

ARRAYS = ("train_features", "train_labels", "test_features", "test_labels")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLOTHES = {  # in the order of the labels; a dress is worn on the upper body too, so that four superclasses hold all
    "T-shirt/top": "tops",
    "Trouser": "bottoms",
    "Pullover": "tops",
    "Dress": "tops",
    "Coat": "tops",
    "Sandal": "footwear",
    "Shirt": "tops",
    "Sneaker": "footwear",
    "Bag": "bags",
    "Ankle boot": "footwear",
}
QUESTIONS, DOMAINS = "data_full.json", "domains.json"
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

    def __getitem__(self, chosen: np.ndarray) -> Rows:
        """Return some rows, by index or by a mask."""
        return Rows(self.features[chosen], self.labels[chosen], None if self.texts is None else self.texts[chosen])


@dataclass(frozen=True)
class Split:
    """What one run sees: rows to train on, to calibrate with, and to be judged by, all scaled alike."""

    train: Rows
    calibration: Rows
    test: Rows
    mean: float = 0.0
    deviation: float = 1.0

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """Return features of the data set as those of the split are."""
        return (features - self.mean) / self.deviation


@dataclass(frozen=True)
class Dataset:
    """A set with its own test and calibration rows, or with None, in which case each split cuts some off.

    `shape` is that of an image, of which a row of features is the flat form. `superclasses` (n_classes,) holds the
    superclass of each class.
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
        """Width of a row of features."""
        return self.train.features.shape[1]

    def split(self, seed: int) -> Split:
        """Cut the rows by `seed`, each class in proportion, and scale them by the training rows' mean and deviation."""
        train, test = (self.train, self.test) if self.test is not None else _cut(self.train, TEST_SHARE, seed)
        calibration = self.calibration
        if calibration is None:
            held_out = min(MOST_CALIBRATION_ROWS, max(self.n_classes, round(CALIBRATION_SHARE * len(train))))
            train, calibration = _cut(train, held_out, seed)
        mean, deviation = float(train.features.mean()), float(train.features.std()) or 1.0
        cut = Split(train, calibration, test, mean, deviation)
        parts = {"train": train, "calibration": calibration, "test": test}
        return replace(cut, **{part: replace(rows, features=cut.scaled(rows.features)) for part, rows in parts.items()})


def load(source: str) -> Dataset:
    """Read the data that `source` names; the module's docstring lists the forms.

    Raises
    ------
    FileNotFoundError
        There is no such file, or the folder lacks one.
    ValueError
        What the files hold does not fit, or a package is missing.
    """
    if source == "digits":
        digits = load_digits()
        return _dataset("digits", (digits.data, digits.target), shape=(8, 8))
    if source == "fashion-mnist":
        return _dataset(source, *_from_keras(), shape=(28, 28), **_groups(CLOTHES, CLOTHES.values()))
    path = Path(source)
    if path.exists():
        with _naming(path):
            if path.is_dir():
                return _from_folder(path)
            if path.suffix == ".npz":
                return _dataset(path.stem, *_pairs(_npz(path)))
    msg = (
        f"`--data` must be digits, fashion-mnist, an .npz file or a folder that exists, got {source!r}; check the path."
    )
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
    return rows[kept], rows[cut]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors that speak of arrays say where these came from."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if str(path) in str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        msg = f"{path}: {error}"
        raise kind(msg) from error


def _from_folder(path: Path) -> Dataset:
    name = path.resolve().name
    if (path / QUESTIONS).is_file():
        return _clinc150(name, path)
    arrays = _folder(path)
    images = arrays.get("train_features", np.empty(0))
    described: dict[str, Any] = {"shape": images.shape[1:]} if images.ndim == 3 and images.dtype == np.uint8 else {}
    if name == "fashion-mnist" and np.array_equal(np.unique(arrays.get("train_labels", ())), np.arange(len(CLOTHES))):
        described |= _groups(CLOTHES, CLOTHES.values())
    return _dataset(name, *_pairs(arrays), **described)


def _groups(superclass: dict[str, str], names: Iterable[str]) -> dict[str, Any]:
    """Name the classes, in the order of their labels, and the superclass of each."""
    order = tuple(dict.fromkeys(names))
    labels = np.array([order.index(name) for name in superclass.values()])
    return {"class_names": tuple(superclass), "superclasses": labels, "superclass_names": order}


def _from_keras() -> list[tuple[np.ndarray, np.ndarray]]:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # which the study has anyway
    try:
        from keras.datasets import fashion_mnist

        pairs = fashion_mnist.load_data()
    except ImportError as error:
        msg = f"`--data fashion-mnist` needs Keras ({error}); `pip install keras`, or give a folder with the idx files."
        raise ValueError(msg) from error
    except Exception as error:  # Keras raises nothing more special where it cannot fetch
        msg = f"`--data fashion-mnist` was not fetched ({error}); go online once, or give a folder with the idx files."
        raise OSError(msg) from error
    return list(pairs)


def _clinc150(name: str, folder: Path) -> Dataset:
    domains = _json(folder / DOMAINS, "{domain: [intent, …], …}", _are_lists_of_text)
    of_intent = {intent: domain for domain, intents in domains.items() for intent in intents}
    questions = _json(folder / QUESTIONS, '{"train": [[text, intent], …], "val": …, "test": …}', _are_questions)
    asked = {part: np.array(questions[part]) for part in ("train", "val", "test")}
    unknown = sorted({str(intent) for rows in asked.values() for intent in rows[:, 1]} - set(of_intent))
    if unknown:
        msg = f"{folder / DOMAINS} must name the domain of every intent, got none for {unknown[:3]}; add them."
        raise ValueError(msg)
    intents = {str(intent): of_intent[str(intent)] for intent in np.unique(asked["train"][:, 1])}
    names = np.array(list(intents))
    features = np.split(
        encode(np.concatenate([rows[:, 0] for rows in asked.values()])),
        np.cumsum([len(rows) for rows in asked.values()])[:-1],
    )
    labels = [_labels_of(rows[:, 1], names, folder / QUESTIONS) for rows in asked.values()]
    train, calibration, test = zip(features, labels, strict=True)
    dataset = _dataset(name, train, test, calibration, **_groups(intents, domains))
    texts = dict(zip(("train", "calibration", "test"), (rows[:, 0] for rows in asked.values()), strict=True))
    return replace(dataset, **{part: replace(getattr(dataset, part), texts=texts[part]) for part in texts})


def _labels_of(intents: np.ndarray, names: np.ndarray, file: Path) -> np.ndarray:
    unknown = sorted(set(intents.tolist()) - set(names.tolist()))
    if unknown:
        msg = f"{file} must have training questions of every intent, got none of {unknown[:3]}; drop these intents."
        raise ValueError(msg)
    return np.searchsorted(names, intents)


def _json(file: Path, form: str, fits: Callable[[Any], bool]) -> Any:
    if not file.is_file():
        msg = f"{file} must exist beside the others of its data set, got no such file; add it."
        raise FileNotFoundError(msg)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{file} must be JSON, got something else ({error}); fetch it again."
        raise ValueError(msg) from error
    if not fits(content):
        msg = f"{file} must hold {form}, got something else; fetch it again."
        raise ValueError(msg)
    return content


def _are_lists_of_text(content: Any) -> bool:
    return isinstance(content, dict) and all(map(_is_text_list, content.values()))


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_questions(content: Any) -> bool:
    parts = [content.get(part) for part in ("train", "val", "test")] if isinstance(content, dict) else [None]
    return all(
        isinstance(rows, list) and rows and all(_is_text_list(row) and len(row) == 2 for row in rows) for rows in parts
    )


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
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None = None,
    calibration: tuple[np.ndarray, np.ndarray] | None = None,
    **described: Any,
) -> Dataset:
    classes, counts = np.unique(_labels(*train, "train"), return_counts=True)
    if len(classes) < 2 or counts.min() < FEWEST_PER_CLASS:
        msg = (
            f"`train_labels` must have at least 2 classes with at least {FEWEST_PER_CLASS} rows each, got "
            f"{len(classes)} classes, the rarest with {counts.min() if len(counts) else 0}; drop rare classes."
        )
        raise ValueError(msg)
    rows = {"train": _rows(*train, classes, "train")}
    for part, pair in {"test": test, "calibration": calibration}.items():
        if pair is None:
            continue
        _labels(*pair, part)
        rows[part] = _rows(*pair, classes, part)
        if rows["train"].features.shape[1] != rows[part].features.shape[1]:
            widths = " and ".join(str(rows[one].features.shape[1]) for one in ("train", part))
            msg = f"`train_features` and `{part}_features` must be equally wide, got {widths}; check the files."
            raise ValueError(msg)
    return Dataset(
        name, rows["train"], rows.get("test"), len(classes), calibration=rows.get("calibration"), **described
    )


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
