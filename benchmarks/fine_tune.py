"""Two questions before training: how a plain network becomes nested, and how many widths a ladder needs.

`python -m benchmarks.fine_tune recipe` trains a small plain classifier, makes it nested in several ways, and says how
good each prefix is: by its head, and by the nearest neighbour. `python -m benchmarks.fine_tune ladders` trains encoders
without labels, by InfoNCE between two views of a row that each lack half of its numbers, with sparse and dense ladders,
and says how good widths are, trained or not, and what a step costs. `--data` is that of the study (default: digits).
With `--store`, the figures go to benchmarks/results and their table to docs/results.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.study import data
from benchmarks.study.data import Rows, Split
from benchmarks.study.networks import reproducible
from benchmarks.study.tasks.accuracy import nearest_neighbor, share_right
from benchmarks.study.towers import optimise
from benchmarks.table import lines, store
from matryoshka import Nesting, info_nce
from matryoshka.torch import MRLHead

DIMS = (4, 8, 16, 32, 64)
EPOCH, EPOCHS = 100, 8  # batches; how long is trained from the start
SCHEDULES = ((1.0, 2), (0.1, 2), (0.3, 2), (0.03, 2), (0.3, 1), (0.3, 4))
"""Learning rates, as multiples of the one of training, and epochs; all for `everything`, else the first two."""

WAYS = {
    "old head": {"head": 0, "last block, head": 1, "everything": 3},
    "new head": {"head": 0, "last block, head": 1, "everything": 3},
    "PCA, old head": {"head": 0, "rotation, head": 1, "everything": 4},
}
"""How many of the last blocks are trained beside the head, by how the nested network begins and in words."""

WIDTH = 256
LADDERS = {
    "256 alone": Nesting((256,)),
    "8, 64, 256": Nesting((8, 64, 256)),
    "8, 70, 132, 194, 256": Nesting.uniform(WIDTH, count=5),
    "8, 16, 32, …, 256": Nesting.halving(WIDTH),
    "every 16th": Nesting(range(16, WIDTH + 1, 16)),
    "every 8th": Nesting(range(8, WIDTH + 1, 8)),
    "every one from 8": Nesting(range(8, WIDTH + 1)),
    "every 8th, importance 1/m": Nesting(range(8, WIDTH + 1, 8), [1 / m for m in range(8, WIDTH + 1, 8)]),
}
JUDGED = (4, 8, 12, 16, 24, 32, 48, 128, 256)
SHOWN = (4, 8, 12, 16, 32, 48, 256)
STEPS, TEMPERATURE, ROUNDS = 300, 0.1, 15

TRAIN_ROWS, CORPUS_ROWS, BATCH, ROWS_AT_ONCE = 25_000, 4_000, 256, 2048
LEARNING_RATE = 2e-3
Record = dict[str, Any]


class Network(nn.Module):
    """Blocks of an encoder, and a head on the prefixes of what the last block gives."""

    def __init__(self, blocks: Iterable[nn.Module], head: MRLHead) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), head

    @torch.no_grad()
    def embed(self, features: torch.Tensor, n_blocks: int | None = None) -> torch.Tensor:
        """Return what the first blocks (by default all) give in evaluation."""
        self.eval()
        return torch.cat([_through(self.blocks[:n_blocks], part) for part in features.split(ROWS_AT_ONCE)])


def _through(blocks: Iterable[nn.Module], features: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        features = block(features)
    return features


def plain_blocks(n_features: int) -> list[nn.Module]:
    """Return two convolutions and a dense layer for square grey images, which end in DIMS[-1] numbers."""
    side = math.isqrt(n_features)
    if side**2 != n_features:
        msg = f"`--data` must hold square grey images, got rows of {n_features} numbers; `ladders` takes any."
        raise ValueError(msg)
    quarter = math.ceil(math.ceil(side / 2) / 2)

    def convolution(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]

    return [
        nn.Sequential(nn.Unflatten(1, (1, side, side)), *convolution(1, 8)),
        nn.Sequential(*convolution(8, 16), nn.Flatten()),
        nn.Sequential(nn.Linear(16 * quarter**2, DIMS[-1]), nn.BatchNorm1d(DIMS[-1]), nn.ReLU()),
    ]


def begin(way: str, plain: Network, features: torch.Tensor) -> Network:
    """Return a nested network with the weights of a plain one; PCA puts a linear layer before the head."""
    blocks, (linear,) = copy.deepcopy(plain.blocks), plain.head.classifiers
    if way == "new head":
        return Network(blocks, MRLHead(DIMS, linear.out_features, tied=True))
    if way == "PCA, old head":
        rotation, linear = _rotated(plain.embed(features), linear)
        blocks.append(rotation)
    return Network(blocks, MRLHead.from_linear(linear, DIMS, tied=True))


@torch.no_grad()
def _rotated(embeddings: torch.Tensor, linear: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Return the layer that turns embeddings into principal components, and the classifier that undoes it."""
    mean = embeddings.mean(0)
    _, directions = torch.linalg.eigh((embeddings - mean).T @ (embeddings - mean))
    directions = directions.flip(1)  # from the largest variance to the smallest
    rotation, classifier = nn.Linear(*directions.shape), copy.deepcopy(linear)
    rotation.weight.copy_(directions.T)
    rotation.bias.copy_(-mean @ directions)
    classifier.weight.copy_(linear.weight @ directions)
    classifier.bias.copy_(linear.bias + linear.weight @ mean)
    return rotation, classifier


