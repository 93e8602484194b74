"""NumPy's products while a search shares its rows among threads."""

import os
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_info

HOLD_BLAS = """
import threading
import numpy
from threadpoolctl import threadpool_info
from airnet_cli.core.retrieval.threads import blas_in_one_thread

def threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

def search(is_held, may_end):
    with blas_in_one_thread() as threads_before:
        assert threads_before == 2
        is_held.set()
        assert may_end.wait(60)

found = [threads()]
for _ in range(2):  # the main thread first, then another beside it, which is the last to end
    is_held, may_end = threading.Event(), threading.Event()
    other = threading.Thread(target=search, args=(is_held, may_end))
    with blas_in_one_thread():
        other.start()
        assert is_held.wait(60)
        found.append(threads())
    found.append(threads())
    may_end.set()
    other.join()
    found.append(threads())
other = threading.Thread(target=lambda: search(threading.Event(), may_end))
other.start()
other.join()
print(*found, threads())
"""


@pytest.mark.skipif(
    not any(pool["user_api"] == "blas" for pool in threadpool_info()),
    reason="NumPy's library for products is none that can be told (Accelerate)",
)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="OpenBLAS has no more threads than cores")
def test_products_stay_in_one_thread_until_the_last_block_ends():
    """Blocks of two threads that overlap, as two searches do, give back what was before, and can do
    so again: threadpoolctl hears no other thread while the one that told it first lives.
    """
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}  # `make test` gives one
    done = subprocess.run(
        [sys.executable, "-c", HOLD_BLAS],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout == "[2] [1] [1] [2] [1] [1] [2] [2]\n"
