"""Rotation: orthogonal, sorted by energy, the same on every array library, whatever the rows are read from."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st

import matryoshka.rotation
from matryoshka import Corpus, Funnel, Rotation, truncate


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    """Rows around a mean, with a spectrum that no column shows."""
    turn = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    return 0.3 + (rng.normal(size=(40, 7)) * 0.6 ** np.arange(7)) @ turn


def oracle(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return directions (dim, dim) as columns and their shares of energy, from the rows and not from their moment."""
    _, lengths, directions = np.linalg.svd(rows.astype(np.float64))
    columns = []
    for direction in directions:
        largest = max(direction, key=abs)
        columns.append(direction if largest > 0 else -direction)
    return np.stack(columns, axis=1), lengths**2 / sum(length**2 for length in lengths)


def test_it_is_the_svd_of_the_rows(library: Library, rows: np.ndarray) -> None:
    rotation = Rotation.fit(library.array(rows))
    matrix, energy = oracle(library.to_numpy(library.array(rows)))
    np.testing.assert_allclose(rotation.matrix, matrix, atol=1e-11)
    np.testing.assert_allclose(rotation.energy, energy, atol=1e-13)
    library.assert_close(rotation.apply(library.array(rows)), rows @ matrix, atol=1e-6)
    for array in (rotation.matrix, rotation.energy):
        assert (type(array), array.dtype) == (np.ndarray, np.float64)


@pytest.mark.parametrize("dim", [1, 2, 33, 200])
def test_it_is_orthogonal(rng: np.random.Generator, dim: int) -> None:
    rotation = Rotation.fit((rng.normal(size=(dim + 3, dim)) * 0.7 ** np.arange(dim)).astype(np.float32))
    np.testing.assert_allclose(rotation.matrix.T @ rotation.matrix, np.eye(dim), atol=1e-12)
    np.testing.assert_allclose(rotation.matrix @ rotation.matrix.T, np.eye(dim), atol=1e-12)
    assert rotation.dim == dim
    assert rotation.energy.shape == (dim,)
    assert (np.diff(rotation.energy) <= 0).all()
    assert (rotation.energy >= 0).all()


def test_inner_products_and_distances_stay(library: Library, rows: np.ndarray) -> None:
    """With queries that the rotation has never seen."""
    xp, given, asked = library.module, library.array(rows[:25]), library.array(rows[25:])
    rotation = Rotation.fit(given)
    turned, questions = rotation.apply(given), rotation.apply(asked)
    library.assert_close(questions @ turned.T, rows[25:] @ rows[:25].T)
    expected = ((rows[25:, None] - rows[None, :25]) ** 2).sum(axis=-1)
    library.assert_close(xp.sum((questions[:, None, :] - turned[None, :, :]) ** 2, axis=-1), expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(-60, 60), st.integers(0, 10**6))
