"""Signals: exit codes as shells have them, one word on stderr, and a second one that is obeyed."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from airnet_cli.cli import stopping
from airnet_cli.cli.app import reports_errors
from airnet_cli.cli.output import ProgressBars
from airnet_cli.cli.stopping import SIGNALS
from airnet_cli.errors import DataError


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Begin with the usual handlers (a test program in the background of a script ignores SIGINT),
    and put its own ones back: a stopped command keeps its.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    show_dropped = sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    stopping._first.clear()
    sys.unraisablehook = show_dropped
    for number, handler in before.items():
        signal.signal(number, handler)


def run(command) -> tuple[int, str]:
    small = typer.Typer(pretty_exceptions_enable=False)
    small.command()(reports_errors(command))
    result = CliRunner().invoke(small, [])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, (130, "interrupted\n")), (signal.SIGTERM, (143, "terminated\n"))],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_ends_the_command(number, expected):
    """As Ctrl-C does in Python: what the command has to put in order, it does."""
    ended = []

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            ended.append("in order")

    assert run(command) == expected
    assert ended == ["in order"]


def test_what_goes_wrong_in_stopping_is_the_stop():
    """A supervisor stops helper processes too; their end is no error then."""

    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise DataError("a process that reads images died")

    assert run(command) == (143, "terminated\n")


def test_a_signal_that_python_drops_is_heard(capfd):
    """What is raised in a finalizer is lost; the next report of progress raises it again."""
    reached = []

    class Waiting:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def command() -> None:
        waiting = Waiting()
        del waiting
        reached.append("on")
        ProgressBars(None)("reading", 1, 2, "images")
        reached.append("too far")

    assert run(command) == (143, "terminated\n")
    assert reached == ["on"]
    assert capfd.readouterr().err == "", "no words of Python's on what it dropped"


def test_what_a_signal_left_half_made_is_not_spoken_of(capfd):
    """Its finalizer fails; that comes of the stop, which is all that is said."""

    class HalfMade:
        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            self.whole = True

        def __del__(self) -> None:
            assert self.whole

    assert run(HalfMade) == (130, "interrupted\n")
    gc.collect()  # it lives as long as the stop's traceback
    assert capfd.readouterr().err == ""


def test_what_finalizers_drop_is_shown_without_a_signal(monkeypatch):
    """As Python shows it: that would be a defect of ours."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("a defect")

    def command() -> None:
        Broken()

    code, said = run(command)
    assert (code, said.splitlines()[-1]) == (0, "ValueError: a defect")


def test_handlers_are_put_back():
    """A program that calls commands keeps its own way to be stopped."""
    before = [signal.getsignal(number) for number in SIGNALS]
    inside = []

    def command() -> None:
        inside.extend(signal.getsignal(number) for number in SIGNALS)

    assert run(command) == (0, "")
    assert all(now is not then for now, then in zip(inside, before, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_ignored_stays_ignored():
    """SIGINT under nohup, and in background jobs of scripts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run(lambda: os.kill(os.getpid(), signal.SIGINT)) == (0, "")


PROGRAM = """
import os, signal, sys, time
import typer
from airnet_cli.cli.app import reports_errors

def command() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("putting things in order", flush=True)
        time.sleep(60)

app = typer.Typer()
app.command()(reports_errors(command))
app()
"""


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(second):
    """With the exit code of the first."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"putting things in order\n"
        process.send_signal(second)
        assert process.wait(30) == 143
