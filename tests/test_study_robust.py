"""The study's corruptions and selections, and the tasks that judge by them: against loops, on rows made up here."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks

import_benchmarks("torch", "sklearn", "tqdm")

from benchmarks.study import corruptions, selections  # noqa: E402
from benchmarks.study.data import Dataset, Rows, Split  # noqa: E402
from benchmarks.study.outputs import Outputs  # noqa: E402
from benchmarks.study.tasks import TASKS  # noqa: E402

KINDS = tuple(corruptions.IMAGES)


def images(n: int = 9, seed: int = 0) -> tuple[Dataset, Split]:
    """Return pictures of 10 x 6, brighter towards one corner: as they are, and scaled."""
    rng = np.random.default_rng(seed)
    bright = np.add.outer(np.arange(10.0), 2 * np.arange(6.0)).ravel()
    parts = {
        part: Rows((bright * rng.uniform(0.5, 2, (size, 1))).astype(np.float32), np.arange(size) % 3)
        for part, size in (("train", 40), ("calibration", 5), ("test", n))
    }
    split = Split(**parts, mean=4.0, deviation=2.5)
    scaled = {part: replace(rows, features=split.scaled(rows.features)) for part, rows in parts.items()}
    return Dataset("pictures", parts["train"], parts["test"], 3, shape=(10, 6)), replace(split, **scaled)


def parts_by_kind(parts: dict[str, np.ndarray], kind: str) -> list[np.ndarray]:
    return [parts[f"test/{kind}/{severity}"] for severity in (1, 2, 3)]


def test_every_kind_of_image_is_worse_at_every_severity() -> None:
    dataset, split = images()
    parts = corruptions.corrupted(dataset, split, seed=1)
    assert list(parts) == [f"test/{kind}/{severity}" for kind in KINDS for severity in (1, 2, 3)]
    assert {(rows.shape, rows.dtype.name) for rows in parts.values()} == {((9, 60), "float32")}
    for kind in KINDS:
        faults = [np.abs(rows - split.test.features).mean(axis=1) for rows in parts_by_kind(parts, kind)]
        assert np.all(faults[0] > 0), kind
        assert np.all(faults[0] < faults[1]), kind
        assert np.all(faults[1] < faults[2]), kind


def test_a_seed_says_what_comes_out() -> None:
    dataset, split = images()
    first, second, other = (corruptions.corrupted(dataset, split, seed) for seed in (1, 1, 2))
    for part, rows in first.items():
        np.testing.assert_array_equal(rows, second[part])
        drawn = part.split("/")[1] in ("noise", "shift")
        assert np.array_equal(rows, other[part]) != drawn, part


def test_the_scale_of_the_rows_does_not_matter() -> None:
    dataset, split = images()
    plain = replace(split, train=dataset.train, test=dataset.test)
    scaled, unscaled = (corruptions.corrupted(dataset, one, seed=3) for one in (split, plain))
    for part in scaled:
        np.testing.assert_allclose(split.scaled(unscaled[part]), scaled[part], atol=1e-5)


def test_noise_stays_in_the_range_and_is_as_wide_as_it_says() -> None:
    rng = np.random.default_rng(5)
    grey = np.full((50, 40, 40), 3.0)
    noisy = [corruptions.noise(grey, severity, 1.0, 5.0, np.random.default_rng(5)) for severity in (1, 2, 3)]
    assert math.isclose(noisy[0].std(), corruptions.NOISE[0] * 4, rel_tol=0.02)
    drawn = rng.normal(size=grey.shape)
    for share, found in zip(corruptions.NOISE, noisy, strict=True):
        np.testing.assert_allclose(found, np.clip(3 + share * 4 * drawn, 1, 5), rtol=1e-12)


def test_blur_spreads_a_point_as_a_gaussian_does() -> None:
    point = np.zeros((1, 41, 61))
    point[0, 20, 30] = 1.0
    spread = corruptions.blur(point, 2, 0.0, 1.0, np.random.default_rng(0))[0]
    for axis, side in enumerate(spread.shape):
        along = spread.sum(axis=1 - axis)
        places = np.arange(side) - side // 2
        assert math.isclose(math.sqrt(along @ places**2), corruptions.BLUR[1] * side, rel_tol=0.01)


def test_contrast_keeps_the_mean_of_each_image() -> None:
    rows = images()[1].test.features.reshape(-1, 10, 6)
    paler = corruptions.contrast(rows, 3, 0.0, 0.0, np.random.default_rng(0))
    for one, other in zip(rows, paler, strict=True):
        assert math.isclose(one.mean(), other.mean(), abs_tol=1e-5)
        assert math.isclose(one.std() * corruptions.CONTRAST[2], other.std(), rel_tol=1e-4)


def test_a_shift_moves_a_point_along_one_axis() -> None:
    points = np.zeros((200, 20, 40))
    points[:, 8, 15] = 1.0
    moved = corruptions.shift(points, 2, 0.0, 1.0, np.random.default_rng(2))
    found = Counter(tuple(np.argwhere(image == 1.0)[0] - (8, 15)) for image in moved)
    assert set(found) == {(2, 0), (-2, 0), (0, 4), (0, -4)}
    assert min(found.values()) > 20
    between = corruptions.shift(points[:1], 1, -1.0, 1.0, np.random.default_rng(2)) - 0.0
    assert math.isclose(between[0, 4:12, 10:20].sum(), 1.0, rel_tol=1e-9)
    assert between.min() == -1.0  # what came in from outside


def test_no_more_rows_are_corrupted_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "MOST_ROWS", 4)
    dataset, split = images()
    rows = corruptions.chosen(len(split.test), seed=6)
    assert len(rows) == 4
    assert list(rows) == sorted(set(rows))
    mild = corruptions.corrupted(dataset, split, seed=6)["test/contrast/1"]
    mean = split.test.features[rows].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(mild, mean + corruptions.CONTRAST[0] * (split.test.features[rows] - mean), atol=1e-5)


TEXT = np.array(["one two three four five six seven eight nine ten", "who is it", "yes no", "no", "a b c d e f"])


@pytest.mark.parametrize("share", corruptions.WORDS)
def test_dropped_words_leave_the_others_in_order(share: float) -> None:
    for seed in range(20):
        for text, worse in zip(TEXT.tolist(), corruptions.reworded(TEXT, "dropped words", share, seed), strict=True):
            words, left = text.split(), worse.split()
            assert [word for word in words if word in left] == left
            assert len(words) - len(left) == (0 if len(words) == 1 else max(1, round(share * len(words))))


@pytest.mark.parametrize("share", corruptions.WORDS)
def test_swapped_words_are_all_there(share: float) -> None:
    for seed in range(20):
        for text, worse in zip(TEXT.tolist(), corruptions.reworded(TEXT, "swapped words", share, seed), strict=True):
            words, now = text.split(), worse.split()
            assert sorted(words) == sorted(now)
            n_moved = sum(one != other for one, other in zip(words, now, strict=True))
            assert n_moved == (0 if len(words) == 1 else max(2, round(share * len(words))))


def test_what_is_dropped_stays_dropped_when_more_is() -> None:
    texts = [corruptions.reworded(TEXT, "dropped words", share, seed=4)[0].split() for share in corruptions.WORDS]
    assert set(texts[0]) > set(texts[1]) > set(texts[2])


def test_texts_are_encoded_again_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ModuleType("benchmarks.study.texts")
    encoder.encode = lambda texts: np.array([[len(text), 7.0] for text in texts], dtype=np.float32)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.study.texts", encoder)
    rows = Rows(np.zeros((5, 2), dtype=np.float32), np.arange(5), TEXT)
    split = Split(rows, rows, rows, mean=2.0, deviation=4.0)
    parts = corruptions.corrupted(Dataset("texts", rows, rows, 5), split, seed=0)
    assert list(parts) == [f"test/{kind} words/{n}" for kind in ("dropped", "swapped") for n in (1, 2, 3)]
    expected = [(len(text) - 2) / 4 for text in TEXT.tolist()]
    np.testing.assert_allclose(parts["test/swapped words/3"], [[length, 1.25] for length in expected])
    shorter = parts["test/dropped words/1"][:, 0]
    assert [bool(one < other) for one, other in zip(shorter, expected, strict=True)] == [True, True, True, False, True]


def test_rows_without_a_form_are_refused() -> None:
    rows = Rows(np.zeros((5, 2), dtype=np.float32), np.arange(5))
    with pytest.raises(ValueError, match="needs grey images or texts, got vectors, which has neither"):
        corruptions.corrupted(Dataset("vectors", rows, rows, 5), Split(rows, rows, rows), seed=0)


@pytest.mark.parametrize(("n_classes", "per_class"), [(2, 50), (10, 100), (150, 100)])
def test_a_long_tail_falls_as_zipfs_law_does(n_classes: int, per_class: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(n_classes) * 3, per_class))
    kept = selections.long_tail(labels, seed=8)
    counts = sorted(Counter(labels[kept].tolist()).values(), reverse=True)
    exponent = math.log(1 / selections.SMALLEST) / math.log(n_classes)
    assert counts == [max(1, round(per_class / rank**exponent)) for rank in range(1, n_classes + 1)]
    assert counts[-1] == round(selections.SMALLEST * per_class)
    assert not np.array_equal(kept, selections.long_tail(labels, seed=9))


def test_thirds_are_by_number_of_rows() -> None:
    labels = np.repeat([5, 1, 9, 2], [3, 8, 5, 3])
    groups = {name: classes.tolist() for name, classes in selections.thirds(labels).items()}
    assert groups == {"head": [1, 9], "middle": [2], "tail": [5]}


def test_three_classes_in_ten_are_not_seen() -> None:
    labels = np.arange(200) % 10
    seen = selections.seen(labels, seed=1)
    assert len(set(labels[~seen].tolist())) == 3
    assert not set(labels[~seen].tolist()) & set(labels[seen].tolist())


@dataclass
class Bench:
    """What a task asks for, with a system that is there already."""

    dataset: Dataset
    made: Outputs
    rows: Split

    def outputs(self, system: str, seed: int) -> Outputs:
        del system, seed
        return self.made

    def split(self, seed: int) -> Split:
        del seed
        return self.rows


DIMS = (2, 5)
N_CLASSES = 6


@pytest.fixture(params=[True, False], ids=["nested", "apart"])
def bench(request: pytest.FixtureRequest, rng: np.random.Generator) -> Bench:
    """Return a system that is right more often than not, nested or with embeddings for each width."""
    n_rows = {"train": 130, "calibration": 70, "test": 60}
    labels = {part: rng.permutation(np.arange(n) % N_CLASSES) for part, n in n_rows.items()}
    split = Split(*(Rows(rng.normal(size=(n, 3)).astype(np.float32), labels[part]) for part, n in n_rows.items()))
    labels |= {"test/noise/1": labels["test"], "test/noise/2": labels["test"]}
    centres = rng.normal(size=(N_CLASSES, max(DIMS)))
    embeddings, logits = {}, {}
    for number, (part, of_rows) in enumerate(labels.items()):
        rows = (centres[of_rows] + (0.5 + 0.2 * number) * rng.normal(size=(len(of_rows), 5))).astype(np.float32)
        embeddings[part] = {5: rows} if request.param else {dim: rows[:, ::-1][:, :dim].copy() for dim in DIMS}
        if part != "train":
            logits[part] = np.eye(N_CLASSES)[of_rows] + (0.4 + 0.1 * number) * rng.normal(
                size=(2, len(of_rows), N_CLASSES)
            )
    made = Outputs(DIMS, request.param, embeddings, logits)
    return Bench(
        Dataset(
            "made up",
            split.train,
            split.test,
            N_CLASSES,
            superclasses=np.array([0, 1, 0, 2, 1, 2]),
            superclass_names=("x", "y", "z"),
        ),
        made,
        split,
    )


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int = 1) -> np.ndarray:
    """Return the labels of the nearest rows by cosine, best first (n_queries, k)."""
    return labels[np.argsort(-(unit(queries) @ unit(rows).T), axis=1)[:, :k]]


def nearest_mean(rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    classes = sorted(set(labels.tolist()))
    means = np.stack([unit(rows)[labels == label].mean(axis=0) for label in classes])
    distances = np.linalg.norm(unit(queries)[:, None] - means, axis=-1)
    return np.array(classes)[distances.argmin(axis=1)]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_robustness_compares_the_same_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "MOST_ROWS", 25)
    rows = corruptions.chosen(60, seed=2)
    for part in ("test/noise/1", "test/noise/2"):
        bench.made.embeddings[part].update(
            {dim: all_rows[rows] for dim, all_rows in bench.made.embeddings[part].items()}
        )
        bench.made.logits[part] = bench.made.logits[part][:, rows]  # type: ignore[index]
    found = TASKS["robustness"](bench, "any", 2)
    assert (found["dims"], found["n_rows"]) == ([2, 5], 25)
    labels, clean = bench.rows.test.labels[rows], found["test"]
    for part in ("test", "test/noise/1", "test/noise/2"):
        some = rows if part == "test" else slice(None)
        for column, dim in enumerate(DIMS):
            near = nearest(bench.made.embed("train", dim), bench.rows.train.labels, bench.made.embed(part, dim)[some])
            close(found[part]["nearest_neighbor"][column], np.mean(near[:, 0] == labels))
            close(found[part]["linear"][column], np.mean(bench.made.logits[part][column, some].argmax(1) == labels))
            for judge, values in found[part].get("relative", {}).items():
                close(values[column], found[part][judge][column] / clean[judge][column])
    assert "relative" in found["test/noise/2"]
    assert "relative" not in clean


def test_a_system_without_corrupted_rows_is_refused(bench: Bench) -> None:
    embeddings = {part: bench.made.embeddings[part] for part in ("train", "calibration", "test")}
    bench.made = replace(bench.made, embeddings=embeddings)
    with pytest.raises(ValueError, match="MRL must have embedded corrupted rows, got none"):
        TASKS["robustness"](bench, "MRL", 2)


def test_few_shots_are_calibration_rows_drawn_by_class(bench: Bench) -> None:
    found = TASKS["few_shot"](bench, "any", 4, shots=[1, 3, 11], draws=60, most_rows=100)
    assert (found["dims"], found["shots"], found["draws"], found["n_rows"]) == ([2, 5], [1, 3, 11], 60, 60)
    labels, rng = bench.rows.calibration.labels, np.random.default_rng(0)
    for line, n_shots in enumerate((1, 3, 11)):
        for column, dim in enumerate(DIMS):
            known, queries = bench.made.embed("calibration", dim), bench.made.embed("test", dim)
            accuracies = []
            for _ in range(200):
                rows = np.concatenate(
                    [rng.permutation(np.flatnonzero(labels == c))[:n_shots] for c in range(N_CLASSES)]
                )
                answers = nearest_mean(known[rows], labels[rows], queries)
                accuracies.append(np.mean(answers == bench.rows.test.labels))
            spread = np.std(accuracies)
            assert abs(found["accuracy"][line][column] - np.mean(accuracies)) < 5 * spread / math.sqrt(60)
            assert spread / 1.7 < found["deviation"][line][column] < 1.7 * spread


def test_all_rows_of_a_class_are_one_draw(bench: Bench) -> None:
    split = bench.rows
    fewest = min(Counter(split.calibration.labels.tolist()).values())
    even = np.concatenate([np.flatnonzero(split.calibration.labels == c)[:fewest] for c in range(N_CLASSES)])
    bench.made.embeddings["calibration"].update({d: r[even] for d, r in bench.made.embeddings["calibration"].items()})
    bench.rows = replace(split, calibration=Rows(split.calibration.features[even], split.calibration.labels[even]))
    found = TASKS["few_shot"](bench, "any", 4, shots=[fewest], draws=2)
    labels = bench.rows.calibration.labels
    for column, dim in enumerate(DIMS):
        answers = nearest_mean(bench.made.embed("calibration", dim), labels, bench.made.embed("test", dim))
        close(found["accuracy"][0][column], np.mean(answers == split.test.labels))
    assert found["deviation"] == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=f"`shots` must be at most the {fewest} calibration rows .* got {fewest + 1};"):
        TASKS["few_shot"](bench, "any", 4, shots=[1, fewest + 1])


def test_the_long_tail_is_judged_by_rows_that_training_saw(bench: Bench) -> None:
    found = TASKS["long_tail"](bench, "any", 5)
    kept = selections.long_tail(bench.rows.train.labels, 5)
    labels, wanted = bench.rows.train.labels[kept], bench.rows.test.labels
    counts = Counter(labels.tolist())
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    assert found["n_train"] == len(labels)
    for group, classes in {"head": ranked[:2], "middle": ranked[2:4], "tail": ranked[4:]}.items():
        rows, of_group = np.isin(wanted, classes), found[group]
        assert (of_group["n_classes"], of_group["n_queries"]) == (2, rows.sum())
        assert (of_group["most_rows"], of_group["fewest_rows"]) == (counts[classes[0]], counts[classes[1]])
        for column, dim in enumerate(DIMS):
            known, queries = bench.made.embed("train", dim)[kept], bench.made.embed("test", dim)[rows]
            near = nearest(known, labels, queries)[:, 0]
            close(
                of_group["linear"][column], np.mean(bench.made.logits["test"][column, rows].argmax(1) == wanted[rows])
            )
            close(of_group["nearest_neighbor"][column], np.mean(near == wanted[rows]))
            close(of_group["class_mean"][column], np.mean(nearest_mean(known, labels, queries) == wanted[rows]))


def test_unseen_classes_are_searched_alone_and_among_all(bench: Bench) -> None:
    found = TASKS["unseen"](bench, "any", 6)
    labels, wanted = bench.rows.train.labels, bench.rows.test.labels
    seen = selections.seen(labels, 6)
    new = np.isin(wanted, labels[~seen])
    every = np.ones(len(labels), dtype=bool)
    assert found["n_classes"] == 2
    for name, known, asked in (
        ("unseen", ~seen, new),
        ("unseen among all", every, new),
        ("seen among all", every, ~new),
    ):
        assert (found[name]["n_corpus"], found[name]["n_queries"]) == (known.sum(), asked.sum())
        for column, dim in enumerate(DIMS):
            rows, queries = bench.made.embed("train", dim)[known], bench.made.embed("test", dim)[asked]
            near = nearest(rows, labels[known], queries, 10) == wanted[asked][:, None]
            precision = np.mean([sum(hits[: i + 1].mean() for i in range(10) if hits[i]) / 10 for hits in near])
            answers = nearest_mean(rows, labels[known], queries)
            close(found[name]["nearest_neighbor"][column], near[:, 0].mean())
            close(found[name]["map@10"][column], precision)
            close(found[name]["class_mean"][column], np.mean(answers == wanted[asked]))


def test_superclasses_are_those_of_answers_and_labels(bench: Bench) -> None:
    found = TASKS["superclass"](bench, "any", 0)
    labels, group = bench.rows.test.labels, dict(enumerate("xyxzyz"))
    for column, dim in enumerate(DIMS):
        near = nearest(bench.made.embed("train", dim), bench.rows.train.labels, bench.made.embed("test", dim))[:, 0]
        for judge, answers in {"nearest_neighbor": near, "linear": bench.made.logits["test"][column].argmax(1)}.items():
            of_judge = found[judge]
            right = [group[answer] == group[label] for answer, label in zip(answers, labels, strict=True)]
            close(of_judge["class"][column], np.mean(answers == labels))
            close(of_judge["superclass"][column], np.mean(right))
            for name in "xyz":
                of_name = [one for one, label in zip(right, labels, strict=True) if group[label] == name]
                close(of_judge["by superclass"][name][column], np.mean(of_name))


def test_a_set_without_superclasses_is_refused(bench: Bench) -> None:
    bench.dataset = replace(bench.dataset, superclasses=None, superclass_names=None)
    with pytest.raises(ValueError, match="needs superclasses, got made up, which has none"):
        TASKS["superclass"](bench, "any", 0)


@pytest.mark.parametrize("task", ["robustness", "long_tail", "superclass"])
def test_a_system_without_heads_is_judged_by_neighbours(bench: Bench, task: str) -> None:
    with_heads = TASKS[task](bench, "any", 1)
    bench.made = replace(bench.made, logits={})
    without = TASKS[task](bench, "any", 1)
    if task == "superclass":
        assert without == {key: value for key, value in with_heads.items() if key != "linear"}
        return
    group = {"robustness": "test/noise/1", "long_tail": "tail"}[task]
    assert "linear" in with_heads[group]
    assert "linear" not in without[group]
    assert without[group]["nearest_neighbor"] == with_heads[group]["nearest_neighbor"]
