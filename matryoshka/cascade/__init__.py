"""Cascades: decide when a short prefix is sure enough to answer alone."""

from matryoshka._promises.certificates import Certificate
from matryoshka.cascade._classifier import CascadeClassifier
from matryoshka.cascade._evaluation import CascadeEvaluation
from matryoshka.cascade._figure import CascadeDisplay
from matryoshka.cascade._monitor import CascadeMonitor
from matryoshka.cascade._oracle import ClassTrends, OracleRouting, class_trends, oracle_routing, smallest_correct_dim
from matryoshka.cascade._policy import Cascade

__all__ = [
    "Cascade",
    "CascadeClassifier",
    "CascadeDisplay",
    "CascadeEvaluation",
    "CascadeMonitor",
    "Certificate",
    "ClassTrends",
    "OracleRouting",
    "class_trends",
    "oracle_routing",
    "smallest_correct_dim",
]
