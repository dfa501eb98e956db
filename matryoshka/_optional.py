"""Import what an extra installs, or say exactly which command installs it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

PACKAGE = "matryoshka-mrl"


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
        msg = f"{purpose} needs {error.name}, which is not installed; run: {command(extra)}"
        raise ImportError(msg) from error


def command(extra: str) -> str:
    """Return how to install an extra: by its requirements, wherever this package came from, and by its name."""
    import importlib.metadata  # takes longer to load than the rest of the package

    named = f'pip install "{PACKAGE}[{extra}]"'
    try:
        every = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        every = []
    marker = re.compile(rf"""\s*;\s*extra\s*==\s*["']{re.escape(extra)}["']""")
    wanted = [f'"{marker.sub("", each)}"' for each in every if marker.search(each)]
    if not wanted:  # a checkout on the path, which is not what is installed
        wanted = [f'"{Path(__file__).parents[1]}[{extra}]"']
    return f"pip install {' '.join(wanted)} (with this package from a registry: {named})"
