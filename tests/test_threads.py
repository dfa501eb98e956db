"""The pool of threads: results in order, whatever each item costs; an error leaves no thread at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from matryoshka import _threads


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_threads, "n_threads", lambda: 4)
    _threads._pool.cache_clear()
    yield
    _threads._pool().shutdown()
    _threads._pool.cache_clear()


def test_results_come_in_the_order_of_the_items() -> None:
    barrier = threading.Barrier(4)

    def work(item: int) -> tuple[int, str]:
        if item < 4:  # so that each thread takes one of these
            barrier.wait()
        return item, threading.current_thread().name

    found = _threads.each(work, iter(range(50)))
    assert [item for item, _ in found] == list(range(50))
    assert len({name for _, name in found}) == 4


def test_no_items_and_one_item() -> None:
    assert _threads.each(str, []) == []
    assert _threads.each(lambda _: threading.current_thread(), [0]) == [threading.current_thread()]


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
def test_an_error_is_raised_when_no_thread_works_any_more(fails: int) -> None:
    barrier, failed, at_work = threading.Barrier(4), threading.Event(), set[int]()

    def work(item: int) -> None:
        at_work.add(item)
        barrier.wait()
        if item == fails:
            failed.set()
        else:
            failed.wait()
            sum(range(200_000))
        at_work.remove(item)
        if item == fails:
            raise KeyError(item)

    for _ in range(20):
        with pytest.raises(KeyError, match=str(fails)):
            _threads.each(work, range(4))
        assert at_work == set()
        failed.clear()
