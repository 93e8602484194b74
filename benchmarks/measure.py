"""What every benchmark shares: two sides timed in turn, memory measured in a process of its own.

A row sets one path of airnet beside its limit or its obvious implementation. Both run in one
process, a turn each, so that a busy machine slows both; the fastest turn of each counts. What takes
minutes runs once, where its memory is measured.
"""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Which sizes are measured."""

    name: str
    """full or quick."""

    def pick(self, full: Any, quick: Any) -> Any:
        """The value for this size."""
        return full if self.name == "full" else quick


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    path: str
    case: str
    rival: str
    """What ours is compared with."""
    seconds: float
    rival_seconds: float
    target: str
    """The ratio to reach, in words."""
    ratio_is: str = "ours / rival"
    """Or "rival / ours", where ours is said to be so many times faster."""
    memory_mb: float | None = None
    """Peak over what the process held before, where that is asked for."""
    memory_target_mb: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """As `ratio_is` says."""
        ratio = self.seconds / self.rival_seconds
        return ratio if self.ratio_is == "ours / rival" else 1 / ratio


OPENBLAS_REST = 0.05
"""Seconds of pause: OpenBLAS's threads wait awake for some 20 ms after a product, and would slow
the other side."""


def in_turn(
    ours: Callable[[], object],
    rival: Callable[[], object],
    *,
    turns: int,
    pause: float = 0,
    is_warm: bool = False,
) -> tuple[float, float]:
    """The fastest of `turns` turns of each side, in seconds, after one of each to warm up unless
    `is_warm`; with a pause of so many seconds before each.
    """
    fastest = [float("inf"), float("inf")]
    for turn in range(1 if is_warm else 0, turns + 1):
        for side, function in enumerate((ours, rival)):
            time.sleep(pause)
            started = time.perf_counter()
            function()
            if turn:
                fastest[side] = min(fastest[side], time.perf_counter() - started)
    return fastest[0], fastest[1]


@dataclass(frozen=True)
class Apart:
    """What some work took in a process of its own. Memory is in MiB, at its peak, over what the
    process held before; None where there is no /proc.
    """

    seconds: float
    memory_mb: float | None
    """Pages of a mapped file count where they are touched, though the system can drop them."""
    unmapped_mb: float | None
    """Without them; looked at now and then, so a little too low. None unless it was asked for."""


def peak_memory_mb(
    prepare: Callable[..., Any], work: Callable[[Any], object], *args: Any
) -> float | None:
    """How much more memory (MiB, resident) `work(prepare(*args))` takes at its peak than before it.

    In a fresh process, so `prepare` and `work` are functions of a module. None where there is no
    /proc.
    """
    return apart(prepare, work, *args).memory_mb if CLEAR.exists() else None


def apart(
    prepare: Callable[..., Any],
    work: Callable[[Any], object],
    *args: Any,
    is_mapped: bool = False,
) -> Apart:
    """Run `work(prepare(*args))` once, in a fresh process; both are functions of a module.

    `is_mapped`: tell memory apart from pages of mapped files.
    """
    # Forked off a process that has imported torch and done nothing: importing takes seconds.
    has_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_fork else "spawn")
    if has_fork:
        context.set_forkserver_preload(["torch", "benchmarks.measure"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, prepare, work, args, is_mapped))
    process.start()
    send.close()
    try:
        measured: Apart = receive.recv()
    except EOFError:
        raise RuntimeError("the process whose memory is measured ended early") from None
    finally:
        process.join()
    return measured


CLEAR = Path("/proc/self/clear_refs")

LOOK_SECONDS = 0.01


def _measure(
    send: Any,
    prepare: Callable[..., Any],
    work: Callable[[Any], object],
    args: Any,
    is_mapped: bool,
) -> None:
    prepared = prepare(*args)
    if not CLEAR.exists():
        send.send(Apart(_seconds(work, prepared), None, None))
        return
    CLEAR.write_text("5")  # the peak starts again from what is held now
    before = _status_mb("VmRSS")
    with _looking("RssAnon") if is_mapped else nullcontext([0.0]) as largest:
        before_unmapped = largest[0]
        seconds = _seconds(work, prepared)
    grown = _status_mb("VmHWM") - before
    send.send(Apart(seconds, grown, largest[0] - before_unmapped if is_mapped else None))


@contextmanager
def _looking(field: str) -> Iterator[list[float]]:
    """The largest value of a field so far, looked at now and then."""
    largest = [_status_mb(field)]
    is_done = threading.Event()

    def look() -> None:
        while not is_done.wait(LOOK_SECONDS):
            largest[0] = max(largest[0], _status_mb(field))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield largest
    finally:
        is_done.set()
        thread.join()


def _seconds(work: Callable[[Any], object], prepared: Any) -> float:
    started = time.perf_counter()
    work(prepared)
    return time.perf_counter() - started


def _status_mb(field: str) -> float:
    # Not getrusage: its peak is inherited from the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def to_json(rows: list[Row], sizes: Sizes, machine: dict[str, Any]) -> str:
    """One line: sizes, versions, cores, and every figure."""
    figures = [{**vars(row), "ratio": row.ratio} for row in rows]
    return json.dumps({"version": 1, "sizes": sizes.name, **machine, "rows": figures})
