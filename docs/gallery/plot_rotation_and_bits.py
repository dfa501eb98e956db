"""
Rotate, or search in bits
=========================

Vectors that no training sorted: a cut loses much. A rotation puts into the first columns what it can; bits take one bit
a column instead of 32, and need no order at all. What suits depends on the bytes that a row may take in memory.
"""

import matplotlib.pyplot as plt
import numpy as np

from matryoshka import Corpus, Funnel, Rotation, metrics

# %%
# Vectors like those of a text encoder: topics and texts about them, with columns of about equal spread.

rng = np.random.default_rng(0)
mix = np.linalg.qr(rng.normal(size=(256, 256)))[0] * (1 + np.arange(256))[:, None] ** -0.4
topics = rng.normal(size=(1000, 256))
texts = ((np.repeat(topics, 10, axis=0) + rng.normal(size=(10_000, 256))) @ mix).astype("float32")
queries = ((topics[:400] + rng.normal(size=(400, 256))) @ mix).astype("float32")
rotation = Rotation.fit(texts)
exact = Corpus(texts).search(queries, k=10)[1]
print("the first 32 columns hold", f"{rotation.energy[:32].sum():.0%}", "of the squared length after the rotation")


# %%
# Of the ten nearest rows, how many are among the best 100 of a first stage? The second stage ranks these by all
# columns, so this is what the first one decides.


def kept(rows, asked, dim, code="float"):
    """Return recall@10 of a search with a first stage of one width and 100 candidates."""
    corpus = Corpus(rows, search_dims=(dim,), code=code)
    return metrics.overlap_at_k(corpus.search(asked, k=10, funnel=Funnel((dim, 256), (100,), code=code))[1], exact, 10)


turned, asked = rotation.apply(texts), rotation.apply(queries)
curves = {
    "numbers, as they are": [(4 * dim, kept(texts, queries, dim)) for dim in (4, 8, 16, 32, 64)],
    "numbers, rotated": [(4 * dim, kept(turned, asked, dim)) for dim in (4, 8, 16, 32, 64)],
    "bits": [(dim // 8, kept(texts, queries, dim, "bits")) for dim in (64, 128, 192, 256)],
    "bits, rotated": [(dim // 8, kept(turned, asked, dim, "bits")) for dim in (64, 128, 192, 256)],
}

# %%
# A rotation helps numbers at every size. Bits find far more at the same size, because 8 bytes hold 64 of them or two
# numbers. Rotated they do so only where few of them are kept: the last directions of a rotation hold next to nothing,
# and a bit of each costs as much as one of the first.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, points in curves.items():
    axes.plot(*zip(*points, strict=True), "o-", label=name)
axes.set_xscale("log", base=2)
axes.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
axes.set(xlabel="bytes a row in the first stage (1,024 as it is)", ylabel="recall@10, of 100 candidates")
axes.legend()
plt.show()
