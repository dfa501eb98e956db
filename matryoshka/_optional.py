"""Import what an extra installs, or say exactly which command installs it."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import and return `module`.

    Parameters
    ----------
    module : str
        Name to import, for instance "torch".
    extra : str
        The extra of this package that brings it.
    purpose : str
        What needs it, the subject of the message: "`matryoshka.torch`".

    Raises
    ------
    ImportError
        `module` is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        msg = f'{purpose} needs {error.name}, which is not installed; run: pip install "matryoshka-mrl[{extra}]"'
        raise ImportError(msg) from error
