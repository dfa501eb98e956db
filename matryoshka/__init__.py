"""Matryoshka representation learning: train, decide, retrieve and measure with nested embeddings.

One embedding is trained so that every prefix of it is a good embedding (Kusupati et al., NeurIPS 2022).
"""

from matryoshka import costs, metrics
from matryoshka.audit import Audit, audit
from matryoshka.cascade import Cascade, CascadeEvaluation
from matryoshka.embeddings import truncate
from matryoshka.losses import (
    info_nce,
    info_nce_with_grad,
    mrl_cross_entropy,
    mrl_cross_entropy_with_grad,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
    mrl_logits_cross_entropy,
    nested_loss,
)
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Corpus, Funnel

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Cascade",
    "CascadeEvaluation",
    "Corpus",
    "Funnel",
    "Nesting",
    "audit",
    "costs",
    "info_nce",
    "info_nce_with_grad",
    "metrics",
    "mrl_cross_entropy",
    "mrl_cross_entropy_with_grad",
    "mrl_e_cross_entropy",
    "mrl_e_cross_entropy_with_grad",
    "mrl_logits_cross_entropy",
    "nested_loss",
    "truncate",
]
