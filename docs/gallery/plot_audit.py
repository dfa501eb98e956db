"""
Does the order of columns mean anything?
========================================

Vectors can be cut if their first columns are the strong ones, which is what training with prefixes aims at. The audit
tells, from the vectors alone. Here it meets three sets of them: one with such an order, the same with its columns
shuffled, and the shuffled one after a rotation.
"""

import matplotlib.pyplot as plt
import numpy as np

from matryoshka import Rotation, audit

rng = np.random.default_rng(0)
nested = (rng.normal(size=(1500, 128)) * 0.96 ** np.arange(128)).astype("float32")
shuffled = nested[:, rng.permutation(128)]

# %%
# The verdict comes with a table: what the first columns keep of each row's nearest neighbours, what random columns
# keep, and how many random columns a prefix is worth.

report = audit(nested)
print(report)

# %%
# Shuffled columns keep what any columns keep. What helps is a rotation, which the audit tries on rows that did not fit
# it. Here it is fitted on the first 500 rows and judged on the others.

no = audit(shuffled)
print(no.verdict)
print(no.recommendation)
rotated = audit(Rotation.fit(shuffled[:500]).apply(shuffled[500:]))

# %%
# Drawn: the share of the ten nearest neighbours that a cut keeps.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
dims = [row.dim for row in report.rows]
for name, found, line in (
    ("the first columns are the strong ones", report, "o-"),
    ("shuffled", no, "o-"),
    ("shuffled, then rotated", rotated, "s--"),
):
    axes.plot(dims, [100 * row.kept for row in found.rows], line, label=name)
axes.plot(dims, [100 * row.random for row in report.rows], "k:", label="random columns, of any of them")
axes.set_xscale("log", base=2)
axes.set_xticks(dims, map(str, dims))
axes.set(xlabel="columns kept, of 128", ylabel="of the ten nearest neighbours, kept (%)", ylim=(0, 102))
figure.legend(loc="outside lower center", ncols=2)
plt.show()
