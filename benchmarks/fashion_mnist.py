"""A small Keras classifier of Fashion-MNIST with nested embeddings beside the same classifier with a plain head.

`python -m benchmarks.fashion_mnist` trains both with `fit`, prints the test accuracy of every prefix and of the plain
head, saves the nested model, and loads it again in a fresh process, which must give the same logits. The data comes
from `keras.datasets`, which downloads it once to ~/.keras; the backend is that of KERAS_BACKEND.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from matryoshka.keras import MRLCrossEntropy, MRLHead, PrefixAccuracy

DIMS = (4, 8, 16, 32, 64)
_AGAIN = """
import sys
import keras, numpy as np, matryoshka.keras
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


def images() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return training and test images (n, 784) in [0, 1], and their classes."""
    train, test = keras.datasets.fashion_mnist.load_data()
    return tuple((x.reshape(-1, 784).astype("float32") / 255, y.astype("int32")) for x, y in (train, test))


def network(head: Any) -> Any:
    """Return an encoder to 64 numbers with a head on top."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(64, activation="relu"),
            head,
        ]
    )


def main() -> None:
    """Train, compare, save, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    epochs = parser.parse_args().epochs
    (x, y), test = images()

    keras.utils.set_random_seed(0)
    plain = network(keras.layers.Dense(10))
    plain.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    plain.fit(x, y, batch_size=256, epochs=epochs, verbose=0)
    baseline = plain.evaluate(*test, verbose=0, return_dict=True)["accuracy"]

    keras.utils.set_random_seed(0)
    nested = network(MRLHead(DIMS, num_classes=10))
    nested.compile("adam", MRLCrossEntropy(DIMS), metrics=[PrefixAccuracy(DIMS)])
    nested.fit(x, y, batch_size=256, epochs=epochs, verbose=0)
    found = nested.evaluate(*test, verbose=0, return_dict=True)

    print(f"Fashion-MNIST, {epochs} epochs, Keras {keras.__version__} on {keras.backend.backend()}")
    print(f"plain head at {DIMS[-1]}: {baseline:.4f}")
    for m in DIMS:
        print(f"prefix of {m:2}:      {found[f'accuracy_{m}']:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        model, rows, logits = (str(Path(folder, name)) for name in ("model.keras", "rows.npy", "logits.npy"))
        nested.save(model)
        np.save(rows, test[0])
        subprocess.run([sys.executable, "-c", _AGAIN, model, rows, logits], check=True)
        difference = np.abs(np.load(logits) - nested.predict(test[0], verbose=0)).max()
    print(f"largest difference of a logit after saving and loading in a fresh process: {difference:.1e}")


if __name__ == "__main__":
    main()
