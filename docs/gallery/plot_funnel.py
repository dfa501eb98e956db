"""
A funnel over a memory-mapped file
==================================

The rows stay in their file, which may be larger than memory; a corpus keeps the first columns of all of them and reads
the rest of the candidates only. `matryoshka.Funnel.pareto` lists the plans that nothing beats,
`matryoshka.Funnel.calibrate` returns one whose recall is certified.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from matryoshka import Corpus, Funnel, metrics
from matryoshka.retrieval import FunnelDisplay

rng = np.random.default_rng(0)
spread = (1 + np.arange(256)) ** -0.8
file = Path(tempfile.mkdtemp()) / "rows.npy"
np.save(file, (rng.normal(size=(20_000, 256)) * spread).astype("float32"))
queries = (rng.normal(size=(600, 256)) * spread).astype("float32")

corpus = Corpus(np.load(file, mmap_mode="r"), search_dims=(16,))
print(f"in memory: {corpus.nbytes.memory:,} bytes, for {corpus.nbytes.mapped:,} in the file")

# %%
# Adaptive retrieval: 16 columns for 200 candidates, which all 256 columns rerank.

funnel = Funnel((16, 256), keep=(200,))
scores, ids = corpus.search(queries, k=10, funnel=funnel)
exact = corpus.search(queries, k=10)[1]
print("recall@10", metrics.overlap_at_k(ids, exact, k=10), "for 1 /", round(funnel.speedup(len(corpus))), "of the work")

# %%
# Which other plans are there? Counted in multiply-adds, which are the same on every machine.

points = Funnel.pareto(corpus, queries[:300], k=10, cost="multiply_adds")
promised = Funnel.calibrate(corpus, queries, k=10, recall=0.95, cost="multiply_adds")
print(promised)
print(promised.certificate)

# %%
# Drawn: what nothing beats, a plain cut among it, and the recall that is certified. A number beside a mark is the width
# of the first stage. The cut to 8 columns finds three of ten; funnels that start there find nearly all for hardly more.

FunnelDisplay(points, certificate=promised.certificate).plot()
plt.show()
