"""Masked words of questions, guessed by a small transformer, as BERT: each prefix has the head of the vocabulary.

The head is tied twice: all prefixes share it (MRL-E), and its rows are the vectors of the words that the network reads.
FF-m trains a network whose head sees the first m columns only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from benchmarks.study.towers import by_width, optimise
from matryoshka import mrl_e_cross_entropy

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

DIMS = (8, 16, 32, 64, 128)  # as wide as the transformer, which is smaller than the networks of other tasks
SYSTEMS = ("MRL-E", "FF", "cut", "rotation")
NOTHING, UNKNOWN, MASK = range(3)
N_SPECIAL = 3
LONGEST = 24  # words of a question; 1 in 200 of CLINC150 is longer, and cut
MASKED = 0.15
LAYERS, ATTENTION_HEADS = 2, 4
AMONG = 8  # batches that are drawn for one of equally long questions
ROWS_AT_ONCE = 512
MOST_ROWS = 4_000  # questions whose masked words tell the rotation


class Reader(nn.Module):
    """A transformer that turns word ids (n, length) into hidden states (n, length, width)."""

    def __init__(self, n_words: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, width, padding_idx=NOTHING)
        self.places = nn.Parameter(torch.randn(LONGEST, width) * 0.02)
        nn.init.normal_(self.words.weight, std=0.05)
        layer = nn.TransformerEncoderLayer(
            width, ATTENTION_HEADS, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(n_words))

    def forward(self, words: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the states at some places, a mask (n, length): (n_places, width)."""
        states = self.words(words) + self.places[: words.shape[1]]
        states = self.layers(states, src_key_padding_mask=words == NOTHING)
        return self.transform(states[places])


def measure(
    bench: Bench, system: str, seed: int, *, dims: Sequence[int] = DIMS, steps: int = 800, batch: int = 64
) -> dict[str, Any]:
    """Return the share of the masked words of test questions that each width of the ladder `dims` guesses.

    Raises
    ------
    ValueError
        The data have no texts.
    """
    split, ladder = bench.split(seed), tuple(dims)
    if split.train.texts is None or split.test.texts is None:
        msg = f"the task masked_language must have texts, got {bench.dataset.name}; take it out of the grid."
        raise ValueError(msg)
    vocabulary = vocabulary_of(split.train.texts)
    train, test = (as_ids(texts, vocabulary) for texts in (split.train.texts, split.test.texts))
    n_words = N_SPECIAL + len(vocabulary)

    def fit(widths: tuple[int, ...]) -> dict[str, np.ndarray]:
        torch.manual_seed(seed)
        reader = Reader(n_words, ladder[-1])

        def of_a_batch() -> torch.Tensor:
            rows = equally_long(train, batch)
            places = chosen(rows)
            states = reader(disguised(rows, places, n_words), places)[:, : widths[-1]]
            weight = reader.words.weight[:, : widths[-1]]
            return mrl_e_cross_entropy(states, weight, reader.bias, rows[places], nesting=widths)

        optimise(reader, of_a_batch, steps)
        known = {"train": _states(reader, train[:MOST_ROWS], seed)[0], "words": reader.words.weight.detach().numpy()}
        known["test"], known["answers"] = _states(reader, test, seed)
        known["bias"] = reader.bias.detach().numpy()
        return {name: rows[:, : widths[-1]] if rows.ndim == 2 else rows for name, rows in known.items()}

    found: dict[str, Any] = {"dims": list(ladder), "masked_words": []}
    for _, rows in by_width(system, ladder, fit):
        guesses = (rows["test"] @ rows["words"].T + rows["bias"]).argmax(axis=1)
        found["masked_words"].append(float((guesses == rows["answers"]).mean()))
    most_frequent = float((rows["answers"] == N_SPECIAL).mean())
    sizes = {"n_masked": len(rows["answers"]), "n_words": n_words, "steps": steps, "batch": batch}
    return found | {"most_frequent": most_frequent} | sizes


def vocabulary_of(texts: np.ndarray) -> dict[str, int]:
    """Return an id for each word that the texts hold twice or more, the most frequent first."""
    counts = Counter(word for text in texts.tolist() for word in _words(text))
    frequent = sorted((word for word, n in counts.items() if n > 1), key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate(frequent, start=N_SPECIAL)}


def as_ids(texts: np.ndarray, vocabulary: dict[str, int]) -> torch.Tensor:
    """Return the ids of the words of texts (n,), (n, LONGEST), filled up with `NOTHING`."""
    ids = torch.full((len(texts), LONGEST), NOTHING)
    for row, text in zip(ids, texts.tolist(), strict=True):
        found = [vocabulary.get(word, UNKNOWN) for word in _words(text)[:LONGEST]]
        row[: len(found)] = torch.tensor(found, dtype=torch.int64)
    return ids


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def equally_long(words: torch.Tensor, batch: int) -> torch.Tensor:
    """Draw rows that are about equally long, (batch, longest of them): less is spent on filling up."""
    rows = words[torch.randint(len(words), (AMONG * batch,))]
    lengths = (rows != NOTHING).sum(dim=1)
    together = lengths.argsort(stable=True).split(batch)[int(torch.randint(AMONG, ()))]
    return rows[together, : int(lengths[together].max())]


def chosen(words: torch.Tensor) -> torch.Tensor:
    """Return which words (n, length) to guess: a share of the known ones, and at least one where there is any."""
    drawn = torch.rand(words.shape).masked_fill(words < N_SPECIAL, 2.0)
    return (drawn < MASKED) | ((drawn == drawn.amin(dim=1, keepdim=True)) & (drawn < 2.0))


def disguised(words: torch.Tensor, places: torch.Tensor, n_words: int) -> torch.Tensor:
    """Put the mask in 8 of 10 chosen places, another word in 1, and leave 1 as it is."""
    drawn = torch.rand(words.shape)
    others = torch.randint(N_SPECIAL, n_words, words.shape)
    return words.where(~places | (drawn >= 0.9), torch.where(drawn < 0.8, MASK, others))


@torch.no_grad()
def _states(reader: Reader, words: torch.Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the states at masked words, (n, width), and what these were; the same words for every system."""
    torch.manual_seed(seed)
    places = chosen(words)
    hidden = words.masked_fill(places, MASK)
    parts = zip(hidden.split(ROWS_AT_ONCE), places.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([reader(part, where) for part, where in parts]).numpy(), words[places].numpy()
