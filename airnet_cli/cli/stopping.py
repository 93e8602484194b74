"""Being told to stop: Ctrl-C (SIGINT) and what supervisors and `kill` send (SIGTERM).

The first signal ends the command as Ctrl-C always has: by a `KeyboardInterrupt`, on which workflows
leave what is saved as it is and say how to go on. The second one ends the process at once. Either
way the exit code is 128 + the first signal, as shells have it: 130 or 143.

Python drops what is raised in the finalizer of an object (torch's loader waits for its processes
in one), so progress raises it again. What finalizers drop after the signal is not shown: they meet
objects that the signal left half made, such as that loader, whose own finalizer fails then.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop."""

    def __init__(self, number: int) -> None:
        """Remember which: `signal.SIGINT` or `signal.SIGTERM`."""
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 + the signal; a `KeyboardInterrupt` of another origin counts as Ctrl-C.

    >>> exit_code(KeyboardInterrupt()), exit_code(Stopped(signal.SIGTERM))
    (130, 143)
    """
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def word(stop: KeyboardInterrupt) -> str:
    """What is said of it.

    >>> word(KeyboardInterrupt()), word(Stopped(signal.SIGTERM))
    ('interrupted', 'terminated')
    """
    return WORDS[signal.Signals(exit_code(stop) - 128)]


_first: list[int] = []
"""The first signal that was heard in the block that runs."""


def stop_if_told() -> None:
    """Raise `Stopped` again where a signal was heard and the work went on."""
    if _first:
        raise Stopped(_first[0])


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise `Stopped` in the block on the first signal, leave the process on the second.

    A signal that is ignored (SIGINT under `nohup` and in scripts' background jobs) stays so. Does
    nothing but in the main thread, which alone hears signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    own_process = os.getpid()
    _first.clear()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != own_process:  # a forked one, on its way to handlers of its own
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if _first:
            os._exit(128 + _first[0])
        _first.append(number)
        raise Stopped(number)

    show_dropped = sys.unraisablehook

    def drop(dropped: "sys.UnraisableHookArgs") -> None:
        if not _first:
            show_dropped(dropped)

    before = {number: signal.signal(number, stop) for number in heard}
    sys.unraisablehook = drop
    try:
        yield
    except Exception:
        if _first:  # what went wrong in winding up: other processes were told to stop too
            raise Stopped(_first[0]) from None
        raise
    finally:
        if not _first:  # or else both stay in place while the process winds up
            sys.unraisablehook = show_dropped
            for number, handler in before.items():
                signal.signal(number, handler)
