"""What the fuzzing tests share: seeded cases, damage to bytes, and limits of time and memory.

Each kind of input is tried `AIRNET_FUZZ_CASES` times (1,000 without; `make soak` takes ten times
as many). A case depends on its kind and number alone, so one that fails fails again.
"""

import inspect
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airnet_cli.errors import AirnetError, PresetError

CASES = int(os.environ.get("AIRNET_FUZZ_CASES", "1000"))
MOST_SECONDS = 20
"""Of one case: a hang, or as good as one. Far above what a case takes on a busy machine."""
MOST_BYTES = 2 * 2**30


class Hang(BaseException):
    """A case took too long; no Exception, so that nothing on its way can catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_error(error: AirnetError) -> None:
    """One line, or one for each problem of a preset; nothing that a terminal obeys."""
    lines = str(error).split("\n")
    assert len(lines) == 1 or isinstance(error, PresetError), lines
    assert all(line.isprintable() and line for line in lines), lines


def status_bytes(field: str) -> int:
    """Of this process. Not getrusage: its peak is inherited from the process that started it."""
    line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line, field
    return int(line[1]) * 1024


Attempt = Callable[[random.Random], object]


@pytest.fixture
def survive() -> Callable[..., tuple[int, int]]:
    """A function that tries many cases of a kind; how many were accepted, and how many refused.

    A case may end well or with an AirnetError of one line, within time and memory. What it returns
    on success is its own business: it has checked that.
    """

    def run(kind: str, attempt: Attempt, *, cases: int = CASES) -> tuple[int, int]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        before = status_bytes("VmRSS")
        refused = 0
        for number in range(cases):
            try:
                with time_limit(MOST_SECONDS):
                    attempt(random.Random(f"{kind} {number}"))
            except AirnetError as error:
                check_error(error)
                refused += 1
            except (Exception, Hang) as error:
                raise AssertionError(f"case {number} of {kind!r}") from error
        grown = status_bytes("VmHWM") - before
        assert grown < MOST_BYTES / 2, f"{grown:,} bytes more"
        return cases - refused, refused

    return run


@pytest.fixture
def damage() -> Callable[[bytes, random.Random], bytes]:
    """A function that spoils bytes in one to four of the ways in which files are spoilt."""

    def spoil(content: bytes, chance: random.Random) -> bytes:
        spoilt = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.randrange(len(spoilt)) if spoilt else 0
            length = min(chance.choice((1, 1, 2, 4, 8, 64, 1000)), len(spoilt) - at)
            match chance.randrange(8):
                case 0:  # a flipped bit
                    if spoilt:
                        spoilt[at] ^= 1 << chance.randrange(8)
                case 1:  # other bytes
                    spoilt[at : at + length] = chance.randbytes(length)
                case 2:  # cut off
                    del spoilt[at:]
                case 3:  # a hole
                    del spoilt[at : at + length]
                case 4:  # something twice
                    spoilt[at:at] = spoilt[at : at + length]
                case 5:  # the largest or smallest number
                    spoilt[at : at + length] = chance.choice((b"\xff", b"\0")) * length
                case 6:  # something in between
                    spoilt[at:at] = chance.randbytes(length)
                case 7:  # parts that changed places
                    spoilt = spoilt[at:] + spoilt[:at]
        return bytes(spoilt)

    return spoil


@pytest.fixture
def in_child() -> Callable[..., str]:
    """A function that runs a program where it may not take 2 GB or two minutes; what it prints.

    The limit is on what the process may write to, which is more than what it has in memory.
    """

    def run(program: str, *arguments: str) -> str:
        limits = (
            "import resource\n"
            f"resource.setrlimit(resource.RLIMIT_DATA, ({MOST_BYTES}, {MOST_BYTES}))\n"
        )
        measure = (
            f"\nimport re\nfrom pathlib import Path\n{inspect.getsource(status_bytes)}"
            f"\nassert status_bytes('VmHWM') < {MOST_BYTES}, status_bytes('VmHWM')"
        )
        done = subprocess.run(
            [sys.executable, "-c", limits + program + measure, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
