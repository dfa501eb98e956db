"""Watch in production whether the promise of a cascade still holds."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from matryoshka import _checks
from matryoshka._array import count_true, namespace, to_numpy
from matryoshka._promises import sequential
from matryoshka._promises.certificates import BOUNDS, Certificate
from matryoshka._typing import Array
from matryoshka._values import JsonValue

_NEEDED = {
    "max_gap": ("full_answers", "labels"),
    "max_error": ("labels",),
    "max_disagreement": ("full_answers",),
}
"""For each bound of a certificate, what the answers of the cascade are compared with."""

_LARGEST_COUNT = 2**53  # floats hold every integer up to here


@dataclass(init=False, repr=False)
class CascadeMonitor(JsonValue):
    """Watch on a sample of the rows in production whether a certified promise still holds.

    Made by `Cascade.monitor`. `update` takes rows as they come; `alarm` becomes and stays True once they show at level
    delta that the promise is broken. It may be read after every row, without end: while the promise holds, it is raised
    at any time with probability at most delta.

    Parameters
    ----------
    promise : {"max_gap", "max_error", "max_disagreement"}
        The bound of the certificate to watch, which says what a failure is.
    bound : float
        The largest rate of failures that was promised, within (0, 1).
    delta : float
        Probability of a false alarm, within (0, 1).
    cascade : int
        CRC-32 of the JSON of the cascade.
    n_rows, n_failures : int, default 0
        Rows seen, and failures among them.
    p_value : float, default 1
        Smallest p-value so far of "the promise holds", within [0, 1]; it may be read at any time.
    stakes : sequence of float, optional
        The state of the test.

    Raises
    ------
    TypeError, ValueError
        The arguments are not a state that a monitor can have.

    Notes
    -----
    The assumption is that a row fails with probability at most the bound, whatever rows came before: draw the sample at
    random from all rows, not only from those that exit early. Rows that went to the full width anyway have no gap and
    no disagreement, so they need not be looked at, but they count, as False.

    An alarm says that the rate is or was too high: because of drift, or because the calibration rows were misleading,
    which has the probability delta of the certificate. Then certify again, on new rows. The test is a game of bets (see
    Ramdas et al., 2023, "Game-theoretic statistics and safe anytime-valid inference"). Part of the capital is staked
    later, so that a long time without failures delays an alarm only a little. Rates from 1.06 times the bound on are
    detected eventually.

    State: ten numbers besides the counts. Cost: about 20 microseconds per call, and half a microsecond per failure.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import Cascade
    >>> rows = np.tile([[0.9, 0.1], [0.1, 0.9]], (500, 1))
    >>> cascade = Cascade.certify([rows, rows], nesting=(8, 16), max_disagreement=0.01)
    >>> monitor = cascade.monitor()
    >>> monitor.update(np.arange(1000) % 200 == 0)
    >>> monitor.alarm
    False
    >>> monitor.update(np.arange(1000) % 25 == 0)
    >>> for part in str(monitor).split("; "):
    ...     print(part)
    P(disagrees with the full width) <= 0.01 has been broken: 45 of 2000 rows failed in all, smallest p = 4e-09
    the alarm, once raised, stays until a new cascade is certified
    >>> CascadeMonitor.from_json(monitor.to_json(), cascade=cascade) == monitor
    True
    """

    _kind: ClassVar[str] = "cascade monitor"

    promise: str
    bound: float
    delta: float
    cascade: int
    n_rows: int
    n_failures: int
    p_value: float
    stakes: tuple[float, ...]

    def __init__(
        self,
        *,
        promise: str,
        bound: float,
        delta: float,
        cascade: int,
        n_rows: int = 0,
        n_failures: int = 0,
        p_value: float = 1.0,
        stakes: Iterable[float] | None = None,
    ) -> None:
        inside: dict[str, Any] = {"minimum": 0.0, "maximum": 1.0, "open_minimum": True, "open_maximum": True}
        self.promise = _checks.choice(promise, "promise", BOUNDS)
        self.bound = _checks.real(bound, "bound", **inside)
        self.delta = _checks.real(delta, "delta", **inside)
        self.cascade = _checks.integer(cascade, "cascade", minimum=0)
        self.n_rows = _checks.integer(n_rows, "n_rows", minimum=0, maximum=_LARGEST_COUNT)
        self.n_failures = _checks.integer(n_failures, "n_failures", minimum=0, maximum=self.n_rows)
        self.p_value = _checks.real(p_value, "p_value", minimum=0.0, maximum=1.0)
        self.stakes = _stakes(stakes)

    @property
    def alarm(self) -> bool:
        """Whether the promise was ever shown to be broken."""
        return self.p_value <= self.delta

    def update(self, failures: Array, /) -> None:
        """Take further rows into account.

        Parameters
        ----------
        failures : array (n,), bool
            Where a sample of rows broke the promise, in order of arrival, as `failures` computes it. How rows are
            divided among calls makes no difference.

        Raises
        ------
        TypeError, ValueError
            The failures are no array of booleans (n,).
        """
        xp = namespace(("failures", failures))
        if not xp.isdtype(failures.dtype, "bool"):
            msg = f"`failures` must hold booleans, got dtype {failures.dtype}; compare answers, or use `failures`."
            raise TypeError(msg)
        _checks.ndim(failures, "failures", 1, "(rows,)")
        failed = to_numpy(failures)
        log_capital, stakes = sequential.play(
            failed, self.bound, n_rows=self.n_rows, n_failures=self.n_failures, stakes=np.asarray(self.stakes)
        )
        self.n_rows += len(failed)
        self.n_failures += int(np.count_nonzero(failed))
        self.p_value = min(self.p_value, math.exp(-log_capital))
        self.stakes = tuple(stakes.tolist())

    def failures(self, answers: Array, full_answers: Array | None = None, labels: Array | None = None, /) -> Array:
        """Tell which rows broke the promise, from answers of the cascade and what they are to be compared with.

        Parameters
        ----------
        answers : array (n,), integer
            The answers of the cascade.
        full_answers : array (n,), integer, optional
            The answers of the full width; not needed for `max_error`.
        labels : array (n,), integer, optional
            The true classes; not needed for `max_disagreement`. Leave out rows without one: -1 is an error. Which rows
            these are must be as random as the sample.

        Returns
        -------
        array (n,), bool
            What `update` takes. Library and device follow `answers`.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described, or one that this promise needs is missing.
        """
        given = {"full_answers": full_answers, "labels": labels}
        for name in _NEEDED[self.promise]:
            if given[name] is None:
                msg = f"`{name}` must be given to watch `{self.promise}`, got None; pass one integer for each row."
                raise ValueError(msg)
        present = [("answers", answers), *((name, array) for name, array in given.items() if array is not None)]
        xp = namespace(*present)
        _checks.ndim(answers, "answers", 1, "(rows,)")
        for name, array in present:
            _checks.labels(array, name, tuple(answers.shape), xp)
        if self.promise == "max_disagreement":
            return answers != full_answers
        if count := count_true(labels < 0, xp):  # type: ignore[operator]
            msg = (
                f"`labels` must be known for every row, got {count} of {answers.shape[0]} below 0; "
                "leave these rows out."
            )
            raise ValueError(msg)
        wrong = answers != labels
        return wrong if self.promise == "max_error" else wrong & (full_answers == labels)

    @classmethod
    def from_json(cls, text: str, *, cascade: JsonValue | None = None) -> Self:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str
            The JSON.
        cascade : Cascade, optional
            The cascade that is watched; a monitor of another one is an error.

        Returns
        -------
        CascadeMonitor
            In the state in which it was written.

        Raises
        ------
        TypeError, ValueError
            `text` is not the JSON of a monitor, or it watched another cascade or promise.
        """
        return super().from_json(text)._of(cascade)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, cascade: JsonValue | None = None) -> Self:
        """Read a monitor from the file that `save` wrote.

        Parameters
        ----------
        path : path
            The JSON file.
        cascade : Cascade, optional
            As for `from_json`.

        Returns
        -------
        CascadeMonitor
            In the state in which it was saved.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        TypeError, ValueError
            The file holds no monitor, or one that watched another cascade or promise.
        """
        return super().load(path)._of(cascade)

    def _of(self, cascade: JsonValue | None) -> Self:
        """Return this monitor, after checking that it is of this cascade, if one is given."""
        if cascade is not None and not isinstance(cascade, JsonValue):
            msg = f"`cascade` must be a Cascade, got {_checks.describe(cascade)}; pass the one that is watched."
            raise TypeError(msg)
        if cascade is not None and _checksum(cascade) != self.cascade:
            msg = (
                f"`cascade` must be the one that the monitor was made for, got another one or another certificate than "
                f"that of {self}; begin anew with its `monitor`."
            )
            raise ValueError(msg)
        return self

    def __str__(self) -> str:
        promise, failed = f"{BOUNDS[self.promise]} <= {self.bound:g}", f"{self.n_failures} of {self.n_rows} rows failed"
        if not self.alarm:
            return f"{promise} stands: {failed}, p = {self.p_value:.3g}"
        stays = "the alarm, once raised, stays until a new cascade is certified"
        return f"{promise} has been broken: {failed} in all, smallest p = {self.p_value:.3g}; {stays}"

    def __repr__(self) -> str:
        return f"<CascadeMonitor: {self}>"


