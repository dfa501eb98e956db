"""
Make a plain classifier nested
==============================

A network was trained plainly, and its embeddings are poor when they are cut. A head that starts as the old classifier
(`matryoshka.torch.MRLHead.from_linear`) is trained on for a few epochs, after a layer that turns the embeddings to
their principal components; the encoder stays as it is.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from matryoshka import Nesting
from matryoshka.torch import MRLHead

torch.manual_seed(0)
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float() / 16
train, test = np.s_[::2], np.s_[1::2]


def fit(loss, parameters, *, epochs, rate):
    """Minimise a loss over batches of the training rows."""
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(images[train])).split(64):
            optimizer.zero_grad()
            loss(images[train][rows], labels[train][rows]).backward()
            optimizer.step()


# %%
# The plain network: an encoder to 64 numbers and a linear classifier.

encoder = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
classifier = torch.nn.Linear(64, 10)
fit(
    lambda x, y: torch.nn.functional.cross_entropy(classifier(encoder(x)), y),
    [*encoder.parameters(), *classifier.parameters()],
    epochs=20,
    rate=2e-3,
)


# %%
# Its prefixes, before. A head made by ``from_linear`` cuts the old classifier, so nothing is lost at full width.

nesting = Nesting((2, 4, 8, 16, 32, 64))


def right(head, embed):
    """Return the share of test images that each prefix gets right."""
    with torch.no_grad():
        return [float((logits.argmax(-1) == labels[test]).float().mean()) for logits in head(embed(images[test]))]


cut = right(MRLHead.from_linear(classifier, nesting), encoder)

# %%
# Principal components as a linear layer, and the classifier turned with them: the answers at full width are the same.

with torch.no_grad():
    embeddings = encoder(images[train])
    mean = embeddings.mean(0)
    directions = torch.linalg.svd(embeddings - mean, full_matrices=False).Vh
    rotation, turned = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
    rotation.weight[:], rotation.bias[:] = directions, -directions @ mean
    turned.weight[:], turned.bias[:] = classifier.weight @ directions.T, classifier(mean)
head = MRLHead.from_linear(turned, nesting, tied=True)
components = right(head, lambda x: rotation(encoder(x)))

# %%
# Tuned: this layer and the head, the encoder untouched.

fit(
    lambda x, y: head(rotation(encoder(x).detach()), y),
    [*rotation.parameters(), *head.parameters()],
    epochs=10,
    rate=2e-3,
)
tuned = right(head, lambda x: rotation(encoder(x)))

# %%
# Most of what was lost comes back with the principal components, without any training. Training on helps where few
# columns are left.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, values in (("the plain network, cut", cut), ("principal components", components), ("these, tuned", tuned)):
    axes.plot(nesting.dims, [100 * value for value in values], "o-", label=name)
axes.set_xscale("log", base=2)
axes.set_xticks(nesting.dims, map(str, nesting.dims))
axes.set(xlabel="columns kept, of 64", ylabel="test digits right, %")
axes.legend()
plt.show()