def test_whatever_the_rows_are(dim: int, more: int, exponent: int, seed: int) -> None:
    """Products stay, no other orthonormal columns hold more, a cut is one of fewer columns, and twice is once."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-3, 4, size=(dim + more, dim)) * 2.0**exponent
    rows[0, rng.integers(dim)] = 5 * 2.0**exponent  # at least one is not 0
    rotation, largest = Rotation.fit(rows), np.abs(rows).max()
    turned = rotation.apply(rows)
    np.testing.assert_allclose(turned @ turned.T, rows @ rows.T, atol=1e-12 * dim * largest**2)
    other, total = np.linalg.qr(rng.normal(size=(dim, dim)))[0], (rows**2).sum()
    for m in range(1, dim + 1):
        held = (turned[:, :m] ** 2).sum() / total
        assert held == pytest.approx(rotation.energy[:m].sum(), abs=1e-12)
        assert held >= ((rows @ other[:, :m]) ** 2).sum() / total - 1e-12
        cut = truncate(turned, m, normalize=False)
        np.testing.assert_allclose(cut, rows @ rotation.matrix[:, :m], atol=1e-12 * dim * largest)
    np.testing.assert_allclose(Rotation.fit(turned).energy, rotation.energy, atol=1e-12)


def test_the_energy_of_prefixes_is_that_of_the_rotated_rows(rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows)
    turned = rotation.apply(rows)
    for m in range(1, 8):
        held = sum(float(x) ** 2 for x in turned[:, :m].ravel()) / sum(float(x) ** 2 for x in rows.ravel())
        assert rotation.energy[:m].sum() == pytest.approx(held, abs=1e-13)
        assert held >= (rows[:, :m] ** 2).sum() / (rows**2).sum() - 1e-13


def test_half_precision(half: Library, rows: np.ndarray) -> None:
    given = half.array(rows)
    rotation = Rotation.fit(given)
    plain = half.to_numpy(given).astype(np.float64)
    turned = rotation.apply(given)
    assert turned.dtype == given.dtype
    half.assert_close(turned, plain @ oracle(plain)[0], atol=2 * half.rtol)


def test_each_dtype_has_its_matrix(library: Library, rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows)
    for name in ("float32", library.dtype_name, "float32"):
        other = dataclasses.replace(library, dtype_name=name)
        other.assert_close(rotation.apply(other.array(rows)), rows @ rotation.matrix)


def test_leading_axes_and_single_rows(library: Library, rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows)
    turned = rows @ rotation.matrix
    library.assert_close(rotation.apply(library.array(rows[:24].reshape(2, 3, 4, 7))), turned[:24].reshape(2, 3, 4, 7))
    library.assert_close(rotation.apply(library.array(rows[3])), turned[3])
    library.assert_close(rotation.apply(library.array(rows[:0])), turned[:0])


def test_rows_from_a_file_are_rows_in_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(1000, 61))
    for order in ("C", "F"):
        np.save(tmp_path / "rows.npy", np.asarray(rows, dtype=np.float32, order=order))
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        for sample in (None, 500):
            expected = Rotation.fit(rows.astype(np.float32), sample=sample, seed=4)
            found = Rotation.fit(mapped, sample=sample, seed=4)
            assert found == expected
            np.testing.assert_array_equal(found.apply(mapped), expected.apply(rows.astype(np.float32)))


@pytest.mark.parametrize("numbers", [1, 7 * 9, 7 * 39])
def test_blocks_do_not_show(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    rows = rows * np.geomspace(1e-8, 1.0, len(rows))[:, None]  # each block is the largest so far
    whole = Rotation.fit(rows)
    monkeypatch.setattr(matryoshka.rotation, "_BLOCK_NUMBERS", numbers)
    parts = Rotation.fit(rows)
    np.testing.assert_allclose(parts.matrix, whole.matrix, atol=1e-9)
    np.testing.assert_allclose(parts.energy, whole.energy, atol=1e-15)


def test_a_sample_is_drawn_without_replacement(library: Library, rows: np.ndarray) -> None:
    given = library.array(rows)
    everything = Rotation.fit(given)
    assert Rotation.fit(given, sample=40) == Rotation.fit(given, sample=None) == everything
    some = Rotation.fit(given, sample=12, seed=1)
    assert some == Rotation.fit(given, sample=12, seed=1)
    assert some != Rotation.fit(given, sample=12, seed=2)
    almost = [Rotation.fit(np.delete(library.to_numpy(given), i, axis=0)) for i in range(40)]
    assert sum(Rotation.fit(given, sample=39) == one for one in almost) == 1


@pytest.mark.parametrize("scale", [2.0**-1060, 2.0**-600, 2.0**600, 2.0**1020])
def test_tiny_and_huge_rows(scale: float, rows: np.ndarray) -> None:
    rows = np.round(rows * 32) / 32  # so that the smallest numbers there are hold them
    assert Rotation.fit(rows * scale) == Rotation.fit(rows)


def test_by_default_so_many_rows_are_drawn() -> None:
    """Each row is one of its own kind, so that shares of energy tell which were drawn."""
    rows = np.stack([np.arange(1.0, 50_101.0), np.ones(50_100)], axis=1)
    assert Rotation.fit(rows) == Rotation.fit(rows, sample=50_000, seed=0)
    assert Rotation.fit(rows) != Rotation.fit(rows, sample=50_001)
    assert Rotation.fit(rows) != Rotation.fit(rows, seed=1)
    assert Rotation.fit(rows[:50_000]) == Rotation.fit(rows[:50_000], sample=None)


def test_tiny_rows_before_huge_ones(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matryoshka.rotation, "_BLOCK_NUMBERS", 7 * 10)
    expected = Rotation.fit(rows[20:])
    rows[:20] *= 2.0**-900
    rows[20:] *= 2.0**900
    assert Rotation.fit(rows) == Rotation.fit(rows[[*range(20, 40), *range(20)]]) == expected


def test_degenerate_rows(rng: np.random.Generator) -> None:
    same = np.tile(rng.normal(size=5), (9, 1))
    rotation = Rotation.fit(same)
    np.testing.assert_allclose(rotation.energy, [1, 0, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(rotation.matrix.T @ rotation.matrix, np.eye(5), atol=1e-12)
    zeros = np.zeros((9, 5))
    zeros[4, 2] = -3.0
    np.testing.assert_array_equal(Rotation.fit(zeros).apply(zeros)[4], [-3.0, 0.0, 0.0, 0.0, 0.0])
    one = Rotation.fit(np.array([[-2.0]]))
    assert (one.matrix.item(), one.energy.item(), one.dim) == (1.0, 1.0, 1)


def test_full_width_finds_the_same_and_prefixes_more(rng: np.random.Generator) -> None:
    turn = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    data = (rng.normal(size=(1200, 64)) * 0.9 ** np.arange(64)) @ turn
    corpus, queries = data[:1000], data[1000:]
    rotation = Rotation.fit(corpus)
    turned = Corpus(rotation.apply(corpus))
    scores, ids = Corpus(corpus).search(queries, 10)
    turned_scores, turned_ids = turned.search(rotation.apply(queries), 10)
    np.testing.assert_array_equal(ids, turned_ids)
    np.testing.assert_allclose(scores, turned_scores, atol=1e-12)

    def kept(found: np.ndarray) -> float:
        return float(np.mean([len(set(a) & set(b)) for a, b in zip(found, ids, strict=True)])) / 10

    plan = Funnel((8, 64), (50,))
    plain = kept(Corpus(corpus).search(queries, 10, funnel=plan)[1])
    assert kept(turned.search(rotation.apply(queries), 10, funnel=plan)[1]) > plain + 0.2


def test_it_is_traced_and_differentiated(rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows)
    torch = load("torch")
    with torch.inference_mode():
        np.testing.assert_allclose(rotation.apply(torch.tensor(rows)), rows @ rotation.matrix, atol=1e-15)
    given = torch.tensor(rows, requires_grad=True)
    rotation.apply(given)[:, 0].sum().backward()
    np.testing.assert_allclose(given.grad, np.tile(rotation.matrix[:, 0], (40, 1)), atol=1e-15)
    assert rotation.apply(torch.empty(3, 7, device="meta")).shape == (3, 7)
    jax = load("jax")
    for _ in range(2):  # nothing of the first trace is kept
        turned = jax.jit(rotation.apply)(jax.numpy.asarray(rows, dtype="float32"))
        np.testing.assert_allclose(turned, rows @ rotation.matrix, atol=1e-5)
        gradient = jax.grad(lambda x: rotation.apply(x)[0])(jax.numpy.asarray(rows[0], dtype="float32"))
        np.testing.assert_allclose(gradient, rotation.matrix[:, 0], atol=1e-6)


def test_arguments_stay_as_they_are(rows: np.ndarray) -> None:
    rows.flags.writeable = False
    matrix = np.linalg.qr(rows[:7])[0]
    rotation = Rotation(matrix, np.full(7, 1 / 7))
    assert matrix.flags.writeable
    matrix[:] = 0.0
    np.testing.assert_allclose(rotation.matrix.T @ rotation.matrix, np.eye(7), atol=1e-12)
    rotation.apply(rows)[:] = 0.0
    np.testing.assert_allclose(rotation.apply(rows), rows @ rotation.matrix, atol=1e-15)


def test_it_cannot_be_changed(rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows)
    rotation.apply(rows)
    for each in (rotation, copy.deepcopy(rotation), pickle.loads(pickle.dumps(rotation))):
        assert each == rotation
        assert hash(each) == hash(rotation)
        for name in ("matrix", "energy"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(each, name)[0] = 0.0
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(each, name, rows)


def test_values_compare_and_show(rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows)
    assert rotation == Rotation(rotation.matrix, rotation.energy)
    assert rotation != Rotation.fit(rows[:20])
    assert rotation != "a rotation"
    shares = np.array([0.5, 0.5])
    assert Rotation(np.eye(2), shares) != Rotation(np.eye(2)[::-1], shares)
    assert Rotation(np.eye(2), shares) != Rotation(np.eye(2), np.array([0.6, 0.4]))
    assert repr(Rotation(np.eye(4), np.array([0.4, 0.3, 0.25, 0.05]))) == (
        "Rotation(dim=4, half of the energy in 2 columns, 90 % in 3)"
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows[:6], ValueError, r"`embeddings` must have at least as many rows as columns, 7, got 6, .*;"),
        (lambda rows: rows[:0], ValueError, "`embeddings` must have at least as many rows as columns, 7, got 0"),
        (lambda rows: rows[:, :0], ValueError, "`embeddings` must have at least one column"),
        (lambda rows: rows[0], ValueError, r"`embeddings` must have shape \(n, dim\), got \(7,\)"),
        (lambda rows: rows * 0, ValueError, "`embeddings` must hold a number other than 0"),
        (lambda rows: rows.astype(int), TypeError, "`embeddings` must hold floating-point numbers"),
        (lambda rows: rows.tolist(), TypeError, "`embeddings` must be an array"),
    ],
)
def test_bad_rows_are_refused(rows: np.ndarray, change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rotation.fit(change(rows))


def test_rows_that_are_not_finite_are_named(
    library: Library, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows[[3, 17, 30], [0, 6, 2]] = np.nan, np.inf, -np.inf
    message = r"`embeddings` must be finite, got NaN or infinity in 3 of 40 rows \(first: 3, 17, 30\)"
    for numbers in (7 * 5, 7 * 100):
        monkeypatch.setattr(matryoshka.rotation, "_BLOCK_NUMBERS", numbers)
        with pytest.raises(ValueError, match=message):
            Rotation.fit(library.array(rows))
    with pytest.raises(ValueError, match=r"in 39 of 39 rows drawn from 40 \(first: \d, "):
        Rotation.fit(library.array(rows * np.nan), sample=39)


def test_bad_options_are_refused(rows: np.ndarray) -> None:
    rotation = Rotation.fit(rows, sample=7)
    with pytest.raises(ValueError, match="`sample` must be an integer >= 7, got 6"):
        Rotation.fit(rows, sample=6)
    with pytest.raises(TypeError, match="`seed` must be an integer"):
        Rotation.fit(rows, seed=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`rows` must be as wide as the rotation, 7, got shape \(40, 6\)"):
        rotation.apply(rows[:, :6])
    with pytest.raises(ValueError, match=r"`rows` must have shape \(..., dim\), got \(\)"):
        rotation.apply(np.array(1.0))
    with pytest.raises(TypeError, match="`rows` must hold floating-point numbers, got dtype int64"):
        rotation.apply(np.ones((3, 7), np.int64))


@pytest.mark.parametrize(
    ("matrix", "energy", "message"),
    [
        (np.ones(3), np.full(3, 1 / 3), r"`matrix` must have shape \(dim, dim\), got \(3,\)"),
        (np.ones((3, 3, 3)), np.full(3, 1 / 3), r"`matrix` must have shape \(dim, dim\), got \(3, 3, 3\)"),
        (np.eye(3)[:2], np.full(3, 1 / 3), r"`matrix` must have shape \(dim, dim\) = \(3, 3\), got \(2, 3\)"),
        (np.eye(3)[:, [0, 0, 1]], np.full(3, 1 / 3), "`matrix` must be orthogonal within 1e-06, got one that is off"),
        (np.eye(3) * 1e200, np.full(3, 1 / 3), "`matrix` must be orthogonal"),
        (np.eye(3) * np.nan, np.full(3, 1 / 3), "`matrix` must be finite"),
        (np.where(np.eye(3) > 0, np.inf, 0.0), np.full(3, 1 / 3), "`matrix` must be finite"),
        (np.eye(3), np.array([0.6, 0.4, np.nan]), "`energy` must be finite"),
        (np.eye(3), np.full(2, 1 / 2), r"`energy` must have shape \(dim,\) = \(3,\), got \(2,\)"),
        (
            np.eye(3),
            np.array([0.3, 0.2, 0.5]),
            "`energy` must not be negative, never grow and sum to 1, got entry 2 larger than entry 1; sort and",
        ),
        (np.eye(3), np.array([0.8, 0.4, -0.2]), "got 1 of 3 numbers below 0; sort and divide them"),
        (np.eye(3), np.array([0.5, 0.3, 0.1]), "got a sum of 0.9; sort and divide them"),
    ],
)
def test_a_matrix_that_is_no_rotation_is_refused(matrix: np.ndarray, energy: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotation(matrix, energy)


def test_saved_and_loaded(library: Library, rows: np.ndarray, tmp_path: Path) -> None:
    rotation = Rotation.fit(library.array(rows))
    for _ in range(2):  # the second replaces the first
        rotation.save(tmp_path / "rotation")
    found = Rotation.load(tmp_path / "rotation")
    assert found == rotation
    given = library.array(rows)
    np.testing.assert_array_equal(*(library.to_numpy(each.apply(given)) for each in (found, rotation)))
    with pytest.raises(ValueError, match="read-only"):
        found.matrix[0] = 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rotation"]


def test_other_folders_are_not_replaced(rows: np.ndarray, tmp_path: Path) -> None:
    Corpus(rows).save(tmp_path / "corpus")
    with pytest.raises(FileExistsError, match=r"which holds other things and no rotation.json"):
        Rotation.fit(rows).save(tmp_path / "corpus")
    with pytest.raises(ValueError, match="`path` must be a folder that Rotation.save wrote"):
        Rotation.load(tmp_path / "corpus")
    with pytest.raises(FileNotFoundError, match="nothing"):
        Rotation.load(tmp_path / "nothing")


def shorten(folder: Path) -> None:
    with (folder / "matrix.npy").open("r+b") as file:
        file.truncate(200)


def flip(name: str) -> Any:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return change


def edit(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        record = json.loads((folder / "rotation.json").read_text())
        (folder / "rotation.json").write_text(json.dumps(record | {key: value}))

    return change


def drop(key: str) -> Any:
    def change(folder: Path) -> None:
        record = json.loads((folder / "rotation.json").read_text())
        del record[key]
        (folder / "rotation.json").write_text(json.dumps(record))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, r"`.*matrix.npy` must be a .npy file .* save the rotation anew"),
        (flip("matrix.npy"), r"`.*matrix.npy` must be as it was saved, got other bytes"),
        (flip("energy.npy"), r"`.*energy.npy` must be as it was saved, .* save the rotation anew"),
        (lambda folder: np.save(folder / "matrix.npy", np.eye(6)), r"must hold float64 of shape \(7, 7\), got float64"),
        (lambda folder: np.save(folder / "matrix.npy", np.eye(7, dtype="f4")), r"must hold float64 .*, got float32"),
        (lambda folder: np.save(folder / "matrix.npy", np.eye(7, order="F")), r"matrix.npy` must "),
        (lambda folder: np.save(folder / "energy.npy", np.array([None] * 7)), "energy.npy` must be .* Python objects"),
        (lambda folder: (folder / "energy.npy").unlink(), r"`.*energy.npy` must exist, as rotation.json says"),
        (lambda folder: (folder / "rotation.json").unlink(), "`path` must be a folder that Rotation.save wrote"),
        (lambda folder: (folder / "rotation.json").write_text("{"), "rotation.json` must be JSON"),
        (edit("kind", "corpus"), "rotation.json` must be the JSON of a rotation, got 'corpus'"),
        (edit("version", 9), "rotation.json` must be version 1 of a rotation"),
        (edit("dim", 6), r"must hold float64 of shape \(6, 6\)"),
        (edit("dim", "7"), "`dim` must be an integer"),
        (edit("note", 1), "rotation.json` must hold nothing but"),
        (edit("checksum", 1), "rotation.json` must be as it was saved, .* save the rotation anew"),
        (edit("checksums", {}), "`checksums` must hold one for each of matrix, energy"),
        (edit("checksums", None), "`checksums` must hold one for each of matrix, energy"),
        (drop("checksum"), "rotation.json` must hold .* without checksum"),
        (drop("checksums"), "rotation.json` must hold .* without checksums"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, rows: np.ndarray, damage: Any, message: str) -> None:
    Rotation.fit(rows).save(tmp_path / "rotation")
    damage(tmp_path / "rotation")
    with pytest.raises(ValueError, match=message):
        Rotation.load(tmp_path / "rotation")
