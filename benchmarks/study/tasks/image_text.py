"""Images and texts in one space, by symmetric InfoNCE between two towers, as ALIGN: clothes and their descriptions.

A convolutional tower reads the image; the text is a vector of the sentence encoder, which stays as it is, and a linear
layer of it. Classes are recognised by descriptions that training has not seen ("zero-shot"): by the description whose
embedding is nearest. Images of one class are no negatives of each other's descriptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from benchmarks.study.texts import DIM, encode
from benchmarks.study.towers import by_width, embed, optimise, tower
from matryoshka import truncate
from matryoshka.torch import InfoNCE

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

TEMPERATURE = 0.1  # where it starts; it is learned
# Training sees the first descriptions; the others, in other words, ask for the class.
SEEN = {
    "T-shirt/top": ("a t-shirt", "a tee with short sleeves", "a light top for summer", "a sleeveless top"),
    "Trouser": ("a pair of trousers", "long pants", "slacks for the office", "jeans"),
    "Pullover": ("a pullover", "a knitted sweater", "a warm jumper", "a hooded sweatshirt"),
    "Dress": ("a dress", "a long gown", "a sleeveless summer dress", "a robe for an evening out"),
    "Coat": ("a coat", "a jacket with a zip", "a winter parka", "a long overcoat"),
    "Sandal": ("a sandal", "an open shoe with straps", "a flip-flop", "a shoe with a high heel and bare toes"),
    "Shirt": ("a shirt", "a blouse", "a shirt with a collar and buttons", "a long-sleeved formal shirt"),
    "Sneaker": ("a sneaker", "a running shoe", "a trainer with laces", "a flat sports shoe"),
    "Bag": ("a bag", "a handbag", "a purse with a strap", "a leather satchel"),
    "Ankle boot": ("an ankle boot", "a short boot", "a leather boot with a heel", "a high shoe that covers the ankle"),
}
UNSEEN = {
    "T-shirt/top": ("a simple short-sleeved tee shirt", "a casual cotton top to wear in hot weather"),
    "Trouser": ("straight trousers that reach the ankles", "a garment for both legs"),
    "Pullover": ("a woollen sweater pulled over the head", "a cosy knitted jersey"),
    "Dress": ("a one-piece garment with a skirt", "an elegant dress for a woman"),
    "Coat": ("a warm jacket worn over other clothes", "a coat for cold and rainy days"),
    "Sandal": ("a strappy summer shoe", "open footwear for the beach"),
    "Shirt": ("a button-up shirt for the office", "a collared blouse"),
    "Sneaker": ("an athletic shoe for jogging", "a casual low shoe with a rubber sole"),
    "Bag": ("a tote to carry things in", "a shoulder bag with handles"),
    "Ankle boot": ("winter boots", "a boot that ends above the ankle"),
}


def measure(bench: Bench, system: str, seed: int, *, steps: int = 300, batch: int = 256) -> dict[str, Any]:
    """Return the share of test images whose nearest description is of their class, and how far apart the others lie.

    Raises
    ------
    ValueError
        The data are not the images that the descriptions speak of.
    """
    dataset, split = bench.dataset, bench.split(seed)
    if dataset.class_names != tuple(SEEN) or dataset.shape is None:
        msg = f"the task image_text must have the images of Fashion-MNIST, got {dataset.name}; take it out of the grid."
        raise ValueError(msg)
    seen, unseen = (
        encode(np.array(list(descriptions.values())).ravel()).reshape(len(descriptions), -1, DIM)
        for descriptions in (SEEN, UNSEEN)
    )
    captions = torch.from_numpy(seen)
    features, labels = torch.from_numpy(split.train.features), torch.from_numpy(split.train.labels)
    width = bench.grid.dims[-1]

    def fit(dims: tuple[int, ...]) -> dict[str, np.ndarray]:
        torch.manual_seed(seed)
        images, texts = tower(dataset, width), nn.Linear(DIM, width)
        loss = InfoNCE(dims, temperature=TEMPERATURE, symmetric=True, learnable_temperature=True)

        def of_a_batch() -> torch.Tensor:
            chosen = torch.randint(len(labels), (batch,))
            own = labels[chosen]
            described = texts(captions[own, torch.randint(seen.shape[1], (batch,))])
            mask = (own[:, None] != own) | torch.eye(batch, dtype=torch.bool)
            return loss(images(features[chosen])[:, : dims[-1]], described[:, : dims[-1]], mask=mask)

        optimise(nn.ModuleList((images, texts, loss)), of_a_batch, steps)
        rows = {"train": (images, split.train.features[:10_000]), "test": (images, split.test.features)}
        rows["texts"] = (texts, unseen.mean(axis=1))
        return {name: embed(module, given)[:, : dims[-1]] for name, (module, given) in rows.items()}

    found: dict[str, Any] = {"dims": list(bench.grid.dims), "zero_shot": [], "own_cosine": [], "other_cosine": []}
    for dim, rows in by_width(system, bench.grid.dims, fit):
        cosines = truncate(rows["test"], dim) @ truncate(rows["texts"], dim).T
        own = split.test.labels[:, None] == np.arange(len(SEEN))
        found["zero_shot"].append(float((cosines.argmax(axis=1) == split.test.labels).mean()))
        found["own_cosine"].append(float(cosines[own].mean()))
        found["other_cosine"].append(float(cosines[~own].mean()))
    return found | {"steps": steps, "batch": batch, "n_queries": len(split.test)}
