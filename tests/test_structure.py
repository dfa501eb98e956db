"""The package as a text: which file may import which, which names may leave their folder, how long anything may be."""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import matryoshka

ROOT = Path(matryoshka.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

TIERS = (
    ("_typing", "_optional", "_files", "_folders", "_threads"),
    ("_array", "_algebra"),
    ("_checks", "_values", "_pictures"),
    ("nesting",),
    ("_hooks", "_promises"),
    ("embeddings", "rotation", "losses", "costs", "metrics"),
    ("cascade", "retrieval"),
    ("audit", "evaluation"),
    (
        "_gradient_cache",
        "_pgvector",
        "_qdrant",
        "_tensorflow",
        "torch",
        "keras",
        "sentence_transformers",
        "faiss",
        "dask",
        "qdrant",
        "postgres",
    ),
    ("",),  # the package itself, which hands out the public names
    ("_commands", "cli", "__main__"),
)
"""Files and folders, those that import nothing first: an import goes to an earlier row, or to its own."""

PUBLIC_BY_PYTHON = {"_asdict", "_fields", "_replace"}  # of every named tuple
LINES_OF_A_MODULE, LINES_OF_A_FUNCTION = 300, 40


def name_of(path: Path) -> str:
    """Return the dotted name of a module below the package: "" is the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


class Import(NamedTuple):
    """One imported name: of which module (or "" for the package), and where the statement stands."""

    module: str
    name: str | None
    statement: ast.Import | ast.ImportFrom
    in_function: bool


def imports(path: Path) -> Iterator[Import]:
    """Give what a file imports from the package, annotations and functions included."""
    tree = parsed(path)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "matryoshka":
                    yield Import(alias.name.partition(".")[2], None, node, id(node) in inner)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "matryoshka":
            module = str(node.module).partition(".")[2]
            for alias in node.names:
                below = f"{module}.{alias.name}".removeprefix(".")
                found = Import(below, None, node, id(node) in inner)
                yield found if below in MODULES else Import(module, alias.name, node, id(node) in inner)


def tier(module: str) -> int:
    first = module.partition(".")[0]
    return next(i for i, row in enumerate(TIERS) if first in row)


def graph() -> dict[str, set[str]]:
    """Return which modules each module imports when it is loaded or its annotations are read."""
    return {
        name: {found.module for found in imports(path) if not found.in_function and found.module != name}
        for name, path in MODULES.items()
    }


def test_no_circle_of_imports() -> None:
    arrows = graph()
    while leaves := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert {name: sorted(targets & set(arrows)) for name, targets in arrows.items()} == {}


def test_imports_follow_the_order_of_the_design() -> None:
    upward = [
        f"{name} -> {target}" for name, targets in graph().items() for target in targets if tier(target) > tier(name)
    ]
    assert upward == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_import_inside_a_function_says_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    silent = []
    for found in imports(path):
        at = found.statement.lineno - 1
        block = itertools.takewhile(
            lambda line: "import " in line, reversed(lines[:at])
        )  # one reason may serve several
        if found.in_function and not any("#" in line for line in (lines[at], *block)):
            silent.append(lines[at])
    assert silent == []


def folder_of_private(module: str, name: str | None) -> str | None:
    """Return the folder within which a private module or name may be used; None for public ones."""
    parts = [*module.split("."), *([name] if name else [])]
    for i, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            inside = ".".join(parts[:i])
            is_folder = not inside or MODULES[inside].name == "__init__.py"
            return inside if is_folder else inside.rpartition(".")[0]
    return None


def is_inside(name: str, folder: str) -> bool:
    return not folder or name == folder or name.startswith(f"{folder}.")


@cache
def private_definitions() -> dict[str, set[str]]:
    """Return for each private attribute the folders that define it: as a method, a field, or an attribute of self."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(parsed(path)):
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names = [node.id]
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names = [node.attr]
            for defined in names:
                if defined.startswith("_"):
                    found.setdefault(defined, set()).add(folder)
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_private_names_stay_in_their_folder(path: Path) -> None:
    name = name_of(path)
    outside = []
    for found in imports(path):
        folder = folder_of_private(found.module, found.name)
        if folder is not None and not is_inside(name, folder):
            outside.append(f"{found.module}:{found.name}")
    for node in ast.walk(parsed(path)):
        if not (isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")):
            continue
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        folders = private_definitions().get(node.attr, set())
        if own or node.attr in PUBLIC_BY_PYTHON or not folders:
            continue
        if not any(is_inside(name, folder) for folder in folders):
            outside.append(f"{ast.unparse(node)} in line {node.lineno}")
    assert outside == []


def lines_of_code(path: Path) -> set[int]:
    """Return the numbers of the lines that hold code: no docstring, no comment, nothing blank."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    text = path.read_text(encoding="utf-8")
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in quiet
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return code


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_functions_are_short(path: Path) -> None:
    code = lines_of_code(path)
    assert len(code) < LINES_OF_A_MODULE
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
    lengths = {f.name: len(code & set(range(f.lineno, (f.end_lineno or f.lineno) + 1))) for f in functions}
    assert {name: length for name, length in lengths.items() if length >= LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_lives_there(path: Path) -> None:
    said = ast.get_docstring(parsed(path)) or ""
    assert said.partition("\n\n")[0].rstrip().endswith((".", "?", ":"))
