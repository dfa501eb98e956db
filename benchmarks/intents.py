"""What cascades save on a real task: `python -m benchmarks.intents FOLDER [--store]`.

Heads of 150 intents are trained on embeddings of the training questions of CLINC150 (Larson et al., 2019, "An
Evaluation Dataset for Intent Classification and Out-of-Scope Prediction"; github.com/clinc/oos-eval), behind a linear
map to 256 columns that begins as their strongest directions. Of the 7,500 questions for validation and test, some
choose thresholds and the others judge, in random draws. The folder holds clinc150_train.npy, clinc150_val.npy and
clinc150_test.npy, embeddings in the order of the questions in data_full.json, which lies there too. With `--store` the
figures go to benchmarks/results/intents.json and their tables to docs/results. It takes a minute or two of one thread.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.table import lines, measure_folder
from matryoshka import Cascade, Rotation
from matryoshka.torch import MRLHead

LADDERS = {"8, 16, …, 256": (8, 16, 32, 64, 128, 256), "every 16th": tuple(range(16, 257, 16))}
WIDTH, EPOCHS, BATCH = 256, 20, 256
CHOSEN, DRAWS, BOUND = 4500, 8, 0.01
FEW, FEW_DRAWS = (500, 1000, 2000), 40
Rows = tuple[np.ndarray, np.ndarray]
Record = dict[str, Any]


def read(folder: Path, *names: str) -> Rows:
    """Return embeddings (n, 384) and labels (n,) of the named parts together."""
    questions = json.loads(folder.joinpath("data_full.json").read_text(encoding="utf-8"))
    embeddings = [np.load(folder / f"clinc150_{name}.npy").astype(np.float32) for name in names]
    intents = [intent for name in names for _, intent in questions[name]]
    return np.concatenate(embeddings), np.unique(intents, return_inverse=True)[1]


def logits_of(train: Rows, others: np.ndarray, dims: tuple[int, ...], *, tied: bool) -> np.ndarray:
    """Train a linear map with nested heads, and return the logits (G, n, 150) of other rows."""
    torch.manual_seed(0)
    rotation, scale = Rotation.fit(train[0]), np.float32(np.sqrt(train[0].shape[1]))
    rows, labels = torch.from_numpy(scale * rotation.apply(train[0])), torch.from_numpy(train[1])
    linear, head = torch.nn.Linear(rows.shape[1], WIDTH), MRLHead(dims, int(labels.max()) + 1, tied=tied)
    torch.nn.init.eye_(linear.weight)
    optimizer = torch.optim.AdamW([*linear.parameters(), *head.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).split(BATCH):
            optimizer.zero_grad()
            head(linear(rows[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.stack(list(head(linear(torch.from_numpy(scale * rotation.apply(others)))))).numpy()


def draw(n: int, chosen: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows choose thresholds, and which judge."""
    order = np.random.default_rng(seed).permutation(n)
    return order[:chosen], order[chosen:]


def saved(logits: np.ndarray, labels: np.ndarray, dims: tuple[int, ...], asked: str, paid: str) -> Record:
    """Return means over draws of what cascades pay that are certified to keep one cost low."""
    found = []
    for seed in range(DRAWS):
        chosen, judging = draw(len(labels), CHOSEN, seed)
        cascade = Cascade.certify(
            logits[:, chosen], labels[chosen], nesting=dims, max_gap=BOUND, cost=asked, from_logits=True
        )
        found.append(cascade.evaluate(logits[:, judging], labels[judging], from_logits=True))
    fixed = Counter(each.fixed_dim for each in found).most_common(1)[0]
    mean = {name: float(np.mean([getattr(each, name) for each in found])) for name in ("accuracy", "gap", paid)}
    full = float(np.mean([each.prefix_accuracy[-1] for each in found]))
    return {"kept_low": asked, "accuracy": mean["accuracy"], "full": full, "gap": mean["gap"], "paid": mean[paid],
            "fixed": fixed[0], "fixed_in": fixed[1], "draws": DRAWS}  # fmt: skip


def few(logits: np.ndarray, labels: np.ndarray, dims: tuple[int, ...]) -> list[Record]:
    """Return the mean exit of cascades that few rows certify, along two paths, with labels and without."""
    records = []
    for n in FEW:
        for promise in ("gap", "disagreement"):
            record: Record = {"rows": n, "promise": promise, "draws": FEW_DRAWS}
            for path in ("tapered", "fitted"):
                found = []
                for seed in range(FEW_DRAWS):
                    chosen, judging = draw(len(labels), n, seed)
                    truth = (labels[chosen],) if promise == "gap" else ()
                    options: Record = {f"max_{promise}": BOUND, "path": path, "from_logits": True}
                    cascade = Cascade.certify(logits[:, chosen], *truth, nesting=dims, **options)
                    found.append(cascade.evaluate(logits[:, judging], labels[judging], from_logits=True))
                record[path] = float(np.mean([each.expected_dim for each in found]))
                record[f"{path}_above"] = float(np.mean([getattr(each, promise) > BOUND for each in found]))
            records.append(record)
    return records


def measure(folder: Path) -> dict[str, list[Record]]:
    """Return what cascades save, and what few rows buy."""
    train, (others, labels) = read(folder, "train"), read(folder, "val", "test")
    ways = ((True, "expected_dim", "expected_dim"), (False, "expected_dim", "cumulative_dim"),
            (False, "cumulative_dim", "cumulative_dim"))  # fmt: skip
    result: dict[str, list[Record]] = {"saved": [], "few": []}
    for name, dims in LADDERS.items():
        logits = {tied: logits_of(train, others, dims, tied=tied) for tied in (True, False)}
        for tied, asked, paid in ways:
            record = saved(logits[tied], labels, dims, asked, paid)
            result["saved"].append({"ladder": name, "head": "tied" if tied else "separate", **record})
        if not result["few"]:
            result["few"] = few(logits[True], labels, dims)
    return result


def page(result: dict[str, list[Record]]) -> str:
    """Return the two tables."""
    head = ("ladder", "head", "kept low", "right", "full width", "gap", "columns paid", "× less than 256",
            "width as good alone", "× less than it")  # fmt: skip
    rows = [
        (r["ladder"], r["head"], f"`{r['kept_low']}`", f"{r['accuracy']:.2%}", f"{r['full']:.2%}", f"{r['gap']:.2%}",
         f"{r['paid']:.0f}", f"{WIDTH / r['paid']:.1f}", f"{r['fixed'] or 'none'} in {r['fixed_in']} of {r['draws']}",
         f"{r['fixed'] / r['paid']:.1f}" if r["fixed"] else "")
        for r in result["saved"]
    ]  # fmt: skip
    few_head = (
        "rows",
        f"promised, at most {BOUND:.0%}",
        "mean exit, tapered",
        "fitted",
        "above it on the others, tapered",
        "fitted",
    )
    few_rows = [
        (f"{r['rows']:,}", r["promise"], f"{r['tapered']:.0f}", f"{r['fitted']:.0f}", f"{r['tapered_above']:.0%}",
         f"{r['fitted_above']:.0%}")
        for r in result["few"]
    ]  # fmt: skip
    return "\n\n".join("\n".join(table) for table in (lines(head, rows), lines(few_head, few_rows))) + "\n"


if __name__ == "__main__":
    measure_folder("intents", __doc__, measure, page)
