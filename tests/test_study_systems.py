"""The systems of the study: what they give for every part, what they learn from, and the mathematics in them.

Networks are trained for a few steps only; how good they become is for the study itself to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks

import_benchmarks("torch", "sklearn", "tqdm")

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.study import grid, networks, reductions, selections, systems  # noqa: E402
from benchmarks.study.cells import Bench  # noqa: E402
from benchmarks.study.networks import Training  # noqa: E402
from benchmarks.study.outputs import Outputs  # noqa: E402
from benchmarks.study.slimmable import Slimmable  # noqa: E402
from matryoshka import Nesting  # noqa: E402

N_CLASSES, DIMS = 5, (2, 4, 8)
CONVOLUTIONAL = {"steps": 6, "epochs": 0, "backbone": "convolutional"}


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with networks.reproducible():
        yield


def bench_of(folder: Path, named: dict[str, dict[str, Any]], **training: Any) -> Bench:
    """Return a bench of 150 images of 12 x 6 in five groups, no two of one size."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(N_CLASSES, 12, 6)) * 2
    content = {}
    for part, sizes in (("train", (50, 40, 30, 18, 12)), ("test", (4, 9, 5, 7, 6))):
        labels = np.repeat(np.arange(N_CLASSES), sizes)
        content[f"{part}_labels"] = labels
        content[f"{part}_features"] = (centres[labels] + rng.normal(size=(len(labels), 12, 6))).astype(np.float32)
    np.savez(folder / "set.npz", **content)
    training = {"steps": 6, "epochs": 0, "hidden": 2} | training
    bench = Bench(str(folder / "set.npz"), grid.Grid("set", DIMS, (0,), training, named, {}), folder)
    bench.__dict__["dataset"] = replace(bench.dataset, shape=(12, 6))
    return bench


SYSTEMS: dict[str, dict[str, Any]] = {
    "MRL": {"kind": "nested"},
    "MRL-E": {"kind": "nested", "tied": True},
    "FF": {"kind": "fixed"},
    "SVD": {"kind": "svd", "of": "FF"},
    "PCA": {"kind": "pca", "of": "FF"},
    "Rand": {"kind": "random", "of": "FF"},
    "rotation": {"kind": "rotation", "of": "FF"},
    "Slim": {"kind": "slim"},
    "fine-tune 1": {"kind": "fine-tune", "of": "FF", "unfrozen": 1},
    "fine-tune all": {"kind": "fine-tune", "of": "FF", "unfrozen": "all"},
    "raw": {"kind": "raw"},
}


