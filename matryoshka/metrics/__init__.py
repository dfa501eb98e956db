"""How good lists of neighbours and predictions are: from ids and labels to one number.

Ids and labels are integers of any array library. The result is a Python float, so every metric waits for the device.
The id -1, with which a search pads its lists, is never relevant and never a hit. An id that occurs twice in a list
counts at its first place only.

Notes
-----
The definitions are those of Kusupati et al. (2022), with two departures from the released code. That code divides
recall by 1300, whatever the number of relevant items; here it is divided by that number. It keeps labels as float16,
in which integers above 2048 merge (4,202 classes become 3,099); here labels are integers.

A query without any relevant item has no recall. If a metric is given `n_relevant` or `ideal`, such queries are left
out of the mean; otherwise they count 0.
"""

from matryoshka.metrics.classification import (
    nearest_class_mean_accuracy,
    nearest_neighbor_accuracy,
    oracle_accuracy,
    superclass_accuracy,
)
from matryoshka.metrics.ranking import (
    count_relevant,
    hit_rate_at_k,
    label_recall_at_k,
    mean_average_precision,
    mean_reciprocal_rank,
    ndcg_at_k,
    overlap_at_k,
    precision_at_k,
    relevance,
)

__all__ = [
    "count_relevant",
    "hit_rate_at_k",
    "label_recall_at_k",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "nearest_class_mean_accuracy",
    "nearest_neighbor_accuracy",
    "oracle_accuracy",
    "overlap_at_k",
    "precision_at_k",
    "relevance",
    "superclass_accuracy",
]
