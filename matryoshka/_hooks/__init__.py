"""How a loss is mapped over blocks of rows, and how each framework is told its gradient.

A hook is a module with three functions of one signature: `weighted_total`, `row_totals` and `gradients`. `rows` has
them for libraries without automatic differentiation; `torch` and `jax` register the closed-form gradient with their
framework. A namespace that is handed in through `xp=` may bring its own as the attribute `row_hook`.

Gradients of `weighted_total` are formed in its forward pass, where the probabilities are at hand; those of
`row_totals`, whose row weights are only known later, by a second pass over the rows. Both are first-order only.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from matryoshka._array import library
from matryoshka._typing import Namespace


def hook_for(xp: Namespace) -> Any:
    """Return the hook module for arrays of the namespace `xp`; a framework's is imported on first use."""
    if hasattr(xp, "row_hook"):
        return xp.row_hook
    name = library(xp) if library(xp) in ("torch", "jax") else "rows"
    module = f"matryoshka._hooks.{name}"
    return sys.modules[module] if module in sys.modules else importlib.import_module(module)
