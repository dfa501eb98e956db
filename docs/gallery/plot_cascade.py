"""
A cascade on a classifier that is trained already
=================================================

A classifier is at hand, and nobody wants to train it again. Most rows can nevertheless be answered from a few numbers,
if these come first: a rotation of what the last layer reads puts them there, and a cascade decides row by row whether
they are enough. What it decides is certified, without labels: with 90 % probability it contradicts the classifier on at
most 3 % of new rows.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale

from matryoshka import Cascade, Rotation
from matryoshka.cascade import CascadeDisplay

images, labels = load_digits(return_X_y=True)
images = scale(images)
train, held_out, new = np.array_split(np.random.default_rng(0).permutation(len(labels)), 3)

# %%
# The classifier stands for any that ends in a linear layer: it was trained plainly, and nothing below changes it.

classifier = MLPClassifier((256, 64), random_state=0).fit(images[train], labels[train])
(first, second, weight), (first_bias, second_bias, bias) = classifier.coefs_, classifier.intercepts_
embeddings = np.maximum(np.maximum(images @ first + first_bias, 0) @ second + second_bias, 0)  # (rows, 64)

# %%
# Around their mean, embeddings and weights of the linear layer are rotated alike: its answers stay as they were.

mean = embeddings[train].mean(axis=0)
rotation = Rotation.fit(embeddings[train] - mean)
embeddings, weight, bias = rotation.apply(embeddings - mean), rotation.apply(weight.T), bias + mean @ weight
print("as before:", np.mean((embeddings @ weight.T + bias).argmax(1) == classifier.predict(images)))
dims = (2, 4, 8, 16, 32, 64)
logits = np.stack([embeddings[:, :m] @ weight[:, :m].T + bias for m in dims])

# %%
# Certified on rows that trained nothing, of which no labels are needed. The certificate says what holds and how sure
# that is. The labels of new rows then show what became of it.

cascade = Cascade.certify(logits[:, held_out], nesting=dims, from_logits=True, max_disagreement=0.03)
print(cascade.certificate)
found = cascade.evaluate(logits[:, new], labels[new], from_logits=True)
print(found)

# %%
# To use it, take the embeddings and the one linear layer. Each row gets its answer and how many numbers that took.

answers, exit_dims = cascade.classifier((weight, bias))(embeddings[new])
print(answers[:5], exit_dims[:5])

# %%
# Left: after how many numbers rows are answered. Right: what the cascade reaches and pays, stopped at each width at the
# latest, beside prefixes that are as wide for every row. The line is what the certificate leaves. The cascade pays a
# tenth of the full width. The first 8 numbers alone would do for these digits, too, and pay an eighth; but that is seen
# from the labels of new rows, and nobody promised it.

figure, (where, cost) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
where.bar([str(dim) for dim in dims], [100 * share for share in found.exit_shares])
where.set(xlabel="numbers used, of 64", ylabel="new rows answered after so many (%)")
curve = cascade.curve(logits[:, new], labels[new], from_logits=True)
CascadeDisplay(curve, certificate=cascade.certificate).plot(cost)
plt.show()
