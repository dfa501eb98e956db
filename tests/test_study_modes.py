"""The study's data with names and texts, and the tasks that train for themselves: pairs, images with texts, words."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks, load

import_benchmarks("torch", "sklearn", "tqdm")

from benchmarks.study import cells, data, grid, networks, texts, towers  # noqa: E402
from benchmarks.study.tasks import contrastive, image_text, masked_language  # noqa: E402

DOMAINS = {"kitchen": ["boil", "bake"], "road": ["drive"]}


def questions(**changes: Any) -> dict[str, list[list[str]]]:
    """Twelve training questions of each intent, three to calibrate with and six to be judged by."""
    sizes = {"train": 12, "val": 3, "test": 6}
    intents = ("drive", "boil", "bake")
    found = {
        part: [[f"{part} {i} how to {one}", one] for i in range(n) for one in intents] for part, n in sizes.items()
    }
    return found | {"oos_train": [["what", "oos"]]} | changes


def write_questions(folder: Path, content: Any, domains: Any = DOMAINS) -> str:
    (folder / data.QUESTIONS).write_text(json.dumps(content), encoding="utf-8")
    (folder / data.DOMAINS).write_text(json.dumps(domains), encoding="utf-8")
    return str(folder)


@pytest.fixture
def by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the vector of a text be its length and its last letter, since the encoder is large."""
    monkeypatch.setattr(data, "encode", lambda rows: np.array([[len(text), ord(text[-1])] for text in rows.tolist()]))


@pytest.mark.usefixtures("by_length")
def test_questions_keep_their_texts_through_the_split(tmp_path: Path) -> None:
    dataset = data.load(write_questions(tmp_path, questions()))
    assert dataset.class_names == ("bake", "boil", "drive")
    assert dataset.superclass_names == ("kitchen", "road")
    assert dataset.superclasses is not None
    assert dataset.superclasses.tolist() == [0, 0, 1]
    split = dataset.split(5)
    for part, size in (("train", 36), ("calibration", 9), ("test", 18)):
        rows = getattr(split, part)
        assert len(rows) == size
        for text, label, row in zip(rows.texts.tolist(), rows.labels, rows.features, strict=True):
            assert text.endswith(dataset.class_names[label])
            mean, deviation = dataset.train.features.mean(), dataset.train.features.std()
            np.testing.assert_allclose(row * deviation + mean, [len(text), ord(text[-1])], rtol=1e-4)


@pytest.mark.usefixtures("by_length")
def test_rows_take_their_texts_along(tmp_path: Path) -> None:
    rows = data.load(write_questions(tmp_path, questions())).train[np.array([4, 1])]
    assert rows.texts is not None
    assert rows.texts.tolist() == ["train 1 how to boil", "train 0 how to boil"]


