"""Funnel: the plan, its counts against the paper, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryoshka import Funnel

PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("paper_retrieval.json").read_text())
SETS = ("imagenet_1k", "imagenet_4k")


@pytest.mark.parametrize("name", SETS)
def test_multiply_adds_of_the_paper(name: str) -> None:
    data, seen = PAPER[name], 0
    pairs = [((narrow, wide), (200,), count) for narrow, wide, count in data["adaptive"]["rows"] if narrow < wide]
    for dims, keep, mflops in [*pairs, *data["funnels"]["rows"]]:
        assert round(Funnel(dims, keep).multiply_adds(data["n"]) / 1e6, 2) == pytest.approx(mflops, abs=0.0101)
        assert abs(Funnel(dims, keep).multiply_adds(data["n"]) / 1e6 - mflops) < 0.00501
        seen += 1
    assert seen == 36 + len(data["funnels"]["rows"])
    for dim, mflops in data["single_shot"]["rows"]:
        assert abs((Funnel((dim,), ()).multiply_adds(data["n"]) + 200 * dim) / 1e6 - mflops) < 0.00501


def test_counts_and_speedups() -> None:
    plan = Funnel((16, 32, 64, 128, 256, 2048), (200, 100, 50, 25, 10))
    assert plan.multiply_adds(1000) == 16_000 + 6_400 * 4 + 20_480
    assert plan.multiply_adds(1000, executed=True) == 16_000 + 200 * 16 + 100 * 32 + 50 * 64 + 25 * 128 + 10 * 1792
    assert plan.multiply_adds(30) == 480 + 30 * (32 + 64 + 128) + 25 * 256 + 10 * 2048
    assert plan.speedup(1000) == 2_048_000 / 62_080
    assert plan.speedup(1000, executed=True) == 2_048_000 / 46_720
    assert Funnel((2048,), ()).speedup(77) == 1.0


def test_speedup_against_the_width_one_would_else_search() -> None:
    plan = Funnel((16, 64), (10,))
    count = 77 * 16 + 10 * 64
    assert plan.speedup(77) == plan.speedup(77, of=64) == 77 * 64 / count
    assert plan.speedup(77, 2048) == 77 * 2048 / count
    assert plan.speedup(77, of=2048, executed=True) == 77 * 2048 / (77 * 16 + 10 * 48)
    assert Funnel((48,)).speedup(77, of=np.int64(768)) == 16.0
    assert Funnel((48,)).speedup(77, of=24) == 0.5
    with pytest.raises(ValueError, match="`of` must be an integer >= 1, got 0"):
        plan.speedup(77, of=0)
    with pytest.raises(TypeError, match="`of` must be an integer, got float 64.0"):
        plan.speedup(77, of=64.0)  # type: ignore[arg-type]


def test_a_single_width_needs_no_lists() -> None:
    assert Funnel((48,)) == Funnel((48,), ()) == Funnel.from_json(Funnel((48,)).to_json())
    with pytest.raises(ValueError, match="`keep` must hold one count for every width but the last, 1, got 0"):
        Funnel((8, 16))


def test_a_coded_first_stage_multiplies_nothing_and_leaves_no_sums() -> None:
    plan = Funnel((130, 130, 512, 768), (400, 100, 20), code="bits")
    assert plan.multiply_adds(1000) == 400 * 130 + 100 * 512 + 20 * 768
    assert plan.multiply_adds(1000, executed=True) == 400 * 130 + 100 * 382 + 20 * 256
    assert plan.multiply_adds(50) == 50 * 130 + 50 * 512 + 20 * 768
    assert plan.bytes(1000) == 1000 * 3 * 8 + 4 * plan.multiply_adds(1000, executed=True)
    assert plan.bytes(1000, itemsize=2) == 1000 * 3 * 8 + 2 * plan.multiply_adds(1000, executed=True)
    assert plan.speedup(1000) == 768_000 / plan.multiply_adds(1000)
    wider = Funnel((64, 768), (9,), code="bits")
    assert wider.multiply_adds(1000) == wider.multiply_adds(1000, executed=True) == 9 * 768
    alone = Funnel((64,), code="bits")
    assert (alone.multiply_adds(9), alone.bytes(9), alone.speedup(9)) == (0, 72, math.inf)


def test_bytes_are_those_of_what_is_executed() -> None:
    plan = Funnel((16, 32, 2048), (200, 100))
    assert plan.bytes(1000) == 4 * plan.multiply_adds(1000, executed=True) == 4 * (16_000 + 200 * 16 + 100 * 2016)
    assert Funnel((16,)).bytes(1000, itemsize=8) == 128_000
    with pytest.raises(ValueError, match="`itemsize` must be an integer >= 1, got 0"):
        plan.bytes(1000, itemsize=0)


def test_halving_is_the_funnel_of_the_paper() -> None:
    paper = Funnel((16, 32, 64, 128, 256, 2048), (200, 100, 50, 25, 10))
    assert Funnel.halving(2048) == paper
    assert Funnel.halving(2048, smallest=32) == Funnel((32, 64, 128, 256, 512, 2048), paper.keep)


@pytest.mark.parametrize(
    ("arguments", "dims", "keep"),
    [
        ({"dim": 64}, (16, 32, 64), (200, 100)),
        ({"dim": 16}, (16,), ()),
        ({"dim": 100, "smallest": 24, "keep": 40, "last": 10}, (24, 48, 100), (40, 20, 10)[:2]),
        ({"dim": 512, "smallest": 8, "keep": 10}, (8, 512), (10,)),
        ({"dim": 512, "smallest": 8, "keep": 13, "last": 6}, (8, 16, 512), (13, 6)),
        ({"dim": 512, "smallest": 8, "keep": 7, "last": 2}, (8, 16, 512), (7, 2)),
        ({"dim": 512, "smallest": 8, "keep": 9, "last": 2}, (8, 16, 32, 512), (9, 4, 2)),
    ],
)
def test_halving_ends_at_both_limits(arguments: dict[str, int], dims: tuple[int, ...], keep: tuple[int, ...]) -> None:
    assert Funnel.halving(**arguments) == Funnel(dims, keep)


def test_a_funnel_is_a_value() -> None:
    plan = Funnel([8, 16], [5])
    assert plan == Funnel((8, 16), (5,)) == Funnel(np.array([8, 16]), np.array([5]))
    assert plan != Funnel((8, 16), (6,))
    assert len({plan, Funnel((8, 16), (5,))}) == 1
    assert repr(plan) == "Funnel((8, 16), (5,))"
    assert eval(repr(plan)) == plan
    with pytest.raises(AttributeError):
        plan.keep = (1,)  # type: ignore[misc]


def test_the_code_is_part_of_the_value() -> None:
    coded = Funnel((8, 8, 16), (5, 2), code="bits")
    assert coded == Funnel([8, 8, 16], [5, 2], code="bits")
    assert Funnel((8, 16), (5,), code="bits") != Funnel((8, 16), (5,)) == Funnel((8, 16), (5,), code="float")
    assert len({coded, Funnel((8, 8, 16), (5, 2), code="bits")}) == 1
    assert len({Funnel((8, 16), (5,), code="bits"), Funnel((8, 16), (5,))}) == 2
    assert repr(coded) == "Funnel((8, 8, 16), (5, 2), code='bits')"
    assert eval(repr(coded)) == coded


@pytest.mark.parametrize(
    "plan",
    [
        Funnel((3,), ()),
        Funnel((8, 16, 64), (9, 9)),
        Funnel.halving(768, smallest=12),
        Funnel((64,), code="bits"),
        Funnel((64, 64), (5,), code="bits"),
    ],
)
def test_json_round_trip(plan: Funnel, tmp_path: Path) -> None:
    assert Funnel.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "plan.json")
    assert Funnel.load(tmp_path / "plan.json") == plan


def test_json_without_a_code_is_of_a_funnel_that_searches_numbers() -> None:
    plan = Funnel((8, 16), (5,))
    text = '{"kind": "funnel", "version": 1, "dims": [8, 16], "keep": [5], "certificate": null}'
    assert Funnel.from_json(text) == plan
    assert json.loads(plan.to_json()) == json.loads(text)  # which versions that know no code read
    with pytest.raises(ValueError, match="`code` must be one of 'float', 'bits', got 'sharp'"):
        Funnel.from_json(text.replace('"certificate"', '"code": "sharp", "certificate"'))


@pytest.mark.parametrize(
    ("dims", "keep", "error", "message"),
    [
        ((), (), ValueError, "`dims` must hold at least one width"),
        ((16, 8), (5,), ValueError, "`dims` must be positive and strictly increasing"),
        ((8, 8), (5,), ValueError, "strictly increasing"),
        ((8, 16.0), (5,), TypeError, r"`dims\[1\]` must be an integer"),
        ((8, 16), (), ValueError, "`keep` must hold one count for every width but the last, 1, got 0"),
        ((8,), (5,), ValueError, "`keep` must hold one count"),
        ((8, 16, 32), (5, 6), ValueError, r"`keep` must never grow, got \(5, 6\)"),
        ((8, 16), (0,), ValueError, r"`keep\[0\]` must be an integer >= 1, got 0"),
        ((8, 16), (5.0,), TypeError, r"`keep\[0\]` must be an integer"),
        ((8, 16), 5, TypeError, "`keep` must be a sequence of integers"),
    ],
)
def test_bad_plans_are_refused(dims: Any, keep: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Funnel(dims, keep)


def test_bad_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="`code` must be one of 'float', 'bits', got 'int8'; choose one of these"):
        Funnel((8, 16), (5,), code="int8")
    for dims in ((8, 8, 8), (8, 16, 16), (8, 4)):
        with pytest.raises(ValueError, match="`dims` must be positive and strictly increasing"):
            Funnel(dims, (5,) * (len(dims) - 1), code="bits")


def test_bad_halvings_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`smallest` must be an integer in \[1, 8\], got 16"):
        Funnel.halving(8)
    with pytest.raises(ValueError, match=r"`last` must be an integer in \[1, 5\], got 10"):
        Funnel.halving(64, keep=5)
    with pytest.raises(ValueError, match="`n` must be an integer >= 1, got 0"):
        Funnel((8, 16), (5,)).multiply_adds(0)
