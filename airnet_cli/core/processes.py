"""Helper processes that read, check or draw images: how they begin, and what is said when one dies.

Ctrl-C reaches them too; they leave it to the process that started them. One may also do what is not
trusted to end well: `Apart`. No torch here.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import ParamSpec, Self, TypeVar

from airnet_cli.errors import DataError

P = ParamSpec("P")
R = TypeVar("R")

MOST_BYTES = 2 * 2**30
"""What a process that works apart may write to."""


def begin() -> None:
    """Begin a helper process of a pool: deaf to Ctrl-C, and gone when its parent is.

    A pool's processes would otherwise outlive a parent that was killed, waiting for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def leave_with_it() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_it, daemon=True).start()


@contextlib.contextmanager
def naming_the_dead(advice: str) -> Iterator[None]:
    """Turn what comes of the death of a helper process into one line that ends with `advice`.

    Raises:
        DataError: a process of a pool, or of torch's loader, died while the block ran.
    """
    try:
        yield
    # The last two are met before the system tells of the death.
    except (RuntimeError, EOFError, ConnectionRefusedError, ConnectionResetError) as error:
        is_bug = isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error)
        if is_bug and not isinstance(error, BrokenProcessPool):
            raise
        # torch tells of a death twice, the second time from a signal's handler, wherever we are.
        with contextlib.suppress(RuntimeError):
            time.sleep(SECONDS_OF_SIGNALS)
        raise DataError(
            "a process that works on images died, of too little memory as a rule; " + advice
        ) from None


SECONDS_OF_SIGNALS = 0.2


class Apart:
    """Calls functions in a process of their own, with bounded memory, that may crash.

    For libraries in C that read files of strangers. The process starts with the first call and
    ends with the block. Functions stand at the top of a module; arguments and results are pickled.
    """

    def __init__(self, said: str) -> None:
        """`said` is the error's line where the process dies."""
        self._said = said
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Nothing starts yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What `function` returns or raises.

        Raises:
            DataError: its process died; the next call has a new one.
        """
        if self._pool is None:
            # spawn: a fork of a process that has threads may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin_bounded)
        try:
            return self._pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            self.__exit__()
            raise DataError(self._said) from None


def _begin_bounded() -> None:
    begin()
    with contextlib.suppress(ImportError, ValueError, OSError):  # systems that know no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
