"""Types that annotations share: arrays of any library, and the records that travel as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matryoshka.nesting import Nesting

Array: TypeAlias = Any
"""An array of any library that follows the Python array API (NumPy, PyTorch, JAX, CuPy, ...)."""

Namespace: TypeAlias = Any
"""The namespace of such a library, as `array_api_compat.array_namespace` returns it."""

NestingLike: TypeAlias = "Nesting | Sequence[int]"
"""A `Nesting`, or the widths of its prefixes."""

Head: TypeAlias = tuple[Array, Array | None]
"""A linear classifier: its weight (n_classes, width) and its bias (n_classes,) or None."""