def fit(network: Network, unfrozen: int, rows: Rows, *, epochs: int, rate: float, seed: int) -> Network:
    """Train the head and the last `unfrozen` blocks; the others stay in evaluation, and run once."""
    torch.manual_seed(seed)
    first = len(network.blocks) - unfrozen
    inputs, labels = network.embed(torch.from_numpy(rows.features), first), torch.from_numpy(rows.labels)
    blocks = network.blocks[first:]
    batches = torch.randint(len(rows), (epochs * EPOCH, BATCH))
    drawn = iter(batches)

    def loss() -> torch.Tensor:
        batch = next(drawn)
        return network.head(_through(blocks, inputs[batch]), labels[batch])

    optimise(nn.ModuleList((*blocks, network.head)), loss, len(batches), rate=rate)
    return network


def judge(network: Network, split: Split) -> Record:
    """Return the accuracy at each of DIMS: of the head on calibration and test rows, and of the nearest neighbour."""
    head = network.head
    if head.nesting.dims != DIMS:  # a plain one
        head = MRLHead.from_linear(head.classifiers[0], DIMS)
    rows = {"calibration": split.calibration, "test": split.test}
    embeddings = {part: network.embed(torch.from_numpy(rows[part].features)) for part in rows}
    with torch.no_grad():
        found = {
            part: [share_right(z.argmax(-1).numpy(), rows[part].labels) for z in head(embeddings[part])]
            for part in rows
        }
    corpus = network.embed(torch.from_numpy(split.train.features[:CORPUS_ROWS])).numpy()
    return found | {"nearest": _nearest(corpus, embeddings["test"].numpy(), split, DIMS)}


def _nearest(corpus: np.ndarray, queries: np.ndarray, split: Split, dims: Iterable[int]) -> list[float]:
    return nearest_neighbor(corpus, queries, (split.train.labels[: len(corpus)], split.test.labels), dims)


def recipe(split: Split, seed: int) -> list[Record]:
    """Train plainly and nested from the start, then make the plain network nested in every way at every rate."""
    features, n_classes = split.train.features, int(split.train.labels.max()) + 1
    records, trained = [], {}
    for name, dims in (("plain", DIMS[-1:]), ("nested from the start", DIMS)):
        torch.manual_seed(seed)
        network = Network(plain_blocks(features.shape[1]), MRLHead(dims, n_classes, tied=True))
        trained[name] = fit(network, 3, split.train, epochs=EPOCHS, rate=LEARNING_RATE, seed=seed)
        records.append({"way": name, "trained": "everything", "rate": 1.0, "epochs": EPOCHS} | judge(network, split))
    cases = [
        (way, words, unfrozen, *schedule)
        for way, choices in WAYS.items()
        for words, unfrozen in choices.items()
        for schedule in SCHEDULES[: None if words == "everything" else 2]
    ]
    cases.append(("PCA, old head", "nothing", 0, 0.0, 0))
    for way, words, unfrozen, rate, epochs in tqdm(cases, desc=f"seed {seed}"):
        torch.manual_seed(seed)
        network = begin(way, trained["plain"], torch.from_numpy(features))
        if epochs:
            fit(network, unfrozen, split.train, epochs=epochs, rate=rate * LEARNING_RATE, seed=seed)
        records.append({"way": way, "trained": words, "rate": rate, "epochs": epochs} | judge(network, split))
    return records


