"""Test rows made worse, by kind and severity: images with noise, blur, less contrast or shifted; texts by word.

Severities are 1, 2 and 3. Each has the same random numbers at all of them (a word that is dropped at 1 is dropped at 2
too), so that what is seen from one severity to the next is the severity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

from benchmarks.study.data import Dataset, Split

MOST_ROWS = 1000
"""Test rows that are corrupted at most: their accuracy is, in 19 cases of 20, within 3.1 points of that of all."""

NOISE = (0.1, 0.2, 0.4)
"""Deviation of Gaussian noise, as a share of the range of the training images."""

BLUR = (0.05, 0.1, 0.15)
"""Deviation of the Gaussian that images are convolved with, as a share of their side."""

CONTRAST = (0.75, 0.5, 0.3)
"""Share of the difference from the mean of an image that remains."""

SHIFT = (0.05, 0.1, 0.15)
"""Way that an image moves along one axis, as a share of its side; between pixels it is interpolated linearly."""

WORDS = (0.15, 0.3, 0.5)
"""Share of the words of a text that are dropped, or that change their places."""


def chosen(n: int, seed: int) -> np.ndarray:
    """Return the ascending indices of the test rows, of `n`, that are corrupted."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:MOST_ROWS])


def corrupted(dataset: Dataset, split: Split, seed: int) -> dict[str, np.ndarray]:
    """Return features of the `chosen` test rows by part, "test/KIND/SEVERITY", scaled as those of the split are.

    Raises
    ------
    ValueError
        The rows are neither grey images nor texts.
    """
    rows = chosen(len(split.test), seed)
    if dataset.shape is not None and len(dataset.shape) == 2:
        low, high = float(split.train.features.min()), float(split.train.features.max())
        images = split.test.features[rows].reshape(-1, *dataset.shape)
        worse = {
            f"test/{kind}/{severity}": make(images, severity, low, high, np.random.default_rng(seed))
            for kind, make in IMAGES.items()
            for severity in (1, 2, 3)
        }
        return {part: values.reshape(len(rows), -1).astype(np.float32) for part, values in worse.items()}
    if split.test.texts is not None:
        from benchmarks.study.texts import encode

        texts = split.test.texts[rows]
        return {
            f"test/{kind}/{severity}": split.scaled(encode(reworded(texts, kind, share, seed)))
            for kind in WORDINGS
            for severity, share in enumerate(WORDS, start=1)
        }
    msg = (
        f"the task robustness needs grey images or texts, got {dataset.name}, which has neither; take it from the grid."
    )
    raise ValueError(msg)


def noise(images: np.ndarray, severity: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, within the range of the images."""
    return np.clip(images + NOISE[severity - 1] * (high - low) * rng.normal(size=images.shape), low, high)


def blur(images: np.ndarray, severity: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a Gaussian; beyond the border the nearest pixel goes on."""
    del low, high, rng
    sides = images.shape[1:]
    return ndimage.gaussian_filter(images, (0, *(BLUR[severity - 1] * side for side in sides)), mode="nearest")


def contrast(images: np.ndarray, severity: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Bring each image closer to its mean."""
    del low, high, rng
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + CONTRAST[severity - 1] * (images - mean)


def shift(images: np.ndarray, severity: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Move each image up, down, left or right; what comes in is as dark as can be."""
    del high
    ways = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]) * SHIFT[severity - 1] * images.shape[1:]
    moves = zip(images, ways[rng.integers(len(ways), size=len(images))], strict=True)
    return np.stack([ndimage.shift(image, way, order=1, mode="grid-constant", cval=low) for image, way in moves])


IMAGES: Mapping[str, Callable[[np.ndarray, int, float, float, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "shift": shift,
}


def reworded(texts: np.ndarray, kind: str, share: float, seed: int) -> np.ndarray:
    """Drop or swap a `share` of the words of each text; words are what blanks part.

    At least one word is dropped, of several, and two swapped; a text of one word stays as it is.
    """
    rng = np.random.default_rng(seed)
    return np.array([" ".join(WORDINGS[kind](text.split(), share, rng)) for text in texts.tolist()])


def dropped(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Leave out words."""
    order = rng.permutation(len(words))
    n_dropped = min(max(1, round(share * len(words))), len(words) - 1)
    return [words[place] for place in np.sort(order[n_dropped:])]


def swapped(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Let words change places, each with the next of those that were drawn."""
    drawn = rng.permutation(len(words))[: max(2, round(share * len(words)))]
    places = dict(zip(drawn.tolist(), np.roll(drawn, 1).tolist(), strict=True))
    return [words[places.get(place, place)] for place in range(len(words))]


WORDINGS: Mapping[str, Callable[[list[str], float, np.random.Generator], list[str]]] = {
    "dropped words": dropped,
    "swapped words": swapped,
}
