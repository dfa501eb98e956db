"""
Cut vectors and see what is kept
================================

The audit says whether the *order* of the columns means anything. Here are three sets of vectors: one whose first
columns are the strong ones, as training with prefixes leaves them, the same with its columns shuffled, and the shuffled
one after a rotation.
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

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, found in (("trained to be cut", report), ("columns shuffled", no), ("shuffled, then rotated", rotated)):
    axes.plot([row.dim for row in found.rows], [row.kept for row in found.rows], "o-", label=name)
axes.plot(
    [row.dim for row in report.rows], [row.random for row in report.rows], "k:", label="random columns of the first"
)
axes.set_xscale("log", base=2)
axes.set_xticks(report_dims := [row.dim for row in report.rows], map(str, report_dims))
axes.set(xlabel="columns kept, of 128", ylabel="of the ten nearest neighbours, kept", ylim=(0, 1.02))
axes.legend()
plt.show()