@pytest.fixture(scope="module", params=["dense", "convolutional"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_of(tmp_path_factory.mktemp("study"), SYSTEMS, backbone=request.param)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_answers_for_every_part(bench: Bench, name: str) -> None:
    made, parts = bench.outputs(name, 0), bench.parts(0)
    dims = (*DIMS, 72) if name == "raw" else DIMS
    assert (made.dims, made.nested) == (dims, name not in ("FF", "Slim"))
    assert set(made.embeddings) == set(parts)
    for part, features in parts.items():
        for dim in dims:
            embeddings = made.embed(part, dim)
            assert (embeddings.shape, embeddings.dtype) == ((len(features), dim), np.float32)
    if name == "raw":
        assert not made.logits
        return
    assert set(made.logits) == {"calibration", "test"}
    for part, logits in made.logits.items():
        assert (logits.shape, logits.dtype) == ((len(DIMS), len(parts[part]), N_CLASSES), np.float32)
        assert np.isfinite(logits).all()


def test_what_is_kept_is_what_was_made(bench: Bench) -> None:
    made, kept = bench.outputs("FF", 0), bench.folder / "trained" / "FF.0.npz"
    assert kept.is_file()
    again = systems.fixed(bench, "FF", 0)
    read = Outputs.load(kept)
    for outputs in (made, read):
        np.testing.assert_equal(outputs.weights, again.weights)
        np.testing.assert_equal(outputs.embeddings, again.embeddings)
        np.testing.assert_equal(outputs.logits, again.logits)


def test_a_fixed_network_reads_the_first_columns_of_a_backbone_that_all_widths_share(bench: Bench) -> None:
    made = bench.outputs("FF", 0)
    weight, bias = networks.only_classifier(made.weights)
    assert weight.shape == (N_CLASSES, 8)
    expected = made.embed("test", 8).astype(float) @ weight.T.astype(float) + bias
    np.testing.assert_allclose(made.logits["test"][-1], expected, atol=1e-5)
    assert not np.allclose(made.embed("test", 4), made.embed("test", 8)[:, :4], atol=1e-3)


def test_two_uses_of_the_svd(bench: Bench) -> None:
    start, made = bench.outputs("FF", 0), bench.outputs("SVD", 0)
    weight, bias = networks.only_classifier(start.weights)
    train, test = (start.embed(part, 8).astype(float) for part in ("train", "test"))
    directions = np.linalg.svd(train)[2]
    left, values, right = np.linalg.svd(weight.astype(float), full_matrices=False)
    for dim, logits in zip(DIMS, made.logits["test"], strict=True):
        head = sum(values[i] * np.outer(left[:, i], right[i]) for i in range(min(dim, N_CLASSES)))
        np.testing.assert_allclose(logits, test @ head.T + bias, atol=1e-4)
        projected = test @ directions[:dim].T
        np.testing.assert_allclose(np.abs(made.embed("test", dim)), np.abs(projected), atol=1e-3)


def test_a_rotation_leaves_inner_products_as_they_are(bench: Bench) -> None:
    whole, turned = bench.outputs("FF", 0).embed("test", 8), bench.outputs("rotation", 0).embed("test", 8)
    np.testing.assert_allclose(turned @ turned.T, whole @ whole.T, atol=1e-3)
    columns = bench.outputs("Rand", 0).embed("test", 8)
    assert sorted(map(tuple, columns.T)) == sorted(map(tuple, whole.T))
    assert not np.array_equal(columns, whole)


def test_fine_tuning_leaves_frozen_blocks_alone(tmp_path: Path) -> None:
    named = SYSTEMS | {f"fine-tune {n}": {"kind": "fine-tune", "of": "FF", "unfrozen": n} for n in range(4)}
    bench = bench_of(tmp_path, named)
    plain = bench.outputs("FF", 0).embed("test", 8)
    np.testing.assert_array_equal(bench.outputs("fine-tune 0", 0).embed("test", 8), plain)
    tuned = [bench.outputs(f"fine-tune {n}", 0).embed("test", 8) for n in (1, 2, 3)]
    assert not any(np.allclose(rows, plain, atol=1e-3) for rows in tuned)
    assert not np.allclose(tuned[0], tuned[1], atol=1e-4)
    np.testing.assert_array_equal(bench.outputs("fine-tune all", 0).embed("test", 8), tuned[2])  # of three blocks


@pytest.mark.parametrize("unfrozen", [-1, 4, 1.5, "some"])
def test_blocks_that_are_not_there_are_refused(tmp_path: Path, unfrozen: Any) -> None:
    bench = bench_of(tmp_path, SYSTEMS)
    with pytest.raises(ValueError, match=r"`unfrozen` of odd must be within \[0, 3\] or all, got"):
        systems.fine_tune(bench, "odd", 0, of="FF", unfrozen=unfrozen)


def test_frozen_blocks_keep_their_running_statistics() -> None:
    network = networks.Network(networks.dense(6, 4, Training(hidden=2), None), systems.MRLHead((2, 4), 3), n_frozen=2)
    before = {name: array.copy() for name, array in network.weights().items()}
    rows = networks.Rows(np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32) + 5, np.arange(40) % 3)
    networks.fit(network, rows, 5, seed=0, progress=networks.tqdm(disable=True), slower=network.backbone)
    changed = {name.rsplit(".", 2)[0] for name, array in network.weights().items() if (array != before[name]).any()}
    assert changed == {"backbone.2", "head"}


def test_a_selection_is_what_is_learned_from(tmp_path: Path) -> None:
    named = {
        f"{name} seen": options | {"rows": "seen classes"} | ({"of": "FF seen"} if "of" in options else {})
        for name, options in SYSTEMS.items()
        if name != "raw"
    }
    bench = bench_of(tmp_path, named)
    train = bench.split(0).train
    unseen = train.labels[~selections.seen(train.labels, 0)][0]
    spoilt = bench_of(tmp_path, named)
    features = np.where((train.labels == unseen)[:, None], -7 * train.features, train.features)
    split = replace(bench.split(0), train=networks.Rows(features, train.labels))
    object.__setattr__(spoilt, "output", tmp_path / "spoilt")
    object.__setattr__(spoilt, "split", lambda seed: split)
    for name in named:
        made, other = bench.outputs(name, 0), spoilt.outputs(name, 0)
        np.testing.assert_array_equal(made.logits["test"], other.logits["test"])
        np.testing.assert_array_equal(made.embed("test", 4), other.embed("test", 4))
        assert len(made.embed("train", 4)) == len(train)
    assert (bench.outputs("PCA seen", 0).logits["test"][..., unseen] == -np.inf).all()


def test_options_of_nested_training(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, SYSTEMS)
    assert systems.nested(bench, "MRL", 0, dims=[3, 7]).dims == (3, 7)
    plain = systems.nested(bench, "MRL", 0)
    for importance, same in (([1, 1, 1], True), ([2, 1, 1], False)):
        found = systems.nested(bench, "MRL", 0, importance=importance).logits["test"]
        assert np.array_equal(found, plain.logits["test"]) is same
    assert Nesting(DIMS, [2, 1, 1]).importance == (2, 1, 1)
    with pytest.raises(ValueError, match="`rows` must be one of everything, long tail, seen classes, got 'some'"):
        systems.nested(bench, "MRL", 0, rows="some")


def test_images_need_a_shape() -> None:
    with pytest.raises(ValueError, match="got rows of 72 numbers without a shape; take dense"):
        networks.convolutional(72, 8, Training(), None)


@pytest.mark.parametrize("shape", [(12, 6), (4, 6, 3)])
def test_rows_become_planes(shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 72))
    planes = networks.Planes(shape)(torch.from_numpy(rows)).numpy()
    for row, image in zip(rows.reshape(5, *shape), planes, strict=True):
        for channel in range(len(image)):
            np.testing.assert_array_equal(image[channel], row[..., channel] if len(shape) == 3 else row)


