"""The package as a whole: what importing it loads, what is public, and where that is described."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from conftest import load

import matryoshka
from matryoshka import _optional

MODULES = [
    "matryoshka",
    *(
        module.name
        for module in pkgutil.walk_packages(matryoshka.__path__, "matryoshka.")
        if "._" not in module.name  # what is private, and `__main__`
    ),
]
NAMED_ALIKE = {"dask", "faiss", "keras", "sentence_transformers", "torch"}  # the module here and what it needs
OPTIONAL = {name: name for name in NAMED_ALIKE} | {"postgres": "psycopg"}
SHARED = {"as_nesting", "cutoffs"}  # modules of the package share them; users need not know them
RESULTS = {"Audit", "CascadeEvaluation", "Evaluation"}  # the examples of what returns them show them
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
SOURCES = sorted(Path(matryoshka.__file__).parent.rglob("*.py"))
API = "".join(
    page.read_text(encoding="utf-8") for page in sorted(Path(__file__).parents[1].joinpath("docs", "api").glob("*.md"))
)


def import_public(name: str) -> ModuleType:
    if (needed := name.partition(".")[2]) in OPTIONAL:
        load(OPTIONAL[needed])
    return importlib.import_module(name)


@functools.cache
def printed_by(code: str) -> str:
    """Return what a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a statement loads in a fresh interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return set(printed_by(code).split())


def test_importing_loads_next_to_nothing() -> None:
    loaded = loaded_by("import matryoshka")
    assert {name for name in loaded if name.startswith("matryoshka")} == {"matryoshka"}
    assert {name.partition(".")[0] for name in loaded - loaded_by("import numpy")} - sys.stdlib_module_names == {
        "matryoshka"
    }


@pytest.mark.parametrize("name", matryoshka.__all__)
def test_a_public_name_loads_numpy_and_array_api_compat_only(name: str) -> None:
    loaded = loaded_by(f"from matryoshka import {name}")
    third_party = {module.partition(".")[0] for module in loaded} - sys.stdlib_module_names
    assert third_party - loaded_by("import numpy") <= {"array_api_compat", "matryoshka"}
    assert "array_api_compat.numpy" not in loaded


@pytest.mark.parametrize(
    "statement",
    [
        "import matryoshka",
        "import matryoshka.audit",
        "from matryoshka import audit",
        "from matryoshka.audit import Audit",
        "from matryoshka import Audit",
        "import matryoshka.cli",
        "from matryoshka import audit; import matryoshka.audit",
        "import matryoshka.audit as folder; from matryoshka import audit",
        "import importlib, matryoshka; importlib.import_module('matryoshka.audit')",
    ],
)
def test_audit_is_the_function_whatever_is_imported_first(statement: str) -> None:
    code = f"{statement}; import matryoshka, types; print(type(matryoshka.audit) is types.FunctionType)"
    assert printed_by(code) == "True\n"


def test_modules_of_the_package_come_when_asked_for() -> None:
    code = "import matryoshka; print(matryoshka.cascade.oracle_routing.__name__, matryoshka.losses.__name__)"
    assert printed_by(code) == "oracle_routing matryoshka.losses\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'matryoshka' has no attribute 'corpus'"):
        matryoshka.corpus  # noqa: B018


def test_what_is_imported_is_what_is_installed() -> None:
    installed = importlib.metadata.distribution("matryoshka-mrl")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    root = url2pathname(urlparse(origin["url"]).path) if editable else installed.locate_file("")
    assert Path(matryoshka.__file__).parent.samefile(Path(str(root), "matryoshka"))
    assert installed.version == matryoshka.__version__


@pytest.mark.parametrize(
    ("distribution", "said"),
    [
        (["numpy>=2.0", "keras>=3; extra == 'keras'", 'jax[a]>=0.5 ; extra == "keras"'], '"keras>=3" "jax[a]>=0.5"'),
        (["torch>=2.4; extra == 'torch'"], f'"{Path(matryoshka.__file__).parents[1]}[keras]"'),
        (None, f'"{Path(matryoshka.__file__).parents[1]}[keras]"'),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named_by_what_it_requires(
    distribution: list[str] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requires(name: str) -> list[str]:
        assert name == "matryoshka-mrl"
        if distribution is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    with pytest.raises(ImportError) as missing:
        _optional.require("no_such_module", extra="keras", purpose="`this`")
    assert str(missing.value) == (
        f"`this` needs no_such_module, which is not installed; run: pip install {said} (with this package from a "
        'registry: pip install "matryoshka-mrl[keras]")'
    )


def test_extras_that_are_asked_for_are_those_there_are() -> None:
    wanted = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = re.findall(r'require\([^)]*extra="([\w-]+)"', "".join(map(Path.read_text, SOURCES)))
    assert set(asked) == set(wanted) - {"jax", "all"}  # jax is what Keras asks for
    assert wanted["all"] == [f"matryoshka-mrl[{','.join(name for name in wanted if name != 'all')}]"]


def test_the_lowest_versions_of_every_extra_are_tested() -> None:
    wanted = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    source = (PROJECT.parent / "noxfile.py").read_text(encoding="utf-8")
    tested = set(re.findall(r'^    "([\w-]+)": \(', source, flags=re.MULTILINE))
    assert tested == {*wanted, "core"} - {"all"}


def test_all_names_what_is_public() -> None:
    assert set(dir(matryoshka)) >= {*matryoshka.__all__, "cascade", "losses", "retrieval", "__version__"}
    assert all(hasattr(matryoshka, name) for name in matryoshka.__all__)


def test_type_checkers_see_what_is_public() -> None:
    source = Path(matryoshka.__file__).read_text(encoding="utf-8")
    seen = re.findall(r"^    from matryoshka\S* import (\w+) as \1$", source, flags=re.MULTILINE)
    assert sorted(seen) == matryoshka.__all__


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_complete(name: str) -> None:
    module = import_public(name)
    defined_here = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in SHARED and getattr(value, "__module__", None) == module.__name__
    }
    assert list(module.__all__) == sorted(set(module.__all__))
    assert defined_here <= set(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


def documented() -> list[Any]:
    """Return what docs/api/ lists; a name that no longer exists is an error."""
    names = re.findall(r"^   ([A-Za-z][\w.]*)$", API, flags=re.MULTILINE)
    parts = [f"matryoshka.{name}".rpartition(".") for name in names]
    return [getattr(import_public(module), name) for module, _, name in parts]


@pytest.mark.parametrize("name", MODULES)
def test_the_api_reference_lists_every_public_name(name: str) -> None:
    module, listed = import_public(name), documented()
    public = {key: getattr(module, key) for key in module.__all__}
    modules = {key for key, value in public.items() if isinstance(value, ModuleType)}
    assert [key for key in set(public) - modules if not any(public[key] is other for other in listed)] == []


@pytest.mark.parametrize("name", sorted(set(matryoshka.__all__) - {"costs", "metrics"} - RESULTS))
def test_every_name_of_the_package_shows_an_example(name: str) -> None:
    assert ">>> " in getattr(matryoshka, name).__doc__
