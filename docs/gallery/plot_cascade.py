"""
A cascade on a trained classifier
=================================

A classifier that was trained with prefixes answers most rows from few numbers. Thresholds are certified on rows that
trained nothing, here without their labels: with 90 % probability the cascade contradicts the full width on at most 3 %
of new rows.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import scale

from matryoshka import Cascade, Nesting
from matryoshka.cascade import CascadeDisplay
from matryoshka.torch import MRLHead

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(scale(images), dtype=torch.float32), torch.tensor(labels)
train, held_out, new = torch.randperm(len(labels)).chunk(3)

nesting = Nesting((2, 4, 8, 16, 32, 64))
encoder = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
head = MRLHead(nesting, num_classes=10, tied=True)
optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
for _ in range(150):
    optimizer.zero_grad()
    head(encoder(images[train]), labels[train]).backward()
    optimizer.step()
with torch.no_grad():
    embeddings = encoder(images)
    logits = torch.stack(head(embeddings))  # (prefixes, rows, classes)

# %%
# Certified without labels. The certificate says what holds and how sure that is.

cascade = Cascade.certify(logits[:, held_out], nesting=nesting, from_logits=True, max_disagreement=0.03)
print(cascade.certificate)
found = cascade.evaluate(logits[:, new], labels[new], from_logits=True)
print(found)

# %%
# A prepared classifier computes only what each row needs, and takes one row or many.

classifier = cascade.classifier(head)
label, exit_dim = classifier(embeddings[new][0])
print(int(label), "after", int(exit_dim), "numbers")

# %%
# Where rows exit; and what the cascade, stopped at each width at the latest, pays beside prefixes that are as wide for
# every row. The line is what the certificate leaves.

figure, (where, cost) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
where.bar([str(dim) for dim in nesting.dims], [100 * share for share in found.exit_shares])
where.set(xlabel="exit after so many numbers", ylabel="of the new rows, %")
CascadeDisplay(cascade.curve(logits[:, new], labels[new], from_logits=True), certificate=cascade.certificate).plot(cost)
plt.show()
