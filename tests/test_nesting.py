"""Nesting: the ladder, its ways to be built, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from matryoshka import Nesting

PAPER = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def test_the_ladders_of_the_paper() -> None:
    assert Nesting.halving(2048).dims == PAPER
    assert Nesting.halving(384, smallest=8).dims == (12, 24, 48, 96, 192, 384)
    assert Nesting.halving(768, smallest=12).dims == (12, 24, 48, 96, 192, 384, 768)
    assert Nesting.uniform(2048).dims == (8, 212, 416, 620, 824, 1028, 1232, 1436, 1640, 1844, 2048)


def test_odd_widths_round_down() -> None:
    assert Nesting.halving(101, smallest=5).dims == (6, 12, 25, 50, 101)
    assert Nesting.halving(7, smallest=7).dims == (7,)


def test_the_smallest_ladders() -> None:
    assert Nesting.halving(1, smallest=1).dims == (1,)
    assert Nesting.halving(5, smallest=1).dims == (1, 2, 5)
    assert Nesting.uniform(2, smallest=1, count=2).dims == (1, 2)
    assert Nesting.uniform(4, smallest=1, count=4).dims == (1, 2, 3, 4)


def test_a_nesting_is_a_value() -> None:
    nesting = Nesting([8, 16], importance=[2, 1])
    assert nesting == Nesting((8, 16), importance=(2.0, 1.0))
    assert nesting != Nesting((8, 16))
    assert len({nesting, Nesting((8, 16), (2, 1))}) == 1
    assert (nesting.dim, len(nesting), list(nesting)) == (16, 2, [8, 16])
    assert repr(nesting) == "Nesting((8, 16), importance=(2.0, 1.0))"
    assert repr(Nesting((8, 16))) == "Nesting((8, 16))"
    assert eval(repr(nesting)) == nesting
    with pytest.raises(AttributeError):
        nesting.dims = (1,)  # type: ignore[misc]


def test_blocks_cover_every_column_once() -> None:
    columns = np.arange(10)
    assert np.concatenate([columns[block] for block in Nesting((3, 4, 10)).blocks]).tolist() == columns.tolist()


def test_numpy_integers_are_integers() -> None:
    assert Nesting(np.array([4, 8])) == Nesting((4, 8))
    assert all(type(width) is int for width in Nesting(np.array([4, 8])).dims)


@pytest.mark.parametrize("nesting", [Nesting((3,)), Nesting((8, 16), (0.5, 0)), Nesting.uniform(300, count=4)])
def test_json_round_trip(nesting: Nesting) -> None:
    assert Nesting.from_json(nesting.to_json()) == nesting


@pytest.mark.parametrize(
    ("dims", "error", "message"),
    [
        ((), ValueError, "`dims` must hold at least one width"),
        ((16, 8), ValueError, r"`dims` must be positive and strictly increasing, got \(16, 8\)"),
        ((8, 8), ValueError, "strictly increasing"),
        ((0, 8), ValueError, "positive"),
        ((8, 16.0), TypeError, r"`dims\[1\]` must be an integer, got float 16.0"),
        ((True, 8), TypeError, r"`dims\[0\]` must be an integer"),
        ("8,16", TypeError, "`dims` must be a sequence of integers"),
        (8, TypeError, "`dims` must be a sequence of integers"),
    ],
)
def test_bad_dims_are_refused(dims: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Nesting(dims)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        ((1, -1), ValueError, r"`importance\[1\]` must be finite and in \[0, inf\], got -1.0"),
        ((1, math.nan), ValueError, r"`importance\[1\]`"),
        ((1, math.inf), ValueError, r"`importance\[1\]`"),
        ((0, 0), ValueError, "at least one weight above 0"),
        ((1,), ValueError, "one weight per prefix, 2, got 1"),
        (("a", 1), TypeError, r"`importance\[0\]` must be a number"),
        (1.0, TypeError, "`importance` must be a sequence of numbers"),
    ],
)
def test_bad_importance_is_refused(importance: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Nesting((8, 16), importance)  # type: ignore[arg-type]


def test_bad_ladders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`smallest` must be an integer in \[1, 4\], got 8"):
        Nesting.halving(4)
    with pytest.raises(ValueError, match=r"`smallest` must be an integer in \[1, 4\], got 0"):
        Nesting.halving(4, smallest=0)
    with pytest.raises(ValueError, match="`dim` must be an integer >= 1, got 0"):
        Nesting.halving(0, smallest=1)
    with pytest.raises(ValueError, match="`dim` must be an integer >= 2, got 1"):
        Nesting.uniform(1, smallest=1, count=2)
    with pytest.raises(ValueError, match=r"`smallest` must be an integer in \[1, 7\], got 8"):
        Nesting.uniform(8)
    with pytest.raises(ValueError, match=r"`count` must be an integer in \[2, 3\], got 4"):
        Nesting.uniform(10, smallest=8, count=4)
    with pytest.raises(ValueError, match="`count`"):
        Nesting.uniform(10, smallest=8, count=1)
