"""Types for annotations in every part of the package: arrays of any library, their namespace, linear classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

Array: TypeAlias = Any
"""An array of any library that follows the Python array API (NumPy, PyTorch, JAX, CuPy, ...)."""

Namespace: TypeAlias = Any
"""The namespace of such a library, as `array_api_compat.array_namespace` returns it."""

Head: TypeAlias = tuple[Array, Array | None]
"""A linear classifier: its weight (n_classes, width) and its bias (n_classes,) or None."""


@runtime_checkable
class NestedHead(Protocol):
    """A layer that holds the linear classifiers of all prefixes, in any framework."""

    @property
    def nesting(self) -> Iterable[int]:
        """The widths of the prefixes, narrowest first."""

    @property
    def tied(self) -> bool:
        """Whether all prefixes share one classifier."""

    def heads(self) -> Sequence[Head]:
        """Return the classifier of each prefix, or a single one if they are tied."""
