"""Worker processes, which read, check or draw images: their start and their death. No torch."""

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

SECONDS_OF_SIGNALS = 0.2


def start_worker() -> None:
    """Start a worker of a pool: it ignores Ctrl-C, and ends when its parent does.

    Without this, the workers of a killed parent would wait for work forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def reporting_dead_workers(advice: str) -> Iterator[None]:
    """Turn the errors that follow the death of a worker into one line that ends with `advice`.

    Raises:
        DataError: a worker of a pool, or of torch's loader, died while the block ran.
    """
    try:
        yield
    # The last two can come before the system reports the death.
    except (RuntimeError, EOFError, ConnectionRefusedError, ConnectionResetError) as error:
        is_bug = isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error)
        if is_bug and not isinstance(error, BrokenProcessPool):
            raise
        # torch reports a death twice, the second time from a signal handler, at any moment.
        with contextlib.suppress(RuntimeError):
            time.sleep(SECONDS_OF_SIGNALS)
        raise DataError(
            "a process that works on images died, usually because memory ran out; " + advice
        ) from None
