"""Metrics of predicted classes."""

from __future__ import annotations

from collections.abc import Sequence

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, as_indices, count_true, is_array, namespace, row_blocks
from matryoshka._typing import Array, Namespace
from matryoshka.metrics.ranking import _check_within, precision_at_k, relevance

__all__ = ["nearest_class_mean_accuracy", "nearest_neighbor_accuracy", "oracle_accuracy", "superclass_accuracy"]


def nearest_neighbor_accuracy(ids: Array, corpus_labels: Array, query_labels: Array, /) -> float:
    """Return the share of queries whose nearest neighbour has their label: 1-NN accuracy.

    Parameters
    ----------
    ids : array (n, 1 or wider), integer
        Rows of the corpus found for each query, best first; only the first counts, and -1 is wrong.
    corpus_labels : array (n_corpus,), integer
        Label of each row of the corpus.
    query_labels : array (n,), integer
        Label of each query.

    Returns
    -------
    float
        Within [0, 1].

    Notes
    -----
    Table 2 of the paper, from exact L2 search on unit vectors with the training images as the corpus. It is
    `precision_at_k` of `relevance` with k = 1.

    Examples
    --------
    >>> import numpy as np
    >>> nearest_neighbor_accuracy(np.array([[2], [0]]), np.array([7, 7, 5]), np.array([7, 7]))
    0.5
    """
    return precision_at_k(relevance(ids, corpus_labels, query_labels), 1)


def nearest_class_mean_accuracy(embeddings: Array, labels: Array, queries: Array, query_labels: Array, /) -> float:
    """Return the share of queries whose nearest class mean is that of their class.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        Embeddings from which the class means are formed, as they are; `truncate` them first.
    labels : array (n,), integer
        Class of each embedding, any integers.
    queries : array (n_queries, dim), floating
        Embeddings to classify, of the dtype of `embeddings`.
    query_labels : array (n_queries,), integer
        Their classes; one that `labels` does not hold is never predicted.

    Returns
    -------
    float
        Within [0, 1].

    Raises
    ------
    TypeError, ValueError
        The arguments are not as described, or rows hold NaN or infinity.

    Notes
    -----
    The few-shot classifier of the paper (Table 15). Distances are Euclidean, to the means as they are, which are not
    normalised; ties go to the lowest label. They are formed from inner products of the differences from the mean of the
    class means, so that an offset that all rows share costs no digits. Work, in row blocks: n · dim · n_classes
    multiply-adds for the means, and n_queries · dim · n_classes for the answers.

    Examples
    --------
    >>> import numpy as np
    >>> rows, classes = np.array([[0.0, 1.0], [0.0, 3.0], [5.0, 0.0]]), np.array([4, 4, 9])
    >>> nearest_class_mean_accuracy(rows, classes, np.array([[1.0, 1.0], [4.0, 1.0]]), np.array([4, 4]))
    0.5
    """
    xp = namespace(("embeddings", embeddings), ("labels", labels), ("queries", queries), ("query_labels", query_labels))
    _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
    _checks.same_dtype(xp, ("embeddings", embeddings), ("queries", queries))
    _checks.not_empty(embeddings, "embeddings")
    _checks.labels(labels, "labels", embeddings.shape[:1], xp)
    _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
    _checks.not_empty(queries, "queries")
    _checks.shape(queries, "queries", (queries.shape[0], embeddings.shape[1]), "(n_queries, dim)")
    _checks.labels(query_labels, "query_labels", queries.shape[:1], xp)
    _checks.finite_rows(embeddings, "embeddings", xp)
    _checks.finite_rows(queries, "queries", xp)
    labels, query_labels = as_indices(labels, xp), as_indices(query_labels, xp)
    classes = xp.unique_values(labels)
    means = _class_means(embeddings, labels, classes, xp)
    origin = xp.mean(means, axis=0)  # far from it, squares would lose their digits
    means -= origin
    half_norms = xp.sum(means * means, axis=1) / 2
    hits = 0
    for block in row_blocks(queries.shape[0], _ROW_BLOCK):
        rows = xp.astype(queries[block, :], means.dtype, copy=False) - origin
        nearest = xp.argmax(rows @ means.T - half_norms, axis=1)
        hits += count_true(xp.take(classes, nearest, axis=0) == query_labels[block], xp)
    return float(hits / queries.shape[0])


