"""Rows like those of a text encoder: its mean, its spectrum, and the way its neighbours differ.

`clinc150.json` holds what was measured of 15,000 embeddings (all-MiniLM-L6-v2, 384 columns) of the training questions
of CLINC150 (Larson et al., 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction";
github.com/clinc/oos-eval, CC BY 3.0), along the eigenvectors of their second moment. Of embeddings of one's own,
`python -m benchmarks.retrieval.real_like EMBEDDINGS.npy` prints the same.

A row is the mean plus one normal draw for each of five levels of a tree: its subject, which some 600 rows share, down
to what it shares with no other. Along each direction, v being the variance and r the share of it that is left between
nearest neighbours, the draws from a level downwards have the variance v r^t, with t growing from 0 to 1: whole rows
have the spectrum of the embeddings and neighbours that of differences between neighbours, which is flatter. Each row
weighs its draws by random numbers, so that some rows lie close to others and some apart. A larger set has more
subjects, not more rows of each. A fixed random rotation then hides the directions, as they are hidden in what a network
puts out that was not trained to be cut. Other widths interpolate, by the logarithm of the place: a wider encoder has
about the same leading directions and more small ones.

So as not to be easier than what they stand for, 15,000 rows of width 384 were compared with the 15,000 embeddings, the
queries of which are the 5,500 test questions. The share of the ten nearest rows that is among 100 candidates, prefixes
brought to unit length, bits centred and the rotation fitted on every second row:

======================  ==========  ===============  ================
candidates share        columns     rotated columns  bits of columns
how many                16    32    16    32    64   128   256   384
======================  ==========  ===============  ================
embeddings              .67   .86   .88   .95   .98  .93   .98   .995
rows of this module     .67   .86   .86   .96   1.0  .92   .97   .99
======================  ==========  ===============  ================

Of all rows, 12, 1.8 and .1 % of the embeddings and 8, 1.1 and .1 % of the drawn rows cannot be ruled out by the first
64, 128 and 256 rotated columns and the length of the rest; of 15,000 drawn rows of width 768, 20, 7 and 1 %. The
nearest row has a median cosine of .84 and .84, the tenth .68 and .71, the hundredth .45 and .53, any .07 and .12. With
60 of the 150 intents, 6,000 rows, 16 columns keep .75 of the embeddings and .74 here, .94 and .93 rotated. Bits of
*rotated* columns are the one thing that is harder here: 256 keep .95 of the embeddings and .87 here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

ROWS = (600, 60, 12, 3, 1)
"""How many rows share a draw, on each level."""
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPE = 0.8
"""Of the gamma distribution of the weights, whose mean is 1: the smaller, the more do distances differ."""
_STATISTICS = Path(__file__).with_name("clinc150.json")
_AT_ONCE = 80 * ROWS[0]


def draw(places: np.ndarray, dim: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw one row for each of `places`, a permutation, in the order of the tree.

    Yields
    ------
    places : array (m,)
        Where these rows belong.
    rows : array (m, dim)
        Of unit length, in float32.
    """
    mean, deviations, turn = _model(dim)
    for start in range(0, len(places), _AT_ONCE):
        rng = np.random.default_rng((seed, dim, start))
        some = places[start : start + _AT_ONCE]
        rows = np.repeat(mean[None, :], len(some), axis=0)
        for shared, deviation in zip(ROWS, deviations, strict=True):
            own = rng.standard_normal((-(-len(some) // shared), dim), np.float32) * deviation
            weights = rng.gamma(SHAPE, 1 / SHAPE, (len(some), 1))
            rows += np.repeat(own, shared, axis=0)[: len(some)] * np.sqrt(weights).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield some, rows @ turn


@cache
def _model(dim: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return the mean (dim,), the standard deviations (dim,) of the draws of each level, and a rotation."""
    known = {name: np.array(values) for name, values in json.loads(_STATISTICS.read_text())["columns"].items()}
    places = [np.log(np.arange(1, width + 1)) / np.log(width) for width in (dim, known["mean"].size)]
    mean, variance, between = (np.interp(*places, known[name]) for name in ("mean", "variance", "neighbours"))
    mean *= np.linalg.norm(known["mean"]) / np.linalg.norm(mean)
    left = np.clip(between / np.maximum(variance, 1e-9), 1e-3, 1.0)  # of the last directions nothing may be known
    variance *= known["variance"].sum() / variance.sum()
    finer = [variance * left**power for power in POWERS] + [np.zeros(dim)]
    deviations = [np.sqrt(upper - lower) for upper, lower in pairwise(finer)]
    turn = np.linalg.qr(np.random.default_rng(dim).standard_normal((dim, dim)))[0]
    return mean.astype(np.float32), [d.astype(np.float32) for d in deviations], turn.astype(np.float32)


def statistics(embeddings: np.ndarray) -> dict[str, list[float]]:
    """Return what `draw` needs of embeddings (n, dim) of unit length, n some ten thousand.

    Along each eigenvector of their second moment, the largest eigenvalue first: the mean, the variance, and half of the
    mean square of the difference to the nearest other row.
    """
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows @ np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    nearest = [_nearest(rows, slice(start, start + 1000)) for start in range(0, len(rows), 1000)]
    between = np.square(rows - rows[np.concatenate(nearest)]).mean(axis=0) / 2
    found = {"mean": rows.mean(axis=0), "variance": rows.var(axis=0), "neighbours": between}
    return {name: [float(f"{value:.4g}") for value in values] for name, values in found.items()}


def _nearest(rows: np.ndarray, block: slice) -> np.ndarray:
    scores = rows[block] @ rows.T
    own = np.arange(len(scores))
    scores[own, block.start + own] = -np.inf
    return scores.argmax(axis=1)


if __name__ == "__main__":
    print(json.dumps(statistics(np.load(sys.argv[1]))))
