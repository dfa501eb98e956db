"""The value `Cascade`: how it is chosen, and what can be done with it; the work is done in the files beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, Unpack, overload

import numpy as np

from matryoshka import _checks
from matryoshka._array import is_array
from matryoshka._promises.certificates import Certificate
from matryoshka._typing import Array, Head, NestedHead
from matryoshka._values import JsonValue
from matryoshka.cascade import _certify, _evaluation, _monitor, _paths, _thresholds
from matryoshka.cascade._classifier import CascadeClassifier
from matryoshka.cascade._confidence import MEASURES, PRECOMPUTED
from matryoshka.cascade._evaluation import CascadeEvaluation
from matryoshka.cascade._monitor import CascadeMonitor
from matryoshka.cascade._outputs import Labelled, Outputs, Prefixes, Scored, outputs_of
from matryoshka.cascade._stages import check_library
from matryoshka.nesting import NestingLike, as_nesting

__all__ = ["Cascade"]


@dataclass(frozen=True, init=False, repr=False)
class Cascade(JsonValue):
    """A rule for when a short prefix of an embedding may answer alone.

    A row starts at the narrowest prefix and exits at the first one whose confidence exceeds its threshold; the last
    prefix answers whatever is left.

    Parameters
    ----------
    dims : sequence of int
        Widths of the prefixes, positive and strictly increasing.
    thresholds : sequence of float
        One for every prefix but the last. A row exits where confidence > threshold, strictly: a threshold of 1 lets no
        row exit, a negative one every row.
    confidence : {"max_probability", "margin", "entropy", "precomputed"}, default "max_probability"
        How sure a prefix is, within [0, 1]: the largest probability; the largest minus the second largest;
        1 - H / log(n_classes) with the entropy H of the probabilities; or numbers that are passed to `predict` and the
        like.
    temperatures : sequence of float, optional
        One per prefix, above 0: confidences are those of softmax(logits / temperature). None leaves probabilities as
        they are. Answers do not depend on temperatures. There are none with precomputed confidences.
    certificate : Certificate, optional
        What `certify` promises for these thresholds.

    Raises
    ------
    TypeError
        A width is no integer, or a threshold or temperature no number.
    ValueError
        The widths do not increase; there is not one threshold for every prefix but the last, or not one temperature per
        prefix; a number is not finite; the confidence is unknown; the certificate is about other thresholds.

    Notes
    -----
    Section 4.2.1 of Kusupati et al. (2022). A cascade is an immutable value: it compares and hashes by what it holds.
    Confidences of half-precision probabilities are formed in float32; a threshold is compared in the dtype of the
    confidence.

    Examples
    --------
    >>> import numpy as np
    >>> cascade = Cascade((8, 16), thresholds=(0.7,))
    >>> short = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> full = np.array([[0.8, 0.2], [0.3, 0.7]])
    >>> cascade.predict([short, full])
    (array([0, 1]), array([ 8, 16]))
    >>> Cascade.from_json(cascade.to_json()) == cascade
    True
    """

    _kind: ClassVar[str] = "cascade"
    _before: ClassVar[dict[str, Any]] = {"joint_delta": None}

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]
    confidence: str
    temperatures: tuple[float, ...] | None
    certificate: Certificate | None

    def __init__(
        self,
        dims: Iterable[int],
        thresholds: Iterable[float],
        *,
        confidence: str = "max_probability",
        temperatures: Iterable[float] | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        widths = _checks.dims(dims)
        limits = _checks.numbers(thresholds, "thresholds", len(widths) - 1, "one number for every prefix but the last")
        confidence = _checks.choice(confidence, "confidence", (*MEASURES, PRECOMPUTED))
        if temperatures is not None:
            positive = {"minimum": 0.0, "open_minimum": True}
            rule = "one number for every prefix"
            temperatures = _checks.numbers(temperatures, "temperatures", len(widths), rule, **positive)
            if confidence == PRECOMPUTED:
                msg = "`temperatures` must be None with precomputed confidences, got numbers; leave them out."
                raise ValueError(msg)
        Certificate.check(certificate, thresholds=limits)
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "thresholds", limits)
        object.__setattr__(self, "confidence", confidence)
        object.__setattr__(self, "temperatures", temperatures)
        object.__setattr__(self, "certificate", certificate)

    @classmethod
    def calibrate(
        cls,
        probabilities: Prefixes,
        labels: Array,
        /,
        *,
        nesting: NestingLike,
        grid: Iterable[float] | None = None,
        variant: str = "code",
        confidence: str | Array = "max_probability",
        temperature: bool = False,
        from_logits: bool = False,
    ) -> Cascade:
        """Choose thresholds by the published rule, which is greedy and promises nothing for new rows.

        For each pair of neighbouring prefixes it takes the smallest threshold with the best accuracy of "the shorter
        prefix if its confidence exceeds the threshold, else the longer one", on all calibration rows.

        Parameters
        ----------
        probabilities : array (G, n, c), or a sequence of G arrays (n, c), floating
            Probabilities of c classes from each prefix, narrowest first.
        labels : array (n,), integer
            The true classes, of the same library and device.
        nesting : Nesting or sequence of int
            The G widths.
        grid : iterable of float, optional
            Thresholds to choose from, in any order. By default 100 evenly spaced values, from 0.1 to 1 in the variant
            of the code and from 0 to 1 in that of the paper.
        variant : {"code", "paper"}, default "code"
            The released code accepts confidence > t, the text of the paper confidence >= t. Since a cascade compares
            strictly, the latter is stored as the next smaller number in the dtype of the confidences. The paper also
            lists a threshold for the widest prefix, which has no effect and is left out.
        confidence : str or array (G, n), default "max_probability"
            A measure as for `Cascade`, by default that of the paper; or how sure each prefix is of each row by a
            measure of your own, floating, within [0, 1]. Then the cascade has confidence "precomputed": its other
            methods take such arrays too, except `classify`, which cannot compute them and raises an error.
        temperature : bool, default False
            First scale the probabilities of each prefix by a temperature, which is fitted on the same rows by the
            likelihood of the labels. The paper does not.
        from_logits : bool, default False
            `probabilities` are logits.

        Returns
        -------
        Cascade
            With one threshold for every prefix but the last.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described; rows are no probabilities; no prefix gets any row right.

        Warns
        -----
        UserWarning
            There are fewer rows than classes.

        Notes
        -----
        Cost: one pass over the probabilities, then n log(size of the grid) per prefix; a temperature takes about ten
        more passes. Ties go to the smallest threshold.

        Examples
        --------
        >>> import numpy as np
        >>> short = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        >>> full = np.array([[0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
        >>> Cascade.calibrate([short, full], np.array([0, 1, 1]), nesting=(8, 16), grid=(0.5, 0.7, 0.9))
        Cascade((8, 16), (0.7,))
        """
        _checks.choice(variant, "variant", _thresholds.VARIANTS)
        choices = _thresholds.as_grid(grid, variant)
        dims, temperature = as_nesting(nesting).dims, _checks.flag(temperature, "temperature")
        outputs = Labelled(probabilities, labels, dims, from_logits=from_logits, confidence=confidence)
        outputs.check_calibration()
        temperatures = outputs.fit_temperatures(np.arange(outputs.n_rows)) if temperature else None
        thresholds = _thresholds.published(outputs.score(temperatures), choices, variant)
        return cls(dims, thresholds, confidence=outputs.measure, temperatures=temperatures)

    @overload
    @classmethod
    def certify(
        cls,
        probabilities: Prefixes,
        labels: Array | None = None,
        /,
        *,
        groups: None = None,
        **options: Unpack[_certify.Options],
    ) -> Cascade: ...

    @overload
    @classmethod
    def certify(
        cls,
        probabilities: Prefixes,
        labels: Array | None = None,
        /,
        *,
        groups: Array,
        **options: Unpack[_certify.Options],
    ) -> dict[int, Cascade]: ...

    @classmethod
    def certify(
        cls,
        probabilities: Prefixes,
        labels: Array | None = None,
        /,
        *,
        nesting: NestingLike,
        max_gap: float | None = None,
        max_error: float | None = None,
        max_disagreement: float | None = None,
        delta: float = 0.1,
        groups: Array | None = None,
        path: str = "auto",
        cost: str = "expected_dim",
        confidence: str | Array = "margin",
        temperature: bool = False,
        seed: int = 0,
        from_logits: bool = False,
    ) -> Cascade | dict[int, Cascade]:
        """Choose the cheapest thresholds whose promise about new rows passes an exact test.

        The promise, kept with probability at least 1 - delta over the calibration rows: for a new row,
        P(answered wrongly, but the full width is right) is at most `max_gap`; P(answered wrongly) is at most
        `max_error`; P(answered otherwise than by the full width) is at most `max_disagreement`, which takes no labels.
        All bounds that are given hold together.

        Parameters
        ----------
        probabilities, nesting, from_logits
            As for `calibrate`.
        labels : array (n,), integer, optional
            The true classes, of the same library and device; -1 for a row without a label, which counts against the gap
            wherever the cascade contradicts the full width. Without labels, only `max_disagreement` can be bounded.
        max_gap : float, optional
            Bound on P(cascade wrong and full width right), within (0, 1). With labels and without any bound, 0.01.
        max_error : float, optional
            Bound on P(cascade wrong), within (0, 1); every row must have a label.
        max_disagreement : float, optional
            Bound on P(cascade answers otherwise than the full width), within (0, 1). It bounds the gap too: an answer
            that is wrong where the full width is right disagrees with it.
        delta : float, default 0.1
            Probability, within (0, 1), that the calibration rows are misleading and the promise does not hold.
        groups : array (n,), integer, optional
            The group of each row, such as its language, of the same library and device. The promise then holds for the
            rows of each group, and for all groups at once.
        path : {"auto", "shared", "tapered", "fitted"}, default "auto"
            The policies to test. "shared": one threshold for all prefixes; "tapered": thresholds that fall as prefixes
            widen, in fixed proportions; both are tested on all rows. "fitted": thresholds (and temperatures) chosen on
            a random half of the rows, and tested on the other half. For a gap, rows without a label are used for
            fitting first, and only for fitting if there are many with one. "auto" is the fitted path if there are many
            rows, 2,000 and ten times the rows needed (2,300 for 0.01 and 0.1), or if `temperature` is True; else the
            tapered path.
        cost : {"expected_dim", "cumulative_dim"}, default "expected_dim"
            The cost that a fitted path lowers: that of a tied head (MRL-E), or of separate heads (MRL).
        confidence : str or array (G, n), default "margin"
            As for `calibrate`. An answer changes when the second class overtakes the first, which the margin predicts
            better than the largest probability does.
        temperature : bool, default False
            Fit temperatures, on the rows that fit the path; without labels, to the answers of the full width. (Its own
            temperature has no effect, and then ends at the lowest value, 0.01.)
        seed : int, default 0
            Seed of the split for the fitted path.

        Returns
        -------
        Cascade, or dict of int to Cascade
            With a `certificate`. If no policy passed the test, every threshold is 1, which sends all rows to the full
            width, and the certificate says how many rows are needed at least. With groups, a cascade for each group
            that has rows, whose certificate states delta and the share of the group in it. Where
            `certificate.chosen` is None, all rows go to the full width.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described, as for `calibrate`; a bound needs labels and there are none; or not even
            the full width keeps `max_error`.

        Warns
        -----
        UserWarning
            There are fewer rows than classes.

        Notes
        -----
        The assumption is that calibration rows and new rows are exchangeable, that which rows have labels is random,
        and that the rows were not used to train the network or to choose anything else here: hold them out. The promise
        is about the average row, or the average row of each group, not about each class.

        Learn then Test (Angelopoulos et al., 2021): the policies lie on a path that does not depend on the tested rows.
        From the safest policy down, "the promise is broken" is tested at level delta, with the exact binomial p-value
        of the failures seen, until a policy fails. Along the path no row exits later, so the last policy that passed is
        the cheapest one, in multiply-adds too. A path is fitted to disagreements with the full width, or to errors if
        `max_error` is the smallest bound.

        A row without a label is counted as a failure at least as often as it is one, so the test remains valid. Groups
        share delta evenly (Bonferroni): P(the promise of any group is broken) is at most the sum over the groups.
        Groups with too few rows to pass even without a failure take no share.

        Examples
        --------
        >>> import numpy as np
        >>> labels = np.arange(1000) % 2
        >>> rows = np.where(labels[:, None] == np.arange(2), 0.9, 0.1)
        >>> cascade = Cascade.certify([rows, rows], labels, nesting=(8, 16))
        >>> cascade.evaluate([rows, rows], labels).expected_dim
        8.0
        >>> print(cascade.certificate.path, cascade.certificate.rows_needed)
        tapered 230
        >>> Cascade.certify([rows, rows], nesting=(8, 16), max_disagreement=0.01).thresholds  # no labels
        (0.0,)
        >>> groups = np.repeat([0, 1, 2], [450, 450, 100])
        >>> cascades = Cascade.certify([rows, rows], labels, nesting=(8, 16), groups=groups)
        >>> [group for group, cascade in cascades.items() if cascade.certificate.chosen is None]
        [2]
        """
        bounds = {"max_gap": max_gap, "max_error": max_error, "max_disagreement": max_disagreement}
        promise = _certify.Promise.of(bounds, delta, labelled=labels is not None)
        dims, temperature = as_nesting(nesting).dims, _checks.flag(temperature, "temperature")
        prices = _evaluation.Prices.of(dims, cost)
        search = _certify.Search(dims, prices, path, temperature, _checks.seed(seed))
        search.check()
        options: dict[str, Any] = {"from_logits": from_logits, "confidence": confidence}
        outputs = outputs_of(probabilities, labels, dims, partly=True, **options)
        promise.check_known(outputs.known)
        outputs.check_calibration()

        def on(rows: np.ndarray, promise: _certify.Promise, **group: Any) -> Cascade:
            certificate, temperatures = _certify.certify(promise, search, outputs, rows, **group)
            values = {"confidence": outputs.measure, "temperatures": temperatures, "certificate": certificate}
            return cls(dims, certificate.thresholds, **values)  # type: ignore[arg-type]

        if groups is None:
            return on(np.arange(outputs.n_rows), promise)
        members = outputs.members(groups)
        share = promise.shared_by([len(rows) for rows in members.values()], search)
        joint = promise.delta if len(members) > 1 else None
        return {group: on(rows, share, of=f" in group {group}", joint_delta=joint) for group, rows in members.items()}

    @classmethod
    def frontier(
        cls,
        probabilities: Prefixes,
        labels: Array,
        /,
        *,
        nesting: NestingLike,
        path: str = "fitted",
        cost: str = "expected_dim",
        confidence: str | Array = "max_probability",
        from_logits: bool = False,
    ) -> list[tuple[Cascade, CascadeEvaluation]]:
        """List the cascades of a family that no cheaper one of it beats on these rows: the Pareto frontier.

        Parameters
        ----------
        probabilities, labels, nesting, confidence, from_logits
            As for `calibrate`.
        path : {"fitted", "shared"}, default "fitted"
            The family: thresholds fitted to these rows for a rising weight of the cost, or one threshold for all.
        cost : {"expected_dim", "cumulative_dim"}, default "expected_dim"
            The cost, as for `certify`.

        Returns
        -------
        list of (Cascade, CascadeEvaluation)
            Cheapest first, each more accurate than those before it. The evaluations are optimistic, since they are on
            the rows that chose the thresholds.
        """
        _checks.choice(path, "path", _paths.PATHS)
        dims = as_nesting(nesting).dims
        prices = _evaluation.Prices.of(dims, cost)
        outputs = Labelled(probabilities, labels, dims, from_logits=from_logits, confidence=confidence)
        outputs.check_calibration()
        points = _thresholds.frontier(outputs.score(None), dims, prices, path, cost)
        return [(cls(dims, thresholds, confidence=outputs.measure), evaluation) for thresholds, evaluation in points]

    @classmethod
    def within_budget(
        cls,
        probabilities: Prefixes,
        labels: Array,
        /,
        *,
        nesting: NestingLike,
        budget: float,
        path: str = "fitted",
        cost: str = "expected_dim",
        confidence: str | Array = "max_probability",
        from_logits: bool = False,
    ) -> Cascade:
        """Choose the most accurate cascade whose cost on these rows is within a budget.

        Parameters
        ----------
        probabilities, labels, nesting, path, cost, confidence, from_logits
            As for `frontier`.
        budget : float
            Largest mean cost per row, in dimensions.

        Returns
        -------
        Cascade
            A cascade of the `frontier`.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described, or even the cheapest cascade costs more.
        """
        budget = _checks.real(budget, "budget", minimum=0.0)
        options = {"path": path, "cost": cost, "confidence": confidence, "from_logits": from_logits}
        points = cls.frontier(probabilities, labels, nesting=nesting, **options)  # type: ignore[arg-type]
        cheapest = getattr(points[0][1], cost)
        if budget < cheapest:
            msg = f"`budget` must be at least {cheapest:g}, the cheapest `{cost}`, got {budget:g}; allow more."
            raise ValueError(msg)
        return [cascade for cascade, evaluation in points if getattr(evaluation, cost) <= budget][-1]

    def predict(
        self, probabilities: Prefixes, /, *, confidence: Array | None = None, from_logits: bool = False
    ) -> tuple[Array, Array]:
        """Answer each row from the shortest prefix that is sure enough.

        Parameters
        ----------
        probabilities : array (G, n, c), or a sequence of G arrays (n, c), floating
            Probabilities of c classes from each prefix, narrowest first.
        confidence : array (G, n), floating, optional
            How sure each prefix is of each row, within [0, 1]: required by a cascade with confidence "precomputed", and
            an error with any other.
        from_logits : bool, default False
            `probabilities` are logits.

        Returns
        -------
        labels : array (n,), integer
            The answers; the lowest class wins a tie. Library and device follow `probabilities`.
        exit_dims : array (n,), integer
            The width at which each row exits.

        Raises
        ------
        TypeError, ValueError
            The probabilities are of another kind or shape, or rows are negative or do not sum to one: the message
            names the prefix and counts the rows.
        """
        decider = self._decider(confidence)
        outputs = Outputs(probabilities, self.dims, from_logits=from_logits, confidence=decider)
        return outputs.route(self.thresholds, self.temperatures)

    def classify(self, embeddings: Array, heads: Sequence[Head] | Head | NestedHead, /) -> tuple[Array, Array]:
        """Answer each row from its embedding, computing the logits of a wider prefix only where they are needed.

        Parameters
        ----------
        embeddings : array (n, dim), or (dim,), floating
            Embeddings as wide as the widest prefix, or one; NumPy or PyTorch.
        heads : sequence of G (weight, bias), one (weight, bias), or a head layer
            Separate heads (MRL): weight (c, m) and bias (c,) or None for each width m. A single pair is a tied head
            (MRL-E): weight (c, dim), whose first m columns serve width m, and one bias; its logits are running sums.
            Same library, device and dtype as `embeddings`. An `MRLHead` of `matryoshka.torch` or `matryoshka.keras`
            stands for its pairs (of Keras as NumPy arrays), if its nesting has the widths of the cascade.

        Returns
        -------
        labels : array (n,), or () for one embedding, integer
            The answers, those of `predict` on the softmax of all logits.
        exit_dims : array (n,), or (), integer
            The width at which each row exits.

        Raises
        ------
        TypeError
            The arguments are of another kind, or neither NumPy nor PyTorch arrays; or a head has a layer that does more
            than apply its weight and bias.
        ValueError
            Shapes, devices or widths do not match, or rows hold NaN or infinity; or the cascade has precomputed
            confidences, which do not follow from heads.

        Notes
        -----
        Multiply-adds per row: `expected_dim` * c for a tied head and `cumulative_dim` * c for separate heads, besides a
        pass over the c logits at each width visited. Logits are subject to the rounding of matrix products, so a
        confidence very close to its threshold may fall on the other side than in `predict`; from equal logits, both
        decide alike. At each width, a device is waited for, to learn how many rows are left. No gradient is recorded. A
        row with NaN or infinity in a column that is read goes to the full width, where it is an error on the host, and
        on a device gets the label -1.

        For repeated calls, prepare the heads once with `classifier`.
        """
        if is_array(embeddings):
            check_library(embeddings, "embeddings")
        return CascadeClassifier(self, heads, copy=False)(embeddings)

    def classifier(self, heads: Sequence[Head] | Head | NestedHead, /) -> CascadeClassifier:
        """Prepare heads for repeated calls on one row or many: check them once, and lay them out as they will be read.

        Parameters
        ----------
        heads : sequence of G (weight, bias), one (weight, bias), or a head layer
            As for `classify`.

        Returns
        -------
        CascadeClassifier
            Called with embeddings, it answers as `classify` does.

        Raises
        ------
        TypeError, ValueError
            As of `classify`.

        Notes
        -----
        The weights and biases are copied, so later changes of `heads`, such as another training step, have no effect.
        The copy takes as much memory as the weights.

        Examples
        --------
        >>> import numpy as np
        >>> answer = Cascade((1, 2), (0.7,)).classifier((np.array([[3.0, 0.0], [0.0, 3.0]]), None))
        >>> answer(np.array([[1.0, 0.0], [0.1, 1.0]]))
        (array([0, 1]), array([1, 2]))
        >>> answer(np.array([0.1, 1.0]))
        (array(1), array(2))
        """
        return CascadeClassifier(self, heads, copy=True)

    def evaluate(
        self,
        probabilities: Prefixes,
        labels: Array | None = None,
        /,
        *,
        confidence: Array | None = None,
        from_logits: bool = False,
    ) -> CascadeEvaluation:
        """Measure cost, and accuracy or agreement with the full width.

        Parameters
        ----------
        probabilities, confidence, from_logits
            As for `predict`.
        labels : array (n,), integer, optional
            The true classes. Without them, results that need them are None, and `fixed_dim` goes by the disagreement.

        Returns
        -------
        CascadeEvaluation
            Python numbers; printed, a table. Measure on rows that were not used to choose thresholds.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described.

        Examples
        --------
        >>> import numpy as np
        >>> short = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        >>> full = np.array([[0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
        >>> found = Cascade((8, 16), (0.7,)).evaluate([short, full])
        >>> found.disagreement, found.expected_dim, found.fixed_dim
        (0.0, 10.666666666666666, 16)
        >>> found.speedup(of="fixed")
        1.5
        """
        scored = self._score(probabilities, labels, confidence, from_logits=from_logits)
        return _evaluation.evaluate(scored, self.dims, self.thresholds, labelled=labels is not None)

    def curve(
        self,
        probabilities: Prefixes,
        labels: Array | None = None,
        /,
        *,
        confidence: Array | None = None,
        from_logits: bool = False,
    ) -> list[CascadeEvaluation]:
        """Measure the cascade capped at each width from the second on: the curve of the paper's figure 6.

        Parameters
        ----------
        probabilities, labels, confidence, from_logits
            As for `evaluate`.

        Returns
        -------
        list of CascadeEvaluation
            One per cap, narrowest first; the last one equals `evaluate`. A single prefix has no cap and gives none. At
            every cap, gap and disagreement are against the full width.
        """
        scored = self._score(probabilities, labels, confidence, from_logits=from_logits)
        return [
            _evaluation.evaluate(scored, self.dims[:count], self.thresholds[: count - 1], labelled=labels is not None)
            for count in range(2, len(self.dims) + 1)
        ]

    def monitor(self, *, promise: str | None = None, delta: float = 0.05) -> CascadeMonitor:
        """Watch in production, on a sample of the rows, whether the certified promise still holds.

        Parameters
        ----------
        promise : {"max_gap", "max_error", "max_disagreement"}, optional
            Which bound to watch, required if the certificate holds several. Each monitor watches one.
        delta : float, default 0.05
            Probability, within (0, 1), of ever raising a false alarm.

        Returns
        -------
        CascadeMonitor
            A monitor that has seen no row yet.

        Raises
        ------
        TypeError, ValueError
            The cascade has no certificate, or one without this bound; or `delta` is not within (0, 1).
        """
        return _monitor.monitor(self, self.certificate, promise, delta)

    def _score(
        self, probabilities: Prefixes, labels: Array | None, confidence: Array | None, *, from_logits: bool
    ) -> Scored:
        decider = self._decider(confidence)
        outputs = outputs_of(probabilities, labels, self.dims, from_logits=from_logits, confidence=decider)
        return outputs.score(self.temperatures)

    def _decider(self, confidence: Array | None) -> str | Array:
        """Return what decides: the measure of this cascade, or the array of confidences that it needs instead."""
        needed = self.confidence == PRECOMPUTED
        if not (is_array(confidence) if needed else confidence is None):
            rule = (
                "an array (prefixes, rows) with precomputed confidences" if needed else f"None with {self.confidence}"
            )
            remedy = "pass the numbers" if needed else "leave it out, or calibrate on such numbers"
            msg = f"`confidence` must be {rule}, got {_checks.describe(confidence)}; {remedy}."
            raise ValueError(msg)
        return confidence if needed else self.confidence

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, nesting: NestingLike | None = None) -> Self:
        """Read a cascade from the file that `save` wrote.

        Parameters
        ----------
        path : path
            The JSON file.
        nesting : Nesting or sequence of int, optional
            The widths that the cascade is to be used with; if the file has others, it is an error.

        Returns
        -------
        Cascade
            The cascade that was saved.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file holds no cascade, or one with other widths.
        """
        cascade = super().load(path)
        if nesting is not None and cascade.dims != (dims := as_nesting(nesting).dims):
            msg = (
                f"`{os.fspath(path)}` must hold a cascade for {dims}, got one for {cascade.dims}; "
                "calibrate one on this ladder."
            )
            raise ValueError(msg)
        return cascade

    @classmethod
    def _arguments(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {"certificate": Certificate.from_record(fields["certificate"])}

    def __repr__(self) -> str:
        options = [f"{self.dims}", f"{self.thresholds}"]
        if self.confidence != "max_probability":
            options.append(f"confidence={self.confidence!r}")
        if self.temperatures is not None:
            options.append(f"temperatures={self.temperatures}")
        if self.certificate is not None:
            options.append(f"certificate={self.certificate!r}")
        return f"Cascade({', '.join(options)})"
