"""Helper processes that read, check or draw images: how they begin, and what is said when one dies.

Ctrl-C reaches them too; they leave it to the process that started them. No torch here.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from airnet_cli.errors import DataError


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
