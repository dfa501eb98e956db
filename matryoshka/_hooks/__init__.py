"""How a loss is mapped over blocks of rows, and how each framework is told its gradient.

`formula` states the interface. A hook is a module with the four functions of its protocol `Hook`: `loop` is that of
libraries without automatic differentiation; `torch`, `jax` and `tensorflow` register the closed-form gradient with
their framework. A namespace that is handed in through `xp=` may bring its own as the attribute `row_hook`.

Gradients of `weighted_total` are formed in its forward pass, where the probabilities are at hand; those of
`row_totals`, whose row weights are only known later, by a second pass over the rows. Both are first-order only.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, cast

from matryoshka._array import library
from matryoshka._hooks.formula import Hook
from matryoshka._typing import Namespace

if TYPE_CHECKING:  # a framework is imported on first use only, but each module is held to the protocol
    from matryoshka._hooks import jax, loop, tensorflow, torch

    _HOOKS: tuple[Hook, ...] = (jax, loop, tensorflow, torch)


def hook_for(xp: Namespace) -> Hook:
    """Return the hook for arrays of the namespace `xp`; a framework's is imported on first use."""
    if hasattr(xp, "row_hook"):
        return cast(Hook, xp.row_hook)
    name = library(xp) if library(xp) in ("torch", "jax") else "loop"
    module = f"matryoshka._hooks.{name}"
    return cast(Hook, sys.modules[module] if module in sys.modules else importlib.import_module(module))
