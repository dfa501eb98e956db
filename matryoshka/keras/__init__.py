"""Keras layers, losses and metrics for nested embeddings, on the TensorFlow, JAX and PyTorch backends.

The mathematics is that of `matryoshka.losses`. `MRLHead` returns the logits of all prefixes on an axis of their own,
(batch, G, num_classes), on which `MRLCrossEntropy`, `PrefixAccuracy` and `PrefixLoss` work in `compile` and `fit`.
Called with labels, the head adds its loss itself, straight from embeddings and weights.

All of it can be saved, and takes unknown batch sizes, masks, sample weights, mixed precision and `jit_compile`. Class
ids stay integers, and may come as (batch, 1); labels of a floating dtype are distributions (batch, num_classes). A
nesting or an option outside its range is an error (TypeError, ValueError) when the object is built. Functions of
`matryoshka` take tensors of the active backend with ``xp=matryoshka.keras.xp``.
"""

from matryoshka.keras._base import xp
from matryoshka.keras._contrastive import InfoNCE
from matryoshka.keras._head import MRLHead
from matryoshka.keras._losses import MRLCrossEntropy, NestedLoss
from matryoshka.keras._metrics import PrefixAccuracy, PrefixLoss

__all__ = ["InfoNCE", "MRLCrossEntropy", "MRLHead", "NestedLoss", "PrefixAccuracy", "PrefixLoss", "xp"]
