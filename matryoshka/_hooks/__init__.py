"""How a loss is mapped over blocks of rows, and how each framework gets its gradient.

`formula` defines the interface. A hook is a module with the five functions of the protocol `Hook`: `loop` is for
libraries without automatic differentiation; `torch`, `jax` and `tensorflow` register the closed-form gradient with
their framework. A namespace that is passed as `xp=` may bring its own hook as the attribute `row_hook`.

Gradients of `weighted_total` are formed in its forward pass, while the probabilities are at hand; those of
`row_totals`, whose row weights are known only later, in a second pass over the rows. Both are of first order only.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, cast

from matryoshka._array import library
from matryoshka._hooks.formula import Hook
from matryoshka._typing import Namespace

if TYPE_CHECKING:  # frameworks are imported on first use, but type checkers compare every hook with the protocol
    from matryoshka._hooks import jax, loop, tensorflow, torch

    _HOOKS: tuple[Hook, ...] = (jax, loop, tensorflow, torch)


def hook_for(xp: Namespace) -> Hook:
    """Return the hook for arrays of the namespace `xp`; a framework's is imported on first use."""
    if hasattr(xp, "row_hook"):
        return cast(Hook, xp.row_hook)
    name = library(xp) if library(xp) in ("torch", "jax") else "loop"
    module = f"matryoshka._hooks.{name}"
    return cast(Hook, sys.modules[module] if module in sys.modules else importlib.import_module(module))
