"""What an audit finds at one width."""

from __future__ import annotations

from typing import NamedTuple

from matryoshka.audit._rule import GAIN, KEPT, LEVEL, WORTH


class AuditRow(NamedTuple):
    """What an audit found at one width. Shares lie within [0, 1].

    Attributes
    ----------
    dim : int
        The width.
    energy : float
        Share of the squared length of the rows that is in the prefix; without any order, dim / full width.
    kept : float
        Share of the nearest neighbours at full width that the prefix keeps, mean over queries.
    kept_low, kept_high : float
        Its 95 % bootstrap interval over queries.
    random : float
        The same share for random columns, mean over the random orders.
    random_low, random_high : float
        The same share for the worst and the best of the random orders.
    last : float
        The same share for the last columns.
    pca : float
        The same share for the leading principal directions of the audited rows: optimistic, unlike `rotated`.
    worth : float
        How many random columns keep as much, per column of the prefix.
    p_value : float
        Probability of so large a lead over random columns, at any width, if the columns have no order.
    nearest_neighbor_accuracy, nearest_class_mean_accuracy : float or None
        Accuracies of the prefix, where labels were given.
    rotated : float or None
        Share of the neighbours that a prefix keeps after a `Rotation` fitted on other rows; None if there are too few
        of these.
    gain : float or None
        How much more that is than what the prefix keeps without a rotation, on the same rows.
    gain_low, gain_high : float or None
        Its 95 % bootstrap interval over queries.
    rotated_nearest_neighbor_accuracy : float or None
        Accuracy of the prefix after that rotation, among the rows of `rotated`, where labels were given. At full width
        a rotation changes nothing: there it is the accuracy of these rows as they are.
    """

    dim: int
    energy: float
    kept: float
    kept_low: float
    kept_high: float
    random: float
    random_low: float
    random_high: float
    last: float
    pca: float
    worth: float
    p_value: float
    nearest_neighbor_accuracy: float | None = None
    nearest_class_mean_accuracy: float | None = None
    rotated: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    rotated_nearest_neighbor_accuracy: float | None = None

    @property
    def beats_random(self) -> bool:
        """Tell whether the prefix passes the first two parts of the rule."""
        return self.p_value <= LEVEL and self.worth >= WORTH

    @property
    def passes(self) -> bool:
        """Tell whether the prefix passes all three parts of the rule."""
        return self.beats_random and self.kept_low >= KEPT

    @property
    def rotation_helps(self) -> bool:
        """Tell whether a rotation surely keeps more at this width, and by enough to matter."""
        return self.gain is not None and self.gain_low is not None and self.gain_low > 0 and self.gain >= GAIN