def monitor(cascade: JsonValue, certificate: Certificate | None, promise: str | None, delta: float) -> CascadeMonitor:
    """Return a monitor of one promise of the certificate of a cascade."""
    if certificate is None:
        msg = (
            "`certificate` must be there for a monitor to hold its promise, got a cascade without one; "
            "choose its thresholds with `Cascade.certify`."
        )
        raise ValueError(msg)
    bounds = {name: getattr(certificate, name) for name in BOUNDS if getattr(certificate, name) is not None}
    if promise is None and len(bounds) > 1:
        msg = f"`promise` must be named where a certificate holds several, got None with {', '.join(bounds)}; pass one."
        raise ValueError(msg)
    promise = next(iter(bounds)) if promise is None else _checks.choice(promise, "promise", bounds)
    return CascadeMonitor(promise=promise, bound=bounds[promise], delta=delta, cascade=_checksum(cascade))


def _checksum(cascade: JsonValue) -> int:
    """Return what tells cascades apart; new fields do not change it while they are as before (see `_before`)."""
    return zlib.crc32(cascade.to_json().encode())


def _stakes(values: Iterable[float] | None) -> tuple[float, ...]:
    """Return the state of the test, by default that before the first row."""
    fresh = tuple(sequential.opening().tolist())
    if values is None:
        return fresh
    return _checks.numbers(values, "stakes", len(fresh), "the numbers that `to_json` wrote")