def oracle_accuracy(predictions: Array | Sequence[Array], labels: Array, /) -> float:
    """Return the share of rows that at least one prefix classifies correctly: the ceiling of every cascade.

    Parameters
    ----------
    predictions : array (G, n) or sequence of G arrays (n,), integer
        Predicted class of each row at each prefix; -1 stands for no answer and is never correct.
    labels : array (n,), integer
        True classes.

    Returns
    -------
    float
        Within [0, 1].

    Notes
    -----
    Tables 22 and 23 of the paper.

    Examples
    --------
    >>> import numpy as np
    >>> oracle_accuracy(np.array([[3, 1, 0], [3, 2, 0]]), np.array([3, 2, 1]))
    0.6666666666666666
    """
    prefixes: Array = predictions
    if is_array(prefixes):
        namespace(("predictions", prefixes))
        _checks.ndim(prefixes, "predictions", 2, "(G, n)")
        prefixes = [prefixes[i, :] for i in range(prefixes.shape[0])]
    elif not isinstance(prefixes, list | tuple):
        msg = f"`predictions` must be an array (G, n) or G arrays (n,), got {_checks.describe(prefixes)}; pass these."
        raise TypeError(msg)
    if not len(prefixes):
        msg = "`predictions` must hold at least one prefix, got none; pass an array (G, n) or G arrays (n,)."
        raise ValueError(msg)
    xp = namespace(*((f"predictions[{i}]", prefix) for i, prefix in enumerate(prefixes)), ("labels", labels))
    _checks.ndim(labels, "labels", 1, "(n,)")
    _checks.not_empty(labels, "labels")
    _checks.labels(labels, "labels", labels.shape, xp)
    correct = xp.zeros_like(labels, dtype=xp.bool)
    for i, prefix in enumerate(prefixes):
        _checks.labels(prefix, f"predictions[{i}]", labels.shape, xp)
        correct = correct | ((prefix == labels) & (prefix >= 0))
    return float(count_true(correct, xp) / labels.shape[0])


def superclass_accuracy(predictions: Array, labels: Array, superclasses: Array, /) -> float:
    """Return the share of rows whose predicted class lies in the superclass of their true one.

    Parameters
    ----------
    predictions : array (n,), integer
        Predicted classes; -1 stands for no answer and is never correct.
    labels : array (n,), integer
        True classes.
    superclasses : array (n_classes,), integer
        Superclass of each class. Give classes without one a common superclass, as the paper does (its 31st).

    Returns
    -------
    float
        Within [0, 1].

    Raises
    ------
    ValueError
        Shapes do not fit, or classes lie outside the map.

    Notes
    -----
    Table 25 of the paper: predictions are mapped to superclasses; nothing is trained again.

    Examples
    --------
    >>> import numpy as np
    >>> superclass_accuracy(np.array([0, 1, 2]), np.array([1, 2, 2]), np.array([5, 5, 8]))
    0.6666666666666666
    """
    xp = namespace(("predictions", predictions), ("labels", labels), ("superclasses", superclasses))
    _checks.ndim(superclasses, "superclasses", 1, "(n_classes,)")
    _checks.not_empty(superclasses, "superclasses")
    _checks.labels(superclasses, "superclasses", superclasses.shape, xp)
    _checks.ndim(labels, "labels", 1, "(n,)")
    _checks.labels(labels, "labels", labels.shape, xp)
    _checks.labels(predictions, "predictions", labels.shape, xp)
    labels, predictions, superclasses = (as_indices(array, xp) for array in (labels, predictions, superclasses))
    _check_within(labels, "labels", xp, minimum=0, stop=superclasses.shape[0])
    _check_within(predictions, "predictions", xp, minimum=-1, stop=superclasses.shape[0])
    return nearest_neighbor_accuracy(predictions[:, None], superclasses, xp.take(superclasses, labels, axis=0))


_ROW_BLOCK = 4096


def _class_means(embeddings: Array, labels: Array, classes: Array, xp: Namespace) -> Array:
    """Average the rows of each class, block by block through one-hot products."""
    dtype = accumulator_dtype(embeddings, xp)
    sums: Array = 0.0
    counts: Array = 0.0
    for block in row_blocks(embeddings.shape[0], _ROW_BLOCK):
        rows = xp.astype(embeddings[block, :], dtype, copy=False)
        members = xp.astype(classes[:, None] == labels[block], dtype)
        sums, counts = sums + members @ rows, counts + xp.sum(members, axis=1)
    return sums / counts[:, None]