def test_each_width_of_a_slimmable_network_is_a_network_of_narrower_layers() -> None:
    torch.manual_seed(0)
    backbone = networks.convolutional(144, 8, Training(), (12, 12))
    network = Slimmable(backbone, (2, 8), 3)
    rows = torch.randn(20, 144)
    network(rows, torch.arange(20) % 3)  # moves the running statistics
    embeddings, logits = network.outputs(rows.numpy())
    convolutions = [layer for layer in backbone.modules() if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer["2"] for layer in network.layers if isinstance(layer, torch.nn.ModuleDict)]
    values, n_in = rows.reshape(20, 1, 12, 12), 1
    with torch.no_grad():
        for i, (convolution, norm, n_out) in enumerate(zip(convolutions, norms, (4, 8, 16, 2), strict=True)):
            weight = convolution.weight[:n_out, :n_in]
            values, n_in = functional.conv2d(values, weight, padding=1), n_out
            mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
            values = ((values - mean) / (var + norm.eps).sqrt()).relu()
            values = functional.max_pool2d(values, 2, ceil_mode=True) if i < 3 else values.mean((2, 3))
        expected = values @ network.head.weight[:, :2].T + network.head.bias
    np.testing.assert_allclose(embeddings[2], values, atol=1e-5)
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)
    assert not np.allclose(embeddings[8][:, :2], embeddings[2], atol=1e-3)


def test_the_loss_of_a_slimmable_network_is_the_sum_over_its_widths() -> None:
    torch.manual_seed(0)
    network = Slimmable(networks.dense(6, 8, Training(), None), (2, 4, 8), 3).eval()
    rows, labels = torch.randn(9, 6), torch.arange(9) % 3
    _, logits = network.outputs(rows.numpy())
    wide = logits.astype(float)
    expected = sum(-np.log(np.exp(one)[range(9), labels] / np.exp(one).sum(1)).mean() for one in wide)
    assert network(rows, labels).item() == pytest.approx(expected, rel=1e-5)


def test_reductions_keep_the_strongest_directions(rng: np.random.Generator) -> None:
    features = rng.normal(size=(40, 6)) * (5, 0.1, 3, 1, 2, 0.5) + (9, 0, 0, 0, 0, 0)
    for fit, rows in ((reductions.svd, features), (reductions.pca, features - features.mean(axis=0))):
        left, values, _ = np.linalg.svd(rows, full_matrices=False)
        reduced = fit(features)(features)
        for dim in (1, 3, 6):
            strongest = left[:, :dim] * values[:dim]
            np.testing.assert_allclose(reduced[:, :dim] @ reduced[:, :dim].T, strongest @ strongest.T, atol=1e-9)
    columns = reductions.random_columns(features, 0)(features)
    assert {tuple(column) for column in columns.T} == {tuple(column) for column in features.T}
    assert not np.array_equal(columns, features)
    assert not np.array_equal(columns, reductions.random_columns(features, 1)(features))


def test_a_probe_gives_the_logits_of_a_linear_classifier(rng: np.random.Generator) -> None:
    labels = np.array([1, 3, 3, 1, 4] * 12)
    features = rng.normal(size=(60, 4)) * (1, 50, 1, 0) + labels[:, None] * (2, 0, -1, 0)  # the last column is constant
    logits = reductions.probe(features, labels, 6)(features)
    assert (logits[:, [0, 2, 5]] == -np.inf).all()
    assert (logits.argmax(1) == labels).mean() > 0.9
    steps = np.diff(logits[:, [1, 3, 4]], axis=1)
    design = np.hstack([features, np.ones((60, 1))])
    np.testing.assert_allclose(design @ np.linalg.lstsq(design, steps)[0], steps, atol=1e-9)  # linear in the features


def test_a_probe_of_two_classes(rng: np.random.Generator) -> None:
    labels = np.array([0, 2, 2] * 20)
    features = rng.normal(size=(60, 2)) + labels[:, None] * 3.0
    logits = reductions.probe(features, labels, 3)(features)
    assert (logits[:, 1] == -np.inf).all()
    assert (logits.argmax(1) == labels).mean() > 0.9


@pytest.mark.parametrize("path", sorted(grid.FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_name_systems_that_can_be_made(path: Path) -> None:
    chosen = grid.read(str(path))
    Training(**chosen.training)
    assert chosen.training.get("backbone", "dense") in networks.BACKBONES
    for options in chosen.systems.values():
        Nesting(options.get("dims", chosen.dims), options.get("importance"))
        assert options.get("rows", "everything") in selections.SELECTIONS
        assert options.get("rows") == chosen.systems[options.get("of", "FF")].get("rows") or "of" not in options
