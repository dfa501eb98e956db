"""costs: every count of the paper, and the counts as executed against loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryoshka import Nesting, costs

PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("paper_retrieval.json").read_text())
SETS = ("imagenet_1k", "imagenet_4k")
WITHIN_ROUNDING = 0.00501


@pytest.mark.parametrize("name", SETS)
def test_single_shots_of_the_paper(name: str) -> None:
    data = PAPER[name]
    assert len(data["single_shot"]["rows"]) == 9
    for dim, mflops in data["single_shot"]["rows"]:
        count = costs.search(data["n"], dim) + costs.rerank(costs.SHORTLIST, dim)
        assert abs(count / 1e6 - mflops) < WITHIN_ROUNDING


@pytest.mark.parametrize("name", SETS)
def test_adaptive_retrieval_of_the_paper(name: str) -> None:
    data = PAPER[name]
    assert len(data["adaptive"]["rows"]) == 45
    for search_dim, rerank_dim, mflops in data["adaptive"]["rows"]:
        count = costs.search(data["n"], search_dim) + costs.rerank(PAPER["shortlist"], rerank_dim)
        assert abs(count / 1e6 - mflops) < WITHIN_ROUNDING
        if search_dim < rerank_dim:
            assert costs.funnel(data["n"], (search_dim, rerank_dim), (PAPER["shortlist"],)) == count


def test_the_whole_numbers_of_the_authors() -> None:
    data = PAPER["imagenet_1k"]
    counts = [
        costs.search(data["n"], search_dim) + costs.rerank(200, rerank_dim)
        for search_dim, rerank_dim, _ in data["adaptive"]["rows"]
    ]
    assert counts == data["exact_multiply_adds"]["rows"]


@pytest.mark.parametrize("name", SETS)
def test_funnels_of_the_paper(name: str) -> None:
    data = PAPER[name]
    assert len(data["funnels"]["rows"]) in (2, 3)
    for dims, keep, mflops in data["funnels"]["rows"]:
        assert abs(costs.funnel(data["n"], dims, keep) / 1e6 - mflops) < WITHIN_ROUNDING


def test_headline_numbers_of_the_paper() -> None:
    full = costs.search(1_281_167, 2048)
    assert costs.rerank(200, 2048) == 409_600
    assert round(full / 1e9, 1) == 2.6
    assert round(costs.search(4_202_000, 2048) / 1e9, 1) == 8.6
    assert costs.RESNET50_FORWARD == 4e9
    assert round(100 * full / (full + costs.RESNET50_FORWARD)) == 40
    # Table 20 gives 10.2 and about 10.6 "GB" of 1024 * 10^6 bytes.
    assert int(costs.index_bytes(1_281_167, 2048) / 1024e5) / 10 == 10.2
    assert round(costs.hnsw_index_bytes(1_281_167, 2048) / 1024e6, 1) == 10.6


def executed_by_counting(n: int, dims: tuple[int, ...], keep: tuple[int, ...]) -> int:
    """Multiply column by column and count, never twice for one candidate and column."""
    done = np.zeros((n, dims[-1]), dtype=bool)
    multiplied = 0
    for stage, dim in enumerate(dims):
        candidates = n if stage == 0 else keep[stage - 1]
        for row in range(min(n, candidates)):
            for column in range(dim):
                multiplied += not done[row, column]
                done[row, column] = True
    return multiplied


@pytest.mark.parametrize(
    ("n", "dims", "keep"), [(20, (2, 3, 7), (9, 4)), (5, (1, 4, 6), (9, 3)), (6, (4,), ()), (3, (2, 5), (3,))]
)
def test_a_funnel_as_executed_multiplies_nothing_twice(n: int, dims: tuple[int, ...], keep: tuple[int, ...]) -> None:
    assert costs.funnel(n, dims, keep, executed=True) == executed_by_counting(n, dims, keep)


def test_a_list_longer_than_the_corpus_counts_the_corpus() -> None:
    assert costs.funnel(5, (2, 8), (200,)) == 5 * 2 + 5 * 8
    assert costs.funnel(5, (2, 8), (200,), executed=True) == 5 * 8


def test_one_stage_is_an_exact_search() -> None:
    assert costs.funnel(7, (12,), ()) == costs.funnel(7, (12,), (), executed=True) == costs.search(7, 12) == 84


def test_bytes_follow_the_multiply_adds() -> None:
    assert costs.search_bytes(10, 3) == 120
    assert costs.search_bytes(10, 3, itemsize=2) == 60
    assert costs.rerank_bytes(4, 8, after=3, itemsize=2) == 40
    assert costs.funnel_bytes(10, (2, 8), (3,)) == 4 * (20 + 24)
    assert costs.funnel_bytes(10, (2, 8), (3,), executed=True, itemsize=2) == 2 * (20 + 18)
    assert costs.rerank_bytes(4, 8) == 128
    assert costs.hnsw(1024, 16) == 160.0
    assert math.isclose(costs.hnsw_bytes(1024, 16), 10 * (64 + 4))
    assert math.isclose(costs.hnsw_bytes(1024, 16, itemsize=2), 10 * (32 + 4))


def test_codes_are_counted_in_words_of_64_columns() -> None:
    assert [costs.search_bytes(10, dim, code="bits") for dim in (1, 64, 65, 128, 500)] == [80, 80, 160, 160, 640]
    assert costs.index_bytes(10, 65, code="bits") == costs.search_bytes(10, 65, code="bits", itemsize=2) == 160
    assert costs.funnel(10, (4, 4, 8), (5, 3), code="bits") == 5 * 4 + 3 * 8
    assert costs.funnel(10, (4, 4, 8), (50, 3), code="bits", executed=True) == 10 * 4 + 3 * 4
    assert costs.funnel_bytes(10, (4, 4, 8), (5, 3), code="bits", itemsize=2) == 2 * (20 + 24) + 80
    assert costs.funnel_bytes(10, iter((4, 8)), (5,), code="bits", executed=True) == 4 * 40 + 80  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`code` must be one of 'float', 'bits', got 'int8'"):
        costs.index_bytes(10, 8, code="int8")
    with pytest.raises(ValueError, match="`dims` must be positive and strictly increasing"):
        costs.funnel(10, (4, 4), (5,))


def test_one_store_serves_what_took_one_database_per_width() -> None:
    nesting = Nesting((2, 4, 8))
    assert costs.separate_indexes_bytes(10, nesting, itemsize=2) == 10 * 2 * (2 + 4 + 8)
    assert costs.separate_indexes_bytes(10, (8,)) == costs.index_bytes(10, 8) == 320
    assert costs.hnsw_index_bytes(10, 8, m=4) == 320 + 10 * 8 * 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_head_parameters_are_the_sizes_of_the_arrays(tied: bool, bias: bool) -> None:
    nesting, n_classes = Nesting((3, 4, 9)), 5
    heads = [np.zeros((n_classes, dim + bias)) for dim in ((9,) if tied else (3, 4, 9))]
    assert costs.head_parameters(nesting, n_classes, tied=tied, bias=bias) == sum(head.size for head in heads)


def test_heads_are_separate_and_have_a_bias_unless_told_otherwise() -> None:
    assert costs.head_parameters((3, 4, 9), 5) == 5 * (3 + 4 + 9 + 3)


def test_tied_heads_multiply_as_one_full_head() -> None:
    assert costs.head((3, 4, 9), 5) == 5 * 16
    assert costs.head((3, 4, 9), 5, tied=True) == costs.head((9,), 5) == 45


def test_numpy_integers_do_not_overflow() -> None:
    count = costs.search(np.int32(4_202_000), np.int32(2048))
    assert (type(count), count) == (int, 8_605_696_000)


@pytest.mark.parametrize("bad", [0, -3])
def test_counts_below_one_are_refused(bad: int) -> None:
    for call in (
        lambda: costs.search(bad, 8),
        lambda: costs.search(8, bad),
        lambda: costs.rerank(bad, 8),
        lambda: costs.hnsw(bad, 8),
        lambda: costs.search_bytes(8, 8, itemsize=bad),
        lambda: costs.hnsw_index_bytes(8, 8, m=bad),
        lambda: costs.head((8,), bad),
    ):
        with pytest.raises(ValueError, match=r"` must be an integer >= 1, got"):
            call()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="`n` must be an integer, got float 3.5"):
        costs.search(3.5, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`after` must be an integer in \[0, 7\], got 8"):
        costs.rerank(3, 8, after=8)
    with pytest.raises(ValueError, match="`dims` must be positive and strictly increasing"):
        costs.funnel(10, (8, 8), (3,))
    with pytest.raises(ValueError, match="`keep` must hold one count for every width but the last, 1, got 2"):
        costs.funnel(10, (4, 8), (3, 2))
    with pytest.raises(ValueError, match="`keep` must never grow"):
        costs.funnel(10, (2, 4, 8), (3, 4))
    with pytest.raises(ValueError, match=r"`keep\[0\]` must be an integer >= 1, got 0"):
        costs.funnel(10, (2, 4), (0,))
    with pytest.raises(TypeError, match="`keep` must be a sequence of integers, got int 3"):
        costs.funnel(10, (2, 4), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`nesting` must be positive"):
        costs.head((8, 4), 3)
