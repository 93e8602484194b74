"""What every benchmark shares: two sides timed in turn, memory measured in a process of its own.

A row sets one path of airnet beside its limit or its obvious implementation. Both run in one
process, a turn each, so that a busy machine slows both; the fastest turn of each counts.
"""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Which sizes are measured."""

    name: str
    """full, quick, or tiny (for the test: nothing can be concluded from it)."""

    def pick(self, full: Any, quick: Any, tiny: Any) -> Any:
        """The value for this size."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.name]


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


def in_turn(
    ours: Callable[[], object], rival: Callable[[], object], *, turns: int
) -> tuple[float, float]:
    """The fastest of `turns` turns of each side, in seconds, after one of each to warm up."""
    fastest = [float("inf"), float("inf")]
    for turn in range(turns + 1):
        for side, function in enumerate((ours, rival)):
            started = time.perf_counter()
            function()
            if turn:
                fastest[side] = min(fastest[side], time.perf_counter() - started)
    return fastest[0], fastest[1]


@dataclass(frozen=True)
class Apart:
    """What some work took in a process of its own."""

    seconds: float
    memory_mb: float | None
    """At its peak, over what the process held before; None where there is no /proc."""
    unmapped_mb: float | None
    """The same without pages of mapped files, which the system can drop; looked at now and then."""


def peak_memory_mb(
    prepare: Callable[..., Any], work: Callable[[Any], object], *args: Any
) -> float | None:
    """How much more memory (MiB, resident) `work(prepare(*args))` takes at its peak than before it.

    In a fresh process, so `prepare` and `work` are functions of a module. Pages of a mapped file
    count where they are touched, though the system can drop them. None where there is no /proc.
    """
    return apart(prepare, work, *args).memory_mb if CLEAR.exists() else None


def apart(prepare: Callable[..., Any], work: Callable[[Any], object], *args: Any) -> Apart:
    """Run `work(prepare(*args))` once, in a fresh process; both are functions of a module."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, prepare, work, args))
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

LOOK_SECONDS = 0.002


def _measure(
    send: Any, prepare: Callable[..., Any], work: Callable[[Any], object], args: Any
) -> None:
    prepared = prepare(*args)
    if not CLEAR.exists():
        send.send(Apart(_seconds(work, prepared), None, None))
        return
    CLEAR.write_text("5")  # the peak starts again from what is held now
    before, unmapped = _status_mb("VmRSS"), _status_mb("RssAnon")
    seen = [unmapped]
    is_done = threading.Event()

    def look() -> None:
        while not is_done.wait(LOOK_SECONDS):
            seen.append(_status_mb("RssAnon"))

    looking = threading.Thread(target=look)
    looking.start()
    seconds = _seconds(work, prepared)
    is_done.set()
    looking.join()
    send.send(Apart(seconds, _status_mb("VmHWM") - before, max(seen) - unmapped))


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
