"""Softmax cross-entropy summed over prefixes: the losses of MRL and MRL-E."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matryoshka import _checks
from matryoshka._array import beside_jax, length, namespace
from matryoshka._hooks.formula import Options, Problem
from matryoshka._typing import Array, Head, Namespace
from matryoshka.losses._heads import Logits, SeparateHeads, TiedHead
from matryoshka.losses._reduce import evaluate, evaluate_with_grad, flatten_rows, formula_for
from matryoshka.losses._targets import row_labels
from matryoshka.nesting import Nesting, NestingLike, as_nesting

__all__ = [
    "MRLEGradients",
    "MRLGradients",
    "mrl_cross_entropy",
    "mrl_cross_entropy_with_grad",
    "mrl_e_cross_entropy",
    "mrl_e_cross_entropy_with_grad",
    "mrl_logits_cross_entropy",
]


class MRLGradients(NamedTuple):
    """Gradients of `mrl_cross_entropy`.

    Attributes
    ----------
    embeddings : array (..., dim)
        Gradient in the embeddings.
    heads : tuple of (array (c, m), array (c,) or None)
        Gradient in the weight and the bias of each prefix.
    """

    embeddings: Array
    heads: tuple[Head, ...]


class MRLEGradients(NamedTuple):
    """Gradients of `mrl_e_cross_entropy`.

    Attributes
    ----------
    embeddings : array (..., dim)
        Gradient in the embeddings.
    weight : array (c, dim)
        Gradient in the shared weight.
    bias : array (c,) or None
        Gradient in the shared bias.
    """

    embeddings: Array
    weight: Array
    bias: Array | None


def mrl_cross_entropy(
    embeddings: Array,
    heads: Sequence[Head],
    labels: Array,
    /,
    *,
    nesting: NestingLike,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Array | None = None,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> Any:
    """Sum the cross-entropy of every prefix, each classified by a linear head of its own (MRL).

    Parameters
    ----------
    embeddings : array (..., dim), floating
        Embeddings as wide as the nesting; leading axes (batch, tokens) are rows.
    heads : sequence of (weight, bias)
        For each prefix m a weight (n_classes, m) and a bias (n_classes,) or None.
    labels : integer array (...), or floating array (..., n_classes)
        Class of each row, within [0, n_classes) or `ignore_index`; or a distribution over classes for each row (mixup,
        distillation), which gets no gradient. Values are checked where they can be read on the host. On a device and
        under tracing, where a check would wait, a label out of range, or a distribution that does not sum to one, makes
        the loss of its row, and any sum that the row enters, NaN.
    nesting : Nesting or sequence of int
        Widths and importances c_m of the prefixes.
    label_smoothing : float, default 0.0
        Share of the target spread evenly over all classes, within [0, 1].
    ignore_index : int, optional
        Rows with this label do not count. Distributions have no such label: give their rows weight 0.
    sample_weight : array (...), floating, optional
        Weight of each row. NumPy weights must be finite and not negative; elsewhere, a weight that is not finite makes
        the loss of its row NaN.
    reduction : {"mean", "sum", "none"}
        The mean is sum(w * loss) / sum(w) over the rows that count, 0 if none does; "none" gives w * loss of each row.
    return_parts : bool, default False
        Also return the loss of each prefix, not weighted by importance.
    row_block : int, optional
        Rows computed at a time; by default as many as fit their logits into about 130 MB, within [16, 512].
    xp : namespace, optional
        Array namespace to use instead of the one of the arguments.

    Returns
    -------
    array () or, with reduction "none", (...)
        sum_m c_m CE(embeddings[..., :m] @ W_m.T + b_m, labels), in the dtype of `embeddings`, float32 for half
        precision.
    array (G,) or (G, ...), if `return_parts`
        The loss of each prefix, for logging: it has no gradient.

    Raises
    ------
    TypeError
        Arguments of several array libraries or dtypes; labels that are neither integers nor distributions.
    ValueError
        Shapes that do not fit the nesting or each other; several devices; options out of range.

    Notes
    -----
    Equation 1 of Kusupati et al. (2022). PyTorch and JAX get the gradient in closed form: if one is needed, it is
    computed block by block in the forward pass, and is all that is kept for the backward pass. Gradients are of first
    order only. Half-precision products are formed in their own dtype (under PyTorch's autocast, in that of autocast),
    sums in float32. Multiply-adds per row: sum(dims) * n_classes forward, twice that backward.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import mrl_cross_entropy
    >>> rng = np.random.default_rng(0)
    >>> heads = [(rng.normal(size=(5, m)), None) for m in (2, 4)]
    >>> total, parts = mrl_cross_entropy(
    ...     rng.normal(size=(3, 4)), heads, np.array([0, 4, 2]), nesting=(2, 4), return_parts=True
    ... )
    >>> total.shape, parts.shape
    ((), (2,))
    """
    options = Options.of(label_smoothing, ignore_index, reduction, return_parts, row_block)
    problem = _of_heads(embeddings, heads, labels, sample_weight, nesting, options, xp, tied=False)
    return evaluate(problem, options)


def mrl_cross_entropy_with_grad(
    embeddings: Array,
    heads: Sequence[Head],
    labels: Array,
    /,
    *,
    nesting: NestingLike,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Array | None = None,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> tuple[Any, MRLGradients]:
    """Return `mrl_cross_entropy` with its gradients, for libraries without automatic differentiation.

    Parameters
    ----------
    embeddings, heads, labels, nesting, label_smoothing, ignore_index, sample_weight, return_parts, row_block, xp
        As for `mrl_cross_entropy`.
    reduction : {"mean", "sum"}
        As there, except "none", which has no single gradient.

    Returns
    -------
    loss : array (), or (array (), array (G,)) if `return_parts`
        As of `mrl_cross_entropy`.
    gradients : MRLGradients
        Shapes and dtypes of the arguments.

    Raises
    ------
    TypeError, ValueError
        As `mrl_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import mrl_cross_entropy_with_grad
    >>> heads = [(np.zeros((5, m)), None) for m in (2, 4)]
    >>> loss, gradients = mrl_cross_entropy_with_grad(np.ones((3, 4)), heads, np.array([0, 4, 2]), nesting=(2, 4))
    >>> round(float(loss), 4), gradients.heads[1][0].shape
    (3.2189, (5, 4))
    """
    options = Options.of(label_smoothing, ignore_index, reduction, return_parts, row_block)
    problem = _of_heads(embeddings, heads, labels, sample_weight, nesting, options, xp, tied=False)
    loss, (d_embeddings,), flat = evaluate_with_grad(problem, options)
    d_heads = tuple(zip(flat[::2], flat[1::2], strict=True))
    return loss, MRLGradients(problem.formula.xp.reshape(d_embeddings, embeddings.shape), d_heads)


def mrl_e_cross_entropy(
    embeddings: Array,
    weight: Array,
    bias: Array | None,
    labels: Array,
    /,
    *,
    nesting: NestingLike,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Array | None = None,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> Any:
    """Sum the cross-entropy of every prefix, all classified by prefixes of one linear head (MRL-E).

    Parameters
    ----------
    embeddings : array (..., dim), floating
        Embeddings as wide as the nesting; leading axes (batch, tokens) are rows.
    weight : array (n_classes, dim)
        The classifier; prefix m is classified by its first m columns.
    bias : array (n_classes,) or None
        Shared by all prefixes, as in the released code.
    labels : integer array (...), or floating array (..., n_classes)
        Class of each row, or the share of each class, as for `mrl_cross_entropy`.
    nesting, label_smoothing, ignore_index, sample_weight, reduction, return_parts, row_block, xp
        As for `mrl_cross_entropy`.

    Returns
    -------
    array () or, with reduction "none", (...)
        sum_m c_m CE(embeddings[..., :m] @ weight[:, :m].T + bias, labels), in the dtype of `embeddings`, float32 for
        half precision.
    array (G,) or (G, ...), if `return_parts`
        The loss of each prefix, for logging: it has no gradient.

    Raises
    ------
    TypeError, ValueError
        As `mrl_cross_entropy`.

    Notes
    -----
    Section 3 of Kusupati et al. (2022), "MRL-E". The logits of a prefix are those of the prefix before plus one block
    product, and the gradients, too, need each block only once. So all prefixes together cost the multiply-adds of one
    full-width head: dim * n_classes per row forward, and twice that backward. For gradients and dtypes see
    `mrl_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import mrl_e_cross_entropy
    >>> loss = mrl_e_cross_entropy(np.ones((3, 4)), np.zeros((5, 4)), None, np.array([0, 4, 2]), nesting=(2, 4))
    >>> round(float(loss / (2 * np.log(5))), 6)
    1.0
    """
    options = Options.of(label_smoothing, ignore_index, reduction, return_parts, row_block)
    problem = _of_heads(embeddings, (weight, bias), labels, sample_weight, nesting, options, xp, tied=True)
    return evaluate(problem, options)


def mrl_e_cross_entropy_with_grad(
    embeddings: Array,
    weight: Array,
    bias: Array | None,
    labels: Array,
    /,
    *,
    nesting: NestingLike,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Array | None = None,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> tuple[Any, MRLEGradients]:
    """Return `mrl_e_cross_entropy` with its gradients, for libraries without automatic differentiation.

    Parameters
    ----------
    embeddings, weight, bias, labels
        As for `mrl_e_cross_entropy`.
    nesting, label_smoothing, ignore_index, sample_weight, return_parts, row_block, xp
        As for `mrl_cross_entropy`.
    reduction : {"mean", "sum"}
        As for `mrl_cross_entropy`, except "none", which has no single gradient.

    Returns
    -------
    loss : array (), or (array (), array (G,)) if `return_parts`
        As of `mrl_e_cross_entropy`.
    gradients : MRLEGradients
        Shapes and dtypes of the arguments.

    Raises
    ------
    TypeError, ValueError
        As `mrl_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import mrl_e_cross_entropy_with_grad
    >>> loss, gradients = mrl_e_cross_entropy_with_grad(
    ...     np.ones((3, 4)), np.zeros((5, 4)), np.zeros(5), np.array([0, 4, 2]), nesting=(2, 4)
    ... )
    >>> gradients.weight.shape, gradients.bias.shape
    ((5, 4), (5,))
    """
    options = Options.of(label_smoothing, ignore_index, reduction, return_parts, row_block)
    problem = _of_heads(embeddings, (weight, bias), labels, sample_weight, nesting, options, xp, tied=True)
    loss, (d_embeddings,), d_head = evaluate_with_grad(problem, options)
    return loss, MRLEGradients(problem.formula.xp.reshape(d_embeddings, embeddings.shape), *d_head)


def mrl_logits_cross_entropy(
    logits: Sequence[Array] | Array,
    labels: Array,
    /,
    *,
    nesting: NestingLike,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Array | None = None,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> Any:
    """Sum the cross-entropy of every prefix, given the logits of each.

    Parameters
    ----------
    logits : sequence of G arrays (..., n_classes), or one array (G, ..., n_classes)
        Logits of each prefix, floating.
    labels : integer array (...), or floating array (..., n_classes)
        Class of each row, or the share of each class, as for `mrl_cross_entropy`.
    nesting, label_smoothing, ignore_index, sample_weight, reduction, return_parts, row_block, xp
        As for `mrl_cross_entropy`; of the nesting, only the number of prefixes and their importances matter.

    Returns
    -------
    array () or, with reduction "none", (...)
        sum_m c_m CE(logits_m, labels), in the dtype of the logits, float32 for half precision.
    array (G,) or (G, ...), if `return_parts`
        The loss of each prefix, for logging: it has no gradient.

    Raises
    ------
    TypeError, ValueError
        As `mrl_cross_entropy`.

    Notes
    -----
    From embeddings and heads, `mrl_cross_entropy` and `mrl_e_cross_entropy` compute the same number without keeping
    the logits of all prefixes, and for a tied head with a fraction of the multiply-adds.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import mrl_logits_cross_entropy
    >>> mrl_logits_cross_entropy(np.zeros((2, 3, 5)), np.array([0, 4, 2]), nesting=(2, 4), reduction="none").shape
    (3,)
    """
    options = Options.of(label_smoothing, ignore_index, reduction, return_parts, row_block)
    problem = _of_logits(logits, labels, sample_weight, as_nesting(nesting), options, xp)
    return evaluate(problem, options)


def _of_heads(
    embeddings: Array,
    heads: Any,
    labels: Array,
    sample_weight: Array | None,
    nesting: NestingLike,
    options: Options,
    xp: Namespace | None,
    *,
    tied: bool,
) -> Problem:
    """Check embeddings and their linear heads: a pair (weight, bias) for each prefix, or if `tied` one pair for all."""
    nesting = as_nesting(nesting)
    pairs = (heads,) if tied else _checks.heads(heads, len(nesting))
    names = ("weight", "bias") if tied else [f"heads[{g}][{i}]" for g in range(len(nesting)) for i in range(2)]
    embeddings, pairs, labels, sample_weight = beside_jax(embeddings, pairs, labels, sample_weight, xp=xp)
    parameters = tuple(array for pair in pairs for array in pair)
    named = list(zip(names, parameters, strict=True))
    weights, biases = named[::2], named[1::2]
    required = [("embeddings", embeddings), *weights]
    xp = namespace(*required, ("labels", labels), optional=[*biases, ("sample_weight", sample_weight)], xp=xp)
    n_classes = _checks.n_classes(parameters[0], names[0])
    for (name, weight), m in zip(weights, nesting.dims[-len(pairs) :], strict=True):
        _checks.shape(weight, name, (n_classes, m), "(n_classes, width of the prefix)")
    for name, bias in biases:
        _checks.bias(bias, name, n_classes)
    kind = TiedHead if tied else SeparateHeads
    formula = formula_for(kind, [*required, *biases], nesting, options.label_smoothing, xp)
    _checks.width(embeddings, "embeddings", nesting.dim)
    axes = tuple(embeddings.shape[:-1])
    given = row_labels(
        labels, sample_weight, options.ignore_index, like=embeddings, axes=axes, n_classes=n_classes, xp=xp
    )
    axes = tuple(length(embeddings, axis, xp) for axis in range(len(axes)))
    return Problem(formula, (flatten_rows(embeddings, xp),), *given, parameters, options.row_block, axes)


def _of_logits(
    logits: Any, labels: Array, sample_weight: Array | None, nesting: Nesting, options: Options, xp: Namespace | None
) -> Problem:
    logits, labels, sample_weight = beside_jax(logits, labels, sample_weight, xp=xp)
    stacked = not isinstance(logits, list | tuple)
    named = [("logits", logits)] if stacked else [(f"logits[{g}]", z) for g, z in enumerate(logits)]
    if not stacked:
        _checks.one_per_prefix(named, "logits", len(nesting))
    xp = namespace(*named, ("labels", labels), optional=[("sample_weight", sample_weight)], xp=xp)
    _checks.same_dtype(xp, *named)
    name, first = named[0]
    n_classes = _checks.n_classes(first, name, axis=-1)
    axes = tuple(first.shape[stacked:-1])
    if stacked:
        _checks.min_ndim(first, name, 2, "(G, ..., n_classes)")
        _checks.one_per_prefix(range(first.shape[0]), name, len(nesting))
        rows = (xp.permute_dims(xp.reshape(first, (len(nesting), -1, n_classes)), (1, 0, 2)),)
    else:
        for name, z in named:
            _checks.shape(z, name, (*axes, n_classes), "that of `logits[0]`")
        rows = tuple(flatten_rows(z, xp) for z in logits)
    given = row_labels(labels, sample_weight, options.ignore_index, like=first, axes=axes, n_classes=n_classes, xp=xp)
    axes = tuple(length(first, axis, xp) for axis in range(stacked, stacked + len(axes)))
    return Problem(Logits(nesting, xp, options.label_smoothing), rows, *given, (), options.row_block, axes)
