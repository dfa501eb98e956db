"""The array libraries that every test of the core runs on, as one fixture.

`library` runs a test once for each of numpy, array_api_strict (on a device that is not its default), torch, torch on
CUDA where there is one, and jax. A library that is not installed skips with its reason; one named in the
environment variable MATRYOSHKA_REQUIRE (names separated by spaces) fails instead.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import settings

from matryoshka import _files
from matryoshka._array import namespace, to_numpy

pytest.register_assert_rewrite("cases", "commands")
settings.register_profile("matryoshka", deadline=None)  # timings never decide a test
settings.load_profile("matryoshka")

REQUIRED = os.environ.get("MATRYOSHKA_REQUIRE", "").split()
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}


def load(module: str) -> Any:
    """Import a library that tests need; skip without it, or fail where MATRYOSHKA_REQUIRE names it."""
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        if name in REQUIRED:
            pytest.fail(f"{name} is not installed, and MATRYOSHKA_REQUIRE names it")
        pytest.skip(f"{name} is not installed", allow_module_level=True)


def import_benchmarks(*needed: str) -> None:
    """Let a test module import from `benchmarks`; skip it without a library that this needs."""
    for library in needed:
        load(library)
    sys.path.append(str(Path(__file__).parents[1]))  # last, so that `matryoshka` stays the installed one


@dataclass(frozen=True)
class Library:
    """One array library with the device and the floating dtype that a test is to use."""

    name: str
    dtype_name: str
    device: Any = None

    @property
    def module(self) -> Any:
        return load(
            {"numpy": "numpy", "array_api_strict": "array_api_strict", "torch": "torch", "jax": "jax.numpy"}[self.name]
        )

    @property
    def dtype(self) -> Any:
        return getattr(self.module, self.dtype_name)

    @property
    def rtol(self) -> float:
        return TOLERANCE[self.dtype_name]

    def array(self, values: Any) -> Any:
        """Put `values` on this library: floats in its dtype, everything else in NumPy's dtype for it."""
        host = np.asarray(values)
        is_float = np.issubdtype(host.dtype, np.floating)
        if self.name == "torch":
            dtype = self.dtype if is_float else None
            return self.module.as_tensor(host.copy(), dtype=dtype, device=self.device)
        if self.name == "array_api_strict":
            dtype = self.dtype if is_float else None
            return self.module.asarray(host, dtype=dtype, device=self.module.Device(self.device))
        return self.module.asarray(host.astype(self.dtype_name) if is_float else host)

    def assert_close(self, actual: Any, expected: Any, *, rtol: float | None = None, atol: float | None = None) -> None:
        """Check library, device, dtype (of floats), shape and values against a float64 expectation."""
        expected = np.asarray(expected)
        assert namespace(("actual", actual)) is namespace(("like", self.array([0.0])))
        if self.name in ("torch", "array_api_strict"):
            assert actual.device == self.array([0.0]).device
        assert tuple(actual.shape) == expected.shape
        if np.issubdtype(expected.dtype, np.floating):
            half = self.dtype_name in ("bfloat16", "float16")
            accepted = {self.dtype_name, "float32"} if half else {self.dtype_name}
            assert str(actual.dtype).rpartition(".")[2] in accepted
        rtol = self.rtol if rtol is None else rtol
        host = to_numpy(actual) if self.name != "array_api_strict" else strict_to_numpy(actual)
        np.testing.assert_allclose(host, expected, rtol=rtol, atol=rtol if atol is None else atol)

    def assert_found(self, found: tuple[Any, Any], expected: tuple[np.ndarray, np.ndarray]) -> None:
        """Check scores and ids of a search."""
        self.assert_close(found[0], expected[0], atol=100 * self.rtol)
        np.testing.assert_array_equal(self.to_numpy(found[1]), expected[1])

    def to_numpy(self, array: Any) -> np.ndarray:
        return strict_to_numpy(array) if self.name == "array_api_strict" else to_numpy(array)


def strict_to_numpy(array: Any) -> np.ndarray:
    """Bring an array_api_strict array to its CPU device first: NumPy reads it from there only."""
    strict = load("array_api_strict")
    return np.asarray(array.to_device(strict.Device("CPU_DEVICE")))


def _cuda() -> list[Library]:
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return []
    return [Library("torch", "float32", "cuda:0")] if torch.cuda.is_available() else []


LIBRARIES = [
    Library("numpy", "float64"),
    Library("numpy", "float32"),
    Library("array_api_strict", "float64", "device1"),
    Library("torch", "float64", "cpu"),
    Library("torch", "float32", "cpu"),
    Library("jax", "float32"),
    *_cuda(),
]
HALVES = [
    Library("numpy", "float16"),
    Library("torch", "bfloat16", "cpu"),
    Library("torch", "float16", "cpu"),
    Library("jax", "bfloat16"),
]


def _id(library: Library) -> str:
    return "-".join(filter(None, (library.name, library.dtype_name, library.device)))


@pytest.fixture(params=LIBRARIES, ids=_id)
def library(request: pytest.FixtureRequest) -> Library:
    load(request.param.name)
    return request.param


@pytest.fixture(params=[library for library in LIBRARIES if library.name != "jax"], ids=_id)
def eager_library(request: pytest.FixtureRequest) -> Library:
    """A library that takes arrays of a new shape at once, where JAX would compile every operation for them."""
    load(request.param.name)
    return request.param


@pytest.fixture(params=HALVES, ids=_id)
def half(request: pytest.FixtureRequest) -> Library:
    """A library in half precision."""
    load(request.param.name)
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be written; the tests may run as root, who may write anywhere else."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when a picture is written."""
    write = _files._write_beside

    def fail(path: Path, data: bytes) -> Path:
        if path.suffix == ".png":
            raise OSError(28, "No space left on device", "/temporary/name")
        return write(path, data)

    monkeypatch.setattr(_files, "_write_beside", fail)
