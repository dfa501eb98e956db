"""One pool of threads for the whole process, for loops over blocks of NumPy work.

NumPy releases the interpreter lock in products, comparisons and gathers, so that Python threads run in parallel. Their
number is OMP_NUM_THREADS, which matrix libraries obey too, or else the number of CPUs that this process may use.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def n_threads() -> int:
    """Return how many threads work at once, the calling one included."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply `work` to every item, on all threads, and return the results in order.

    A thread that is done with an item takes the next one, so items may differ in cost. After an error no further item
    is begun, and the error is raised once all threads have stopped.
    """
    items = list(items)
    helpers = min(n_threads(), len(items)) - 1
    if helpers < 1:
        return [work(item) for item in items]
    results: dict[int, Result] = {}
    left = deque(range(len(items)))

    def take_turns() -> None:
        while True:
            try:
                i = left.popleft()
            except IndexError:
                return
            try:
                results[i] = work(items[i])
            except BaseException:
                left.clear()
                raise

    others = [_pool().submit(take_turns) for _ in range(helpers)]
    try:
        take_turns()
    finally:  # a helper that the pool has not come to yet is not waited for
        errors = [other.exception() for other in others if not other.cancel()]
    for error in filter(None, errors):
        raise error
    return [results[i] for i in range(len(items))]


@cache
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # slow to load, and needed by long searches only

    return ThreadPoolExecutor(max(1, n_threads() - 1), thread_name_prefix="matryoshka")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
