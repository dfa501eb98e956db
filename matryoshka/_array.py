"""The only door to array-api-compat: which library an array belongs to, and small helpers on top.

Everything in the core receives its namespace from `namespace` and runs where its input lives. A backend
whose tensors are no array-API objects (Keras) hands its own namespace in through the keyword `xp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as _device
from array_api_compat import is_cupy_array as is_cupy_array
from array_api_compat import is_jax_array as is_jax_array
from array_api_compat import is_numpy_array as is_numpy_array
from array_api_compat import is_torch_array as is_torch_array

from matryoshka._typing import Array, Namespace

_HALF = ("float16", "bfloat16")


def namespace(*arrays: tuple[str, Array], xp: Namespace | None = None) -> Namespace:
    """Return the namespace that the named arrays share, after checking that they share it and their device.

    Parameters
    ----------
    *arrays : (name, array)
        What to look at; pairs whose array is None are passed over, but for the first.
    xp : namespace, optional
        Returned as it is: whoever hands a namespace in answers for it. Only what PyTorch would trip over is refused.

    Raises
    ------
    TypeError
        An argument is no array, or two are of different libraries.
    ValueError
        Two arguments lie on different devices.
    """
    if xp is not None:
        for name, array in arrays:
            if isinstance(array, (np.ndarray, list)) and library(xp) == "torch":
                msg = f"`{name}` must be a tensor, got {_kind(array)}; convert it with torch.as_tensor."
                raise TypeError(msg)
        return xp
    (first_name, first), *others = arrays
    expected = _namespace_of(first_name, first)
    for name, array in others:
        if array is None or type(array) is np.ndarray is type(first):
            continue
        if _namespace_of(name, array) is not expected:
            msg = (
                f"`{first_name}` and `{name}` must come from one array library, "
                f"got {_kind(first)} and {_kind(array)}; convert one of them."
            )
            raise TypeError(msg)
        if device(array) != device(first):
            msg = (
                f"`{first_name}` and `{name}` must lie on one device, "
                f"got {device(first)} and {device(array)}; move one of them."
            )
            raise ValueError(msg)
    return expected


def _namespace_of(name: str, array: Array) -> Namespace:
    try:
        return array_namespace(array)
    except TypeError:
        msg = (
            f"`{name}` must be an array (NumPy, PyTorch, JAX, CuPy or another array-API library), "
            f"got {_kind(array)}; convert it, for instance with np.asarray."
        )
        raise TypeError(msg) from None


def library(xp: Namespace) -> str:
    """Return the name of the library that a namespace belongs to: "numpy", "torch", "jax", "cupy", ….

    Unlike a look at an array's type, this is something that torch.compile can trace.
    """
    return str(xp.__name__).removeprefix("array_api_compat.").partition(".")[0]


def is_array(value: object) -> bool:
    """Tell whether `value` is an array of a library that this package can work with."""
    try:
        array_namespace(value)
    except TypeError:
        return False
    return True


def device(array: Array) -> object:
    """Return where `array` lives; traced JAX arrays, which have no place yet, give None."""
    if is_jax_array(array):
        # Under jit the compiler decides; outside it JAX moves nothing by itself either, and raises on a mix.
        return None
    return _device(array)


def _kind(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"


def is_floating(array: Array, xp: Namespace) -> bool:
    """Tell whether `array` holds real floating-point numbers, half precision included."""
    if isinstance(array, np.ndarray):  # what follows is slow there
        return array.dtype.kind == "f" or _dtype_name(array) in _HALF
    return bool(xp.isdtype(array.dtype, "real floating")) or _dtype_name(array) in _HALF


def is_integer(array: Array, xp: Namespace) -> bool:
    """Tell whether `array` holds integers (booleans are none)."""
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "iu"
    return bool(xp.isdtype(array.dtype, "integral"))


def accumulator_dtype(array: Array, xp: Namespace) -> object:
    """Return the dtype in which sums over `array` are formed: float32 for half precision, else its own."""
    if isinstance(array, np.ndarray) and array.dtype.kind == "f":
        return array.dtype if array.dtype.itemsize > 2 else np.dtype(np.float32)
    return xp.float32 if _dtype_name(array) in _HALF else array.dtype


def _dtype_name(array: Array) -> str:
    return str(getattr(array.dtype, "name", array.dtype)).rpartition(".")[2]


def length(array: Array, axis: int, xp: Namespace, *, dtype: object = None) -> Any:
    """Return the length of an axis: an int, or where a graph leaves it open (None), a 0-d integer or `dtype` array."""
    n = array.shape[axis]
    if n is not None:
        return n
    n = xp.shape(array)[axis]
    return n if dtype is None else xp.astype(n, dtype)


def widest_dtype(xp: Namespace) -> object:
    """Return float64 where the library has it (JAX only on request), else float32."""
    dtypes = xp.__array_namespace_info__().dtypes(kind="real floating")
    return dtypes.get("float64", xp.float32)


def count_true(mask: Array, xp: Namespace) -> int:
    """Count what is true in a mask: it waits for the device."""
    return int(xp.sum(xp.astype(mask, xp.int32)))


def arange(n: Any, *, like: Array, xp: Namespace, dtype: object = None) -> Array:
    """Return 0 … n - 1 on the device of `like`."""
    return xp.arange(n, dtype=dtype, device=_creation_device(like, xp))


def from_numpy(array: np.ndarray, *, like: Array, xp: Namespace) -> Array:
    """Return a NumPy array as an array of the library and on the device of `like`."""
    return xp.asarray(array, device=_creation_device(like, xp))


def empty(shape: tuple[int, ...], *, like: Array, dtype: object, xp: Namespace) -> Array:
    """Return an array of any content on the device of `like`."""
    return xp.empty(shape, dtype=dtype, device=_creation_device(like, xp))


def full_scalar(value: float, *, like: Array, dtype: object, xp: Namespace) -> Array:
    """Return `value` as a 0-d array on the device of `like`."""
    return xp.full((), value, dtype=dtype, device=_creation_device(like, xp))


def full(shape: tuple[int, ...], value: float, *, like: Array, xp: Namespace) -> Array:
    """Return an array of one value, in the dtype and on the device of `like`."""
    return xp.full(shape, value, dtype=like.dtype, device=_creation_device(like, xp))


def _creation_device(like: Array, xp: Namespace) -> object:
    """Return what to pass as `device=` to make an array where `like` lives."""
    return None if library(xp) == "jax" else getattr(like, "device", None)


def to_numpy(array: Array) -> np.ndarray:
    """Return `array` as a NumPy array on the host: for small results only, it waits for the device."""
    if is_torch_array(array):
        array = array.detach().cpu()
        if _dtype_name(array) == "bfloat16":
            array = array.float()
    elif not (is_numpy_array(array) or is_jax_array(array)):
        array = _on_host(array)
    return np.asarray(array)


def _on_host(array: Array) -> Array:
    """Move an array of a library whose arrays NumPy cannot read from where they lie."""
    if is_cupy_array(array):
        return array.get()
    host = array_namespace(array).__array_namespace_info__().default_device()
    return array if device(array) == host else array.to_device(host)


def index_dtype(xp: Namespace) -> object:
    """Return the integer dtype in which this library indexes by default."""
    return xp.arange(1).dtype


def can_write(xp: Namespace) -> bool:
    """Tell whether arrays of this library can be written to at any index, and are best worked on in place."""
    return library(xp) in ("numpy", "torch", "cupy")


def take_rows(array: Array, rows: np.ndarray, xp: Namespace) -> Array:
    """Return some rows of an array by their numbers on the host, reading no others."""
    return array[rows] if is_numpy_array(array) else xp.take(array, from_numpy(rows, like=array, xp=xp), axis=0)


def row_blocks(n: int, size: int) -> list[slice]:
    """Cut n rows into slices of `size`; no rows make one empty slice, so that every result has its shape."""
    return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]
