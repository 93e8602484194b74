"""Helper processes: one line for each way in which they die, and none outlives its parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from PIL import Image

from airnet_cli.core.inference import embed_batches
from airnet_cli.core.processes import reporting_dead_workers
from airnet_cli.errors import DataError


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 71, 72) exited unexpectedly"),
        BrokenProcessPool("a child process terminated abruptly"),
        EOFError(),
        ConnectionResetError(104, "reset"),
    ],
    ids=["killed", "gone", "pool", "eof", "reset"],
)
def test_a_death_is_one_line(error):
    """Whatever torch and Python make of it."""
    with pytest.raises(DataError) as raised, reporting_dead_workers("do this"):
        raise error
    assert str(raised.value) == (
        "a process that works on images died, usually because memory ran out; do this"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), BrokenPipeError(), ValueError()], ids=repr
)
def test_what_is_no_death_stays_what_it_is(error):
    """A bug keeps its traceback."""
    with pytest.raises(type(error)), reporting_dead_workers("do this"):
        raise error


# torch tells of the death from a signal's handler, wherever Python is: with a file just opened too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_reader_is_one_line(tmp_path):
    """SIGKILL, as the system's out-of-memory killer sends it, while others are being read."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path in paths:
        Image.new("RGB", (8, 16)).save(path)

    def kill_the_reader(images: torch.Tensor) -> torch.Tensor:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return images.float().mean((2, 3))

    batches = embed_batches(
        kill_the_reader,
        paths,
        height_px=16,
        width_px=8,
        batch_size=1,
        workers=1,
        device=torch.device("cpu"),
    )
    with pytest.raises(DataError, match=r"^a process .* died, .*; .* --workers 0$"):
        list(batches)


PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from airnet_cli.core.processes import start_worker

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_a_pool_does_not_outlive_its_parent(tmp_path):
    """Its processes would wait for work for ever."""
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as parent:
        helper = int(parent.stdout.readline())
        os.kill(helper, 0)  # it is there
        parent.kill()
        parent.wait()
        until = time.monotonic() + 30
        while is_alive(helper):
            assert time.monotonic() < until
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Not a zombie that nobody has waited for either."""
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