def ladders(split: Split, seed: int) -> list[Record]:
    """Train an encoder with each ladder, and judge it at JUDGED."""
    records = []
    for name, nesting in tqdm(LADDERS.items(), desc=f"seed {seed}"):
        encoder = _contrastive(split.train.features, nesting, seed)
        with torch.no_grad():
            train, test = (encoder(torch.from_numpy(part.features)).numpy() for part in (split.train, split.test))
        found = {
            "linear": [
                _least_squares(train[:, :m], split.train.labels, test[:, :m], split.test.labels) for m in JUDGED
            ],
            "nearest": _nearest(train[:CORPUS_ROWS], test, split, JUDGED),
        }
        records.append({"ladder": name, "widths": len(nesting)} | found)
    return records


def _encoder(n_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_features, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, WIDTH))


def _loss(encoder: nn.Module, rows: torch.Tensor, nesting: Nesting) -> torch.Tensor:
    views = (encoder(nn.functional.dropout(rows, 0.5)) for _ in range(2))
    return info_nce(*views, nesting=nesting, temperature=TEMPERATURE, symmetric=True)


def _contrastive(features: np.ndarray, nesting: Nesting, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    encoder, rows = _encoder(features.shape[1]), torch.from_numpy(features)

    def loss() -> torch.Tensor:
        return _loss(encoder, rows[torch.randint(len(rows), (BATCH,))], nesting)

    optimise(encoder, loss, STEPS, rate=LEARNING_RATE)
    return encoder


def _least_squares(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray) -> float:
    """Return the accuracy of the linear classifier that fits indicators of the classes, with a slight ridge."""
    mean, targets = features.mean(0, dtype=np.float64), np.eye(labels.max() + 1)[labels]
    rows = features - mean
    gram = rows.T @ rows
    gram.flat[:: len(gram) + 1] += 1e-4 * np.trace(gram) / len(gram)
    weight = np.linalg.solve(gram, rows.T @ (targets - targets.mean(0)))
    return share_right(((queries - mean) @ weight + targets.mean(0)).argmax(-1), query_labels)


def cost(n_features: int) -> list[Record]:
    """Return the CPU time of a step with each ladder and of its loss alone, in seconds: medians of rounds."""
    rows, encoder = torch.randn(BATCH, n_features), _encoder(n_features)
    embeddings = [torch.randn(BATCH, WIDTH, requires_grad=True) for _ in range(2)]
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in LADDERS}
    for _ in range(ROUNDS):
        for name, nesting in LADDERS.items():
            calls: tuple[Callable[[], None], ...] = (
                lambda nesting=nesting: _loss(encoder, rows, nesting).backward(),
                lambda nesting=nesting: info_nce(*embeddings, nesting=nesting, symmetric=True).backward(),
            )
            for times, call in zip(taken[name], calls, strict=True):
                start = time.process_time()
                call()
                times.append(time.process_time() - start)
    return [
        dict(zip(("step_s", "loss_s"), map(float, np.median(times, axis=1)), strict=True)) for times in taken.values()
    ]


def summary(runs: list[list[Record]]) -> list[Record]:
    """Return the records of one run, with lists of shares replaced by mean and deviation over the runs, in percent."""
    gathered = []
    for same in zip(*runs, strict=True):
        record = dict(same[0])
        for name, value in same[0].items():
            if isinstance(value, list):
                values = 100 * np.array([one[name] for one in same])
                deviation = values.std(axis=0, ddof=min(1, len(values) - 1))
                record |= {name: _text(values.mean(axis=0)), f"{name}_sd": _text(deviation)}
        gathered.append(record)
    return gathered


