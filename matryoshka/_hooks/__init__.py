"""How a loss is mapped over blocks of rows, and how each framework is told its gradient.

A hook is a module with three functions of one signature: `weighted_total`, `row_totals` and `gradients`. `rows` has
them for libraries without automatic differentiation; `torch` and `jax` register the closed-form gradient with their
framework. A namespace that is handed in through `xp=` may bring its own as the attribute `row_hook`.

Gradients of `weighted_total` are formed in its forward pass, where the probabilities are at hand; those of
`row_totals`, whose row weights are only known later, by a second pass over the rows. Both are first-order only.
"""

from __future__ import annotations

import importlib
from typing import Any

from matryoshka._array import is_jax_array, is_torch_array
from matryoshka._typing import Array, Namespace


def hook_for(array: Array, xp: Namespace) -> Any:
    """Return the hook module of the library that `array` belongs to; a framework's is imported on first use."""
    if hasattr(xp, "row_hook"):
        return xp.row_hook
    name = "torch" if is_torch_array(array) else "jax" if is_jax_array(array) else "rows"
    return importlib.import_module(f"matryoshka._hooks.{name}")
