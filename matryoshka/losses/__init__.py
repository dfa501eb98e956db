"""Losses that train every prefix of an embedding at once.

Classification: `mrl_cross_entropy` has a head per prefix, `mrl_e_cross_entropy` one head for all, and
`mrl_logits_cross_entropy` takes logits that exist already. Contrastive training: `info_nce`. Any other: `nested_loss`.
The functions that end in `_with_grad` return gradients too, for libraries without automatic differentiation.
"""

from matryoshka.losses.contrastive import HardNegativeGradients, InfoNCEGradients, info_nce, info_nce_with_grad
from matryoshka.losses.cross_entropy import (
    MRLEGradients,
    MRLGradients,
    mrl_cross_entropy,
    mrl_cross_entropy_with_grad,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
    mrl_logits_cross_entropy,
)
from matryoshka.losses.nested import nested_loss

__all__ = [
    "HardNegativeGradients",
    "InfoNCEGradients",
    "MRLEGradients",
    "MRLGradients",
    "info_nce",
    "info_nce_with_grad",
    "mrl_cross_entropy",
    "mrl_cross_entropy_with_grad",
    "mrl_e_cross_entropy",
    "mrl_e_cross_entropy_with_grad",
    "mrl_logits_cross_entropy",
    "nested_loss",
]
