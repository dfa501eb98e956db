"""Types of annotations that every room shares: arrays of any library, their namespace, a linear classifier."""

from __future__ import annotations

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any library that follows the Python array API (NumPy, PyTorch, JAX, CuPy, ...)."""

Namespace: TypeAlias = Any
"""The namespace of such a library, as `array_api_compat.array_namespace` returns it."""

Head: TypeAlias = tuple[Array, Array | None]
"""A linear classifier: its weight (n_classes, width) and its bias (n_classes,) or None."""
