"""Matryoshka representation learning: train, decide, retrieve and measure with nested embeddings.

One embedding is trained so that every prefix of it is a good embedding (Kusupati et al., NeurIPS 2022).
"""

from matryoshka import costs, metrics
from matryoshka.cascade import Cascade, CascadeEvaluation
from matryoshka.embeddings import truncate
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Corpus, Funnel

__version__ = "0.1.0"

__all__ = ["Corpus", "Funnel", "Nesting", "costs", "metrics", "truncate"]
