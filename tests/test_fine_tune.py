"""The benchmark of docs/train.md: what a nested network begins with, what is trained, and what is printed.

Networks are trained for a few steps only; how good they become is for the benchmark itself to say.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks

import_benchmarks("torch", "sklearn", "tqdm")
ROOT = Path(__file__).parents[1]

import torch  # noqa: E402

from benchmarks import fine_tune  # noqa: E402
from benchmarks.study import data, networks  # noqa: E402
from matryoshka.torch import MRLHead  # noqa: E402


@pytest.fixture(scope="module")
def rows() -> data.Rows:
    return data.load("digits").split(0).train


@pytest.fixture
def plain(rows: data.Rows, monkeypatch: pytest.MonkeyPatch) -> fine_tune.Network:
    """Return a network that knows little, but not nothing."""
    monkeypatch.setattr(fine_tune, "EPOCH", 5)
    with networks.reproducible():
        torch.manual_seed(0)
        network = fine_tune.Network(fine_tune.plain_blocks(64), MRLHead((64,), 10, tied=True))
        return fine_tune.fit(network, 3, rows, epochs=2, rate=1e-2, seed=0)


def logits(network: fine_tune.Network, features: torch.Tensor) -> Any:
    return [z.detach() for z in network.head(network.embed(features))]


@pytest.mark.parametrize(("way", "kept"), [("old head", True), ("PCA, old head", True), ("new head", False)])
def test_what_begins_with_the_old_head_answers_as_before(
    plain: fine_tune.Network, rows: data.Rows, way: str, kept: bool
) -> None:
    features = torch.from_numpy(rows.features)
    nested = fine_tune.begin(way, plain, features)
    same = torch.allclose(logits(nested, features)[-1], logits(plain, features)[0], atol=1e-4)
    assert (same, nested.head.nesting.dims) == (kept, fine_tune.DIMS)


def test_the_rotation_gives_principal_components(plain: fine_tune.Network, rows: data.Rows) -> None:
    features = torch.from_numpy(rows.features)
    components = fine_tune.begin("PCA, old head", plain, features).embed(features).numpy().astype(np.float64)
    embeddings = plain.embed(features).numpy().astype(np.float64)
    _, singular, _ = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
    np.testing.assert_allclose(components.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(components.T @ components, np.diag(singular**2), atol=1e-4 * singular[0] ** 2)


@pytest.mark.parametrize("unfrozen", [0, 1, 3])
def test_only_what_is_unfrozen_changes(plain: fine_tune.Network, rows: data.Rows, unfrozen: int) -> None:
    nested = fine_tune.begin("old head", plain, torch.from_numpy(rows.features))
    before = copy.deepcopy(nested.state_dict())
    fine_tune.fit(nested, unfrozen, rows, epochs=1, rate=1e-2, seed=0)
    changed = {
        name.split(".nesting")[0][: len("blocks.0")]
        for name, value in nested.state_dict().items()
        if not torch.equal(value, before[name])  # running statistics of a batch normalisation are among them
    }
    assert changed == {"head", *(f"blocks.{i}" for i in range(3 - unfrozen, 3))}


def test_the_linear_judge_is_a_ridge_classifier(rng: np.random.Generator) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels, query_labels = rng.integers(4, size=200), rng.integers(4, size=90)
    centres = rng.normal(size=(4, 6))
    features, queries = (centres[y] + rng.normal(size=(len(y), 6)) for y in (labels, query_labels))
    ridge = 1e-4 * features.var(axis=0).sum() * len(features) / 6
    expected = linear_model.Ridge(alpha=ridge).fit(features, np.eye(4)[labels]).predict(queries).argmax(-1)
    share = fine_tune._least_squares(features, labels, queries, query_labels)
    assert share == pytest.approx(np.mean(expected == query_labels), abs=1e-12)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="`--data` must hold square grey images, got rows of 63 numbers"):
        fine_tune.plain_blocks(63)


def test_runs_are_averaged_in_percent() -> None:
    runs = [[{"way": "x", "test": [0.5, 0.25]}], [{"way": "x", "test": [0.7, 0.25]}]]
    assert fine_tune.summary(runs) == [{"way": "x", "test": "60.00 25.00", "test_sd": "14.14 0.00"}]
    assert fine_tune.summary(runs[:1]) == [{"way": "x", "test": "50.00 25.00", "test_sd": "0.00 0.00"}]


@pytest.mark.parametrize("question", list(fine_tune.QUESTIONS))
def test_the_command_prints_and_stores(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"EPOCH": 1, "STEPS": 2, "ROUNDS": 1, "BATCH": 16, "CORPUS_ROWS": 100}.items():
        monkeypatch.setattr(fine_tune, name, value)
    monkeypatch.chdir(tmp_path)
    for folder in ("benchmarks", "docs"):
        (tmp_path / folder).mkdir()
    fine_tune.main([question, "--runs", "2", "--store"])
    page = (tmp_path / f"docs/results/fine_tune_{question}.md").read_text()
    stored = json.loads((tmp_path / f"benchmarks/results/fine_tune_{question}.json").read_text())
    assert page in capsys.readouterr().out
    assert (stored["data"], stored["runs"]) == ("digits", 2)
    names = fine_tune.LADDERS if question == "ladders" else [*fine_tune.WAYS, "plain", "nested from the start"]
    assert {record.get("ladder", record.get("way")) for record in stored["records"]} == set(names)
    assert all(f"| {name}" in page for name in names)


@pytest.mark.parametrize("question", list(fine_tune.QUESTIONS))
def test_the_tables_of_the_documentation_are_those_of_the_stored_run(question: str) -> None:
    stored = json.loads((ROOT / f"benchmarks/results/fine_tune_{question}.json").read_text(encoding="utf-8"))
    page = (ROOT / f"docs/results/fine_tune_{question}.md").read_text(encoding="utf-8")
    assert fine_tune.QUESTIONS[question][1](stored) == page