def _text(values: np.ndarray) -> str:
    """Return numbers as one text: a stored record stays on few lines."""
    return " ".join(f"{value:.2f}" for value in values)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


def recipe_page(result: Record) -> str:
    """Return the table of all ways at their best rate, by the calibration rows, and what rate and epochs change."""
    found = {(r["way"], r["trained"], r["rate"], r["epochs"]): r for r in result["records"]}
    plain, nested = (r for r in result["records"] if r["epochs"] == EPOCHS)
    chosen = [plain, found["PCA, old head", "nothing", 0.0, 0]]
    for way, choices in WAYS.items():
        for words in choices:
            tried = [r for (w, t, _, epochs), r in found.items() if (w, t, epochs) == (way, words, 2)]
            chosen.append(max(tried, key=lambda r: sum(_numbers(r["calibration"]))))
    best = lines(
        ["begins with: trained", *map(str, DIMS), "rate"],
        [
            [f"{r['way']}: {r['trained']}", *_pairs(r, "test", "nearest"), f"{r['rate']:g} ×" if r["epochs"] else ""]
            for r in [*chosen, nested]
        ],
    )
    shown = [(f"{way}: {m}", way, DIMS.index(m)) for way in WAYS for m in (DIMS[1], DIMS[-1])]
    rates = lines(
        ["everything trained at", *(title for title, _, _ in shown)],
        [
            [
                f"{rate:g} ×, {epochs} epoch{'s' * (epochs > 1)}",
                *(f"{_numbers(found[way, 'everything', rate, epochs]['test'])[i]:.1f}" for _, way, i in shown),
            ]
            for rate, epochs in sorted(SCHEDULES, key=lambda schedule: (schedule[1], -schedule[0]))
        ],
    )
    return "\n".join([*best, "", *rates, ""])


def _pairs(record: Record, first: str, second: str) -> list[str]:
    both = zip(_numbers(record[first]), _numbers(record[second]), strict=True)
    return [f"{left:.1f} / {right:.1f}" for left, right in both]


def ladders_page(result: Record) -> str:
    """Return the table of all ladders, trained widths in bold, with costs against the full width alone.

    The last column is what a loop over prefixes needs for its losses, in multiply-adds.
    """
    records, rows = result["records"], []
    for r in records:
        nesting, pairs = LADDERS[r["ladder"]], dict(zip(JUDGED, _pairs(r, "linear", "nearest"), strict=True))
        cells = [f"**{pairs[m]}**" if m in nesting.dims else pairs[m] for m in SHOWN]
        costs = [r[name] / records[0][name] for name in ("step_s", "loss_s")] + [sum(nesting) / WIDTH]
        rows.append([r["ladder"], *cells, *(f"{cost:.1f} ×" for cost in costs)])
    return "\n".join([*lines(["ladder", *map(str, SHOWN), "step", "loss", "loop"], rows), ""])


QUESTIONS = {"recipe": (recipe, recipe_page), "ladders": (ladders, ladders_page)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and store on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--data", default="digits", help="as for the study (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs to average (default: %(default)s)")
    parser.add_argument("--store", action="store_true", help="keep the figures and the table in the repository")
    options = parser.parse_args(arguments)
    ask, page_of = QUESTIONS[options.question]
    dataset = data.load(options.data)
    with reproducible():
        runs = [ask(_split(dataset, seed), seed) for seed in range(options.runs)]
        records = summary(runs)
        if options.question == "ladders":
            records = [record | times for record, times in zip(records, cost(dataset.n_features), strict=True)]
    result = {"data": dataset.name, "runs": options.runs, "records": records}
    print(page := page_of(result))
    if options.store:
        store(f"fine_tune_{options.question}", result, page)


def _split(dataset: data.Dataset, seed: int) -> Split:
    split = dataset.split(seed)
    return Split(
        Rows(split.train.features[:TRAIN_ROWS], split.train.labels[:TRAIN_ROWS]), split.calibration, split.test
    )


if __name__ == "__main__":
    main()