@pytest.mark.parametrize(
    ("content", "domains", "message"),
    [
        (questions(test=[]), DOMAINS, r"data_full.json must hold \{\"train\""),
        (questions(val=[["a question"]]), DOMAINS, r"data_full.json must hold"),
        ([], DOMAINS, r"data_full.json must hold"),
        (questions(), {"kitchen": "boil"}, r"domains.json must hold \{domain"),
        (questions(), {"kitchen": ["boil", "bake"]}, r"domains.json must name the domain .* got none for \['drive'\]"),
        (questions(test=[["walk to", "walk"]]), DOMAINS | {"foot": ["walk"]}, r"data_full.json must have training"),
    ],
)
@pytest.mark.usefixtures("by_length")
def test_unfit_questions_are_refused(tmp_path: Path, content: Any, domains: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(write_questions(tmp_path, content, domains))


def test_damaged_and_missing_files_of_questions_are_named(tmp_path: Path) -> None:
    source = write_questions(tmp_path, questions())
    (tmp_path / data.DOMAINS).write_text("{")
    with pytest.raises(ValueError, match=r"domains.json must be JSON"):
        data.load(source)
    (tmp_path / data.DOMAINS).unlink()
    with pytest.raises(FileNotFoundError, match=r"domains.json must exist"):
        data.load(source)


def test_errors_about_arrays_name_the_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "train_features.npy", np.zeros((5, 2)))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: `--data` must hold"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(("name", "named"), [("fashion-mnist", True), ("mnist", False)])
def test_clothes_are_named_by_their_folder(tmp_path: Path, name: str, named: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    images, labels = np.arange(100 * 6 % 251, dtype=np.uint8), np.arange(100, dtype=np.uint8) % 10
    for file, values in zip(data.IDX_FILES, (np.resize(images, (100, 3, 2)), labels) * 2, strict=True):
        header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (folder / file).write_bytes(header + values.tobytes())
    dataset = data.load(str(folder))
    assert (dataset.name, dataset.shape, dataset.n_features) == (name, (3, 2), 6)
    if not named:
        assert dataset.class_names is dataset.superclasses is None
        return
    assert dataset.superclass_names == ("tops", "bottoms", "footwear", "bags")
    assert dataset.class_names is not None
    assert dataset.superclasses is not None
    of = dict(zip(dataset.class_names, dataset.superclasses, strict=True))
    assert {name for name, superclass in of.items() if superclass == 2} == {"Sandal", "Sneaker", "Ankle boot"}


def test_texts_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def encoder(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.full((len(rows), 3), len(asked), np.float32)

    monkeypatch.setattr(texts, "_encode", encoder)
    first, other = np.array(["a", "bc"]), np.array(["ab", "c"])
    found = [texts.encode(rows, folder=tmp_path)[0, 0] for rows in (first, other, first)]
    assert found == [1, 2, 1]
    assert asked == [["a", "bc"], ["ab", "c"]]


def bench(source: str, dims: tuple[int, ...] = (2, 4)) -> cells.Bench:
    return cells.Bench(source, grid.Grid("set", dims, (0,), {}, {}, {}), Path("nowhere"))


def write_groups(folder: Path, shape: tuple[int, ...] = (6,)) -> str:
    """Write rows around three points: 60 to train on, 30 to be judged by."""
    rng = np.random.default_rng(8)
    centres = rng.normal(size=(3, *shape)) * 40 + 120
    for part, n in (("train", 60), ("test", 30)):
        rows = centres[np.arange(n) % 3] + rng.normal(size=(n, *shape)) * 3
        np.save(folder / f"{part}_features.npy", rows.clip(0, 255).astype(np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(n) % 3)
    return str(folder)


def test_each_system_gives_its_widths(rng: np.random.Generator) -> None:
    rows = {"train": rng.normal(size=(30, 4)) * (1, 2, 3, 4), "test": rng.normal(size=(5, 4)), "bias": np.arange(7.0)}
    asked = []

    def fit(dims: tuple[int, ...]) -> dict[str, np.ndarray]:
        asked.append(dims)
        return {name: array[:, : dims[-1]] if array.ndim == 2 else array for name, array in rows.items()}

    for system, widths in (("MRL", [(1, 3, 4)]), ("cut", [(4,)]), ("FF", [(1,), (3,), (4,)])):
        asked.clear()
        for dim, found in towers.by_width(system, (1, 3, 4), fit):
            np.testing.assert_array_equal(found["test"], rows["test"][:, :dim])
            np.testing.assert_array_equal(found["bias"], rows["bias"])
        assert asked == widths
    asked.clear()
    rotated = dict(towers.by_width("rotation", (1, 3, 4), fit))
    assert asked == [(4,)]
    _, _, directions = np.linalg.svd(rows["train"])
    for dim, found in rotated.items():
        np.testing.assert_allclose(np.abs(found["test"]), np.abs(rows["test"] @ directions[:dim].T), atol=1e-9)
        np.testing.assert_array_equal(found["bias"], rows["bias"])


def test_a_view_is_the_image_moved_and_dimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = load("torch")
    torch.manual_seed(0)
    images = torch.rand(3, 1, 7, 5)
    seen = contrastive.view(images)
    assert seen.shape == images.shape
    assert not torch.equal(seen, contrastive.view(images))
    for name in ("TURN", "SCALE", "SHIFT", "DIMMING", "NOISE"):
        monkeypatch.setattr(contrastive, name, 0.0)
    torch.testing.assert_close(contrastive.view(images), images)
    monkeypatch.setattr(contrastive, "DIMMING", 0.5)
    ratios = contrastive.view(images) / images
    torch.testing.assert_close(ratios, ratios[:, :, :1, :1].expand_as(ratios))
    assert len(set(ratios[:, 0, 0, 0].tolist())) == 3
    assert ((ratios > 0.5) & (ratios < 1.5)).all()


def test_a_view_is_moved_by_a_share_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = load("torch")
    torch.manual_seed(0)
    for name in ("TURN", "SCALE", "DIMMING", "NOISE"):
        monkeypatch.setattr(contrastive, name, 0.0)
    ramp = torch.arange(10.0).expand(4, 1, 6, 10) + 100 * torch.arange(6.0)[:, None]
    moves = (contrastive.view(ramp) - ramp)[:, :, 1:-1, 1:-1].flatten(1)  # at the border the last value stays
    torch.testing.assert_close(moves, moves[:, :1].expand_as(moves), rtol=0, atol=1e-3)
    down = (moves[:, 0] / 100).round(decimals=1)
    assert len(set(moves[:, 0].tolist())) == 4
    assert (down.abs() <= contrastive.SHIFT * 3).all()


def test_pairs_are_of_one_class_and_no_negatives_of_it() -> None:
    torch = load("torch")
    torch.manual_seed(0)
    labels = np.array([2, 0, 1, 2, 2, 0])
    draw = contrastive._pairs_of(data.Rows(np.arange(6, dtype=np.float32)[:, None], labels), None, 40)
    left, right, mask = draw()
    assert mask is not None
    first, second = labels[left[:, 0].int()], labels[right[:, 0].int()]
    np.testing.assert_array_equal(first, second)
    assert {(a, b) for a, b in zip(left[:, 0].tolist(), right[:, 0].tolist(), strict=True)} >= {(1, 5), (5, 1), (0, 4)}
    for i in range(40):
        for j in range(40):
            assert bool(mask[i, j]) == (i == j or first[i] != second[j])


@pytest.mark.parametrize("shape", [(6,), (8, 9)])
@pytest.mark.parametrize("system", towers.SYSTEMS)
def test_pairs_bring_classes_together(tmp_path: Path, shape: tuple[int, ...], system: str) -> None:
    asked = bench(write_groups(tmp_path, shape))
    with networks.reproducible():
        found = contrastive.measure(asked, system, 0, steps=15, batch=32)
        again = contrastive.measure(asked, system, 0, steps=15, batch=32)
    assert found == again == json.loads(json.dumps(found))
    assert found["dims"] == [2, 4]
    assert found["pairs"] == ("two views of an image" if len(shape) == 2 else "two rows of a class")
    assert (found["n_corpus"], found["n_queries"]) == (48, 30)
    assert found["nearest_neighbor"][1] > 0.9
    assert all(0 <= value <= 1 for value in found["map"])


def test_pairs_tell_what_matters(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for part, n in (("train", 400), ("test", 60)):
        labels = np.arange(n) % 2
        np.save(tmp_path / f"{part}_features.npy", np.c_[4 * labels - 2, rng.normal(size=(n, 20)) * 3])
        np.save(tmp_path / f"{part}_labels.npy", labels)
    shares = []
    for steps in (1, 60):
        with networks.reproducible():
            shares.append(contrastive.measure(bench(str(tmp_path)), "cut", 0, steps=steps)["nearest_neighbor"][1])
    assert shares[0] < 0.8 < 0.9 < shares[1]


def test_descriptions_find_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(3)
    labels = np.arange(200) % 10
    images = (rng.random((10, 8, 8)) * 255)[labels]
    for part, n in (("train", 200), ("test", 50)):
        np.save(folder / f"{part}_features.npy", images[:n].astype(np.uint8))
        np.save(folder / f"{part}_labels.npy", labels[:n])
    of = {}
    for seen, unseen in zip(image_text.SEEN.values(), image_text.UNSEEN.values(), strict=True):
        of |= dict.fromkeys(seen + unseen, rng.normal(size=384))
    assert len(of) == 60
    monkeypatch.setattr(image_text, "encode", lambda rows: np.array([of[text] for text in rows.tolist()], np.float32))
    for system in towers.SYSTEMS:
        with networks.reproducible():
            found = image_text.measure(bench(str(folder), (4, 16)), system, 0, steps=25, batch=32)
        assert found == json.loads(json.dumps(found))
        assert found["zero_shot"][1] > 0.9
        assert found["own_cosine"][1] > found["other_cosine"][1] + 0.2


def test_tasks_refuse_what_they_cannot_read(tmp_path: Path) -> None:
    asked = bench(write_groups(tmp_path))
    with pytest.raises(ValueError, match=f"must have the images of Fashion-MNIST, got {tmp_path.name}"):
        image_text.measure(asked, "MRL", 0)
    with pytest.raises(ValueError, match=f"must have texts, got {tmp_path.name}"):
        masked_language.measure(asked, "MRL-E", 0)


def test_words_are_numbered_by_how_often_they_stand() -> None:
    vocabulary = masked_language.vocabulary_of(np.array(["What's up, what", "up what ?", "once"]))
    assert vocabulary == {"what": 3, "up": 4}
    ids = masked_language.as_ids(np.array(["up once what", "what " * 30]), vocabulary)
    assert ids[0].tolist() == [4, 1, 3] + [0] * (masked_language.LONGEST - 3)
    assert ids[1].tolist() == [3] * masked_language.LONGEST


def test_masks_hide_known_words_only() -> None:
    torch = load("torch")
    torch.manual_seed(0)
    words = torch.randint(0, 50, (2000, 12))
    words[:10] = masked_language.UNKNOWN
    places = masked_language.chosen(words)
    assert not places[words < masked_language.N_SPECIAL].any()
    assert places[10:].any(dim=1).all()
    assert 0.15 < places[words >= masked_language.N_SPECIAL].float().mean() < 0.2  # and one at least in every row
    hidden = masked_language.disguised(words, places, 50)
    assert torch.equal(hidden[~places], words[~places])
    shares = (hidden[places] == masked_language.MASK, hidden[places] == words[places])
    assert [round(float(share.float().mean()), 1) for share in shares] == [0.8, 0.1]
    assert hidden[places].unique().tolist() == [2, *range(3, 50)]


def test_batches_hold_questions_of_one_length() -> None:
    torch = load("torch")
    torch.manual_seed(0)
    words = torch.arange(1, 21).expand(300, 20).clone()
    lengths = torch.arange(300) % 20 + 1
    words[torch.arange(20) >= lengths[:, None]] = masked_language.NOTHING
    seen = set()
    for _ in range(60):
        rows = masked_language.equally_long(words, 25)
        found = (rows != masked_language.NOTHING).sum(dim=1)
        assert rows.shape == (25, int(found.max()))
        assert int(found.max() - found.min()) < 8
        seen.update(found.tolist())
    assert seen == set(range(1, 21))


@pytest.mark.usefixtures("by_length")
@pytest.mark.parametrize("system", masked_language.SYSTEMS)
def test_words_are_guessed_from_those_around_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(towers, "LEARNING_RATE", 2e-2)  # few steps must do
    rng = np.random.default_rng(1)
    triples = [f"{word}{i}" for i in range(8) for word in "abc"]  # each word tells the two others
    content = {
        part: [[" ".join(triples[3 * i : 3 * i + 3]), f"intent {i % 2}"] for i in rng.integers(8, size=n)]
        for part, n in (("train", 120), ("val", 8), ("test", 40))
    }
    source = write_questions(tmp_path, content, {"all": ["intent 0", "intent 1"]})
    with networks.reproducible():
        found = masked_language.measure(bench(source), system, 0, dims=(4, 16), steps=80, batch=32)
    assert found == json.loads(json.dumps(found))
    assert (found["dims"], found["n_words"], found["n_masked"] >= 40) == ([4, 16], 27, True)
    assert found["masked_words"][1] > 0.8 > 0.3 > found["most_frequent"]
