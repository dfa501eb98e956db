"""The only door to array-api-compat: which library an array belongs to, and small helpers on top.

Everything in the core receives its namespace from `namespace` and runs where its input lives. A backend
whose tensors are no array-API objects (Keras) hands its own namespace in through the keyword `xp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
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


def namespace(
    *arrays: tuple[str, Array], optional: Iterable[tuple[str, Array | None]] = (), xp: Namespace | None = None
) -> Namespace:
    """Return the namespace that the named arrays share, after checking that they are arrays and share it and a device.

    Parameters
    ----------
    *arrays : (name, array)
        The arrays, each with the name that an error gives it.
    optional : iterable of (name, array or None)
        More of them; None is skipped.
    xp : namespace, optional
        Returned as it is, once each array is known to be one that its functions take. Devices are not compared.

    Raises
    ------
    TypeError
        An argument is no array, or two are of different libraries.
    ValueError
        Two arguments lie on different devices.
    """
    arrays += tuple([pair for pair in optional if pair[1] is not None])
    if xp is not None:
        if not hasattr(xp, "isdtype"):
            msg = f"`xp` must be an array namespace such as numpy, got {type(xp).__name__}; leave it out."
            raise TypeError(msg)
        for name, array in arrays:
            _check_of(name, array, xp)
        return xp
    first_name, first = arrays[0]
    expected = _namespace_of(first_name, first)
    for name, array in arrays[1:]:
        if type(array) is np.ndarray is type(first):
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


def beside_jax(*arguments: Any, xp: Namespace | None) -> tuple[Any, ...]:
    """Return arrays and sequences of arrays; if any is of JAX, which accepts NumPy arrays too, convert these to JAX."""
    if xp is not None and not (hasattr(xp, "isdtype") and library(xp) == "jax"):  # torch.compile traces no further
        return arguments

    def flat(argument: Any) -> Iterator[Any]:
        if isinstance(argument, tuple | list):
            for item in argument:
                yield from flat(item)
        else:
            yield argument

    if not any(is_jax_array(array) for array in flat(arguments)):
        return arguments
    import jax.numpy  # loaded already, with the arrays

    def converted(argument: Any) -> Any:
        if isinstance(argument, tuple | list):
            return tuple(map(converted, argument))
        return jax.numpy.asarray(argument) if isinstance(argument, np.ndarray) else argument

    return tuple(map(converted, arguments))


@cache
def _numpy() -> Namespace:
    return array_namespace(np.empty(0))


def _namespace_of(name: str, array: Array) -> Namespace:
    if type(array) is np.ndarray:
        return _numpy()
    if not is_array(array):
        msg = (
            f"`{name}` must be an array (NumPy, PyTorch, JAX, CuPy or another array-API library), "
            f"got {_kind(array)}; convert it, for instance with np.asarray."
        )
        raise TypeError(msg)
    xp = array_namespace(array)
    _check_plain(name, array, xp)
    return xp


def _check_of(name: str, array: Array, xp: Namespace) -> None:
    """Check that `array` is one that functions of `xp` take; torch.compile can trace this."""
    if library(xp) == "torch":
        if not isinstance(array, xp.Tensor):
            msg = f"`{name}` must be a tensor, got {_kind(array)}; convert it with torch.as_tensor."
            raise TypeError(msg)
    elif not (
        is_numpy_array(array) or (library(xp) != "numpy" and hasattr(array, "shape") and hasattr(array, "dtype"))
    ):
        msg = f"`{name}` must be an array or tensor, got {_kind(array)}; convert it with `asarray` of its library."
        raise TypeError(msg)
    _check_plain(name, array, xp)


def _check_plain(name: str, array: Array, xp: Namespace) -> None:
    """Refuse arrays that mean something else: a mask or layout that would be ignored, or `*` as a matrix product."""
    if type(array) is np.ndarray:
        return
    found = None
    if isinstance(array, np.matrix):
        found, remedy = "np.matrix", "convert it with np.asarray"
    elif isinstance(array, np.ma.MaskedArray):
        found, remedy = "a masked array", "fill or drop what is masked"
    elif library(xp) == "torch" and array.layout != xp.strided:
        found, remedy = f"one of layout {array.layout}", "call its to_dense"
    elif library(xp) == "torch" and hasattr(array, "full_tensor"):
        found = "a DTensor, of which each process holds a part"
        remedy = "call the module that was sharded, whose forward gathers its parameters, or take full_tensor() of it"
    if found is not None:
        msg = f"`{name}` must be a plain array, got {found}; {remedy}."
        raise TypeError(msg)


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
    """Return the device of `array`; None for JAX, whose traced arrays have none and which refuses mixtures itself."""
    if is_jax_array(array):
        return None
    return _device(array)


def _kind(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"


def is_floating(array: Array, xp: Namespace) -> bool:
    """Tell whether `array` holds real floating-point numbers, half precision included."""
    if isinstance(array, np.ndarray):  # what follows is slow there
        return array.dtype.kind == "f" or _dtype_name(array) in _HALF
    name = _dtype_name(array)
    if name.startswith(("float8", "float4")):  # for storage only: sums in them would be as coarse
        return False
    return name in _HALF or bool(xp.isdtype(array.dtype, "real floating"))


def is_integer(array: Array, xp: Namespace) -> bool:
    """Tell whether `array` holds integers (booleans are none)."""
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "iu"
    return bool(xp.isdtype(array.dtype, "integral"))


def accumulator_dtype(array: Array, xp: Namespace) -> object:
    """Return the dtype in which sums over `array` are formed: float32 for half precision, else its own."""
    if isinstance(array, np.ndarray) and array.dtype.kind == "f":
        dtype = array.dtype if array.dtype.itemsize > 2 else np.dtype(np.float32)
        return dtype if dtype.isnative else dtype.newbyteorder("=")
    return xp.float32 if _dtype_name(array) in _HALF else array.dtype


def _dtype_name(array: Array) -> str:
    return str(getattr(array.dtype, "name", array.dtype)).rpartition(".")[2]


def length(array: Array, axis: int, xp: Namespace, *, dtype: object = None) -> Any:
    """Return the length of an axis as an int; if a graph leaves it open (None), as an integer or `dtype` array ()."""
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
    """Return an uninitialised array on the device of `like`."""
    return xp.empty(shape, dtype=dtype, device=_creation_device(like, xp))


def full(shape: tuple[int, ...], value: float, *, like: Array, xp: Namespace, dtype: object = None) -> Array:
    """Return an array of one value, on the device of `like`, and in its dtype unless another is given."""
    return xp.full(shape, value, dtype=like.dtype if dtype is None else dtype, device=_creation_device(like, xp))


def _creation_device(like: Array, xp: Namespace) -> object:
    """Return what to pass as `device=` to make an array where `like` lives."""
    return None if library(xp) == "jax" else getattr(like, "device", None)


def is_remote(array: Array) -> bool:
    """Tell whether reading a number of `array` would wait for an accelerator."""
    if is_torch_array(array):
        return bool(array.device.type != "cpu")
    return is_cupy_array(array) or (is_jax_array(array) and any(d.platform != "cpu" for d in array.devices()))


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
    """Move an array to the host, of a library whose arrays NumPy cannot read where they are."""
    if is_cupy_array(array):
        return array.get()
    host = array_namespace(array).__array_namespace_info__().default_device()
    return array if device(array) == host else array.to_device(host)


def index_dtype(xp: Namespace) -> object:
    """Return the integer dtype in which this library indexes by default."""
    return xp.arange(1).dtype


def as_indices(array: Array, xp: Namespace) -> Array:
    """Return integers in the dtype in which this library indexes: in a narrow one, comparisons may wrap around."""
    return xp.astype(array, index_dtype(xp), copy=False)


def can_write(xp: Namespace) -> bool:
    """Tell whether arrays of this library can be written to at any index, and are best worked on in place."""
    return library(xp) in ("numpy", "torch", "cupy")


def take_rows(array: Array, rows: np.ndarray, xp: Namespace) -> Array:
    """Return the rows of an array with these numbers, reading no others."""
    return array[rows] if is_numpy_array(array) else xp.take(array, from_numpy(rows, like=array, xp=xp), axis=0)


def row_blocks(n: int, size: int) -> list[slice]:
    """Cut n rows into slices of `size`; no rows give one empty slice, so that results keep their shape."""
    if n <= size:  # where PyTorch traces it, n stays open
        return [slice(0, n)]
    return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]
