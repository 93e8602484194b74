"""What the tests of faults share: commands that can be killed, and how often that is done."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
NURSERY = Path(__file__).with_name("nursery.py")

KILLS = int(os.environ.get("AIRNET_KILLS", "2"))
"""How often each kind of command is killed at a random moment; `make soak` asks for more."""


@dataclass(frozen=True)
class Ended:
    """A command that ended, by itself or not."""

    code: int
    """Its exit code; negative: the signal that killed it."""
    operations: int
    """How often it changed files below the folder that was watched."""
    output: str
    seconds: float

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Nursery:
    """Starts commands without the seconds that Python and torch need to start; see nursery.py."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, str(NURSERY), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # One thread: a pool of threads does not survive a fork, and sums hang on their number.
            # This checkout's package, not an installed one.
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        )

    def start(self, *words: object, **request: Any) -> int:
        """Start a command; its process id."""
        self._started = time.monotonic()
        self._output.write_text("")
        asked = {"words": [str(word) for word in words], "output": str(self._output), **request}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self._pid = int(self._answer()["pid"])
        return self._pid

    def wait(self) -> Ended:
        """Wait for the end of the command that was started last."""
        answer = self._answer()
        seconds = time.monotonic() - self._started
        return Ended(answer["code"], answer["operations"], self._output.read_text(), seconds)

    def run(self, *words: object, **request: Any) -> Ended:
        """Run a command to its end."""
        self.start(*words, **request)
        return self.wait()

    def kill_after(self, seconds: float, *words: object, **request: Any) -> Ended:
        """Run a command and kill it (SIGKILL) after so many seconds, if it still runs."""
        pid = self.start(*words, **request)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGKILL)
        return self.wait()

    def wait_until(self, said: str) -> None:
        """Wait until the output of the command that was started last has `said`."""
        until = time.monotonic() + 300
        while said not in self._output.read_text():
            if time.monotonic() > until:
                os.kill(self._pid, signal.SIGKILL)
                raise AssertionError(f"no {said!r} in: {self.wait().output}")
            time.sleep(0.01)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Runs commands in processes of their own, at once."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    started = Nursery(tmp_path_factory.mktemp("nursery"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def kills() -> int:
    """See `KILLS`."""
    return KILLS
