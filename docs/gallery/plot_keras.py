"""
Keras: watch every prefix during fit
====================================

`matryoshka.keras.MRLHead` takes the place of the last ``Dense`` layer, and two metrics log the accuracy and the loss of
each prefix, epoch by epoch: where the curve of a width lies on that of the next, the wider one can be left out.
"""

import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from matryoshka.keras import MRLCrossEntropy, MRLHead, PrefixAccuracy, PrefixLoss

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16

dims = (2, 4, 8, 16, 32)
model = keras.Sequential(
    [
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(32),
        MRLHead(dims, num_classes=10, tied=True),
    ]
)
model.compile(keras.optimizers.Adam(0.002), MRLCrossEntropy(dims), metrics=[PrefixAccuracy(dims), PrefixLoss(dims)])
logs = model.fit(
    images[::2], labels[::2], validation_data=(images[1::2], labels[1::2]), epochs=20, batch_size=64, verbose=0
).history
print({dim: round(logs[f"val_accuracy_{dim}"][-1], 3) for dim in dims})

# %%
# The same logs go to TensorBoard and to every other callback. Here 8 columns do nearly what 32 do, and 2 go on learning
# long after these have learnt.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for dim in dims:
    axes.plot(range(1, 21), [100 * value for value in logs[f"val_accuracy_{dim}"]], label=f"{dim} columns")
axes.set(xlabel="epoch", ylabel="held-out digits right, %", xticks=range(0, 21, 5))
axes.legend(loc="lower right")
plt.show()
