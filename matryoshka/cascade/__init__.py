"""Decide when a short prefix is sure enough to answer alone."""

from matryoshka.cascade._evaluation import CascadeEvaluation
from matryoshka.cascade._policy import Cascade

__all__ = ["Cascade", "CascadeEvaluation"]
