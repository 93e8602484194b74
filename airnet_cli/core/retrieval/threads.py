"""Threads for matrix products that share the rows of a gallery."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # has no types


@contextlib.contextmanager
def blas_in_one_thread() -> Iterator[int]:
    """Compute NumPy's products in the calling thread until the end of the block.

    For work that shares its rows among threads itself: OpenBLAS's own threads wait for the next
    product without sleeping and take the cores from it. The limit holds for the whole process;
    where blocks overlap, in whatever threads, it ends with the last. Nothing changes where NumPy
    uses a library without such a setting (Accelerate).

    Yields the number of threads that NumPy's products have outside of the block.
    """
    with _blas.lock:
        if not _blas.users:
            _in_a_thread(_blas.limit)
        _blas.users += 1
    try:
        yield _blas.threads
    finally:
        with _blas.lock:
            _blas.users -= 1
            if not _blas.users:
                _in_a_thread(_blas.restore)


class _Blas:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.threads = 1
        self._limit: Any = None

    @functools.cached_property
    def _pools(self) -> ThreadpoolController:
        return ThreadpoolController().select(user_api="blas")  # looks through all libraries

    def limit(self) -> None:
        self.threads = max((pool["num_threads"] for pool in self._pools.info()), default=1)
        self._limit = self._pools.limit(limits=1)

    def restore(self) -> None:
        self._limit.restore_original_limits()


_blas = _Blas()


def _in_a_thread(function: Callable[[], None]) -> None:
    # threadpoolctl ignores other threads as long as the one that set a limit lives.
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
