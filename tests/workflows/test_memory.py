"""What keeps freed memory: the command line, and nothing else in a process."""

import ctypes
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airnet_cli import Embedder
from airnet_cli.cli.app import app

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")

COUNT_PAGE_FAULTS = """
import resource, sys, torch
from airnet_cli.workflows.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for round in range(30):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 * 2**20)  # 48 MiB: more than glibc ever keeps of itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc alone")
def test_freed_memory_is_used_again():
    """With the setting, a large block is taken from the system once and not at every use."""

    def page_faults(how: str) -> int:
        command = [sys.executable, "-c", COUNT_PAGE_FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    block = 48 * 2**20 // resource.getpagesize()
    assert page_faults("given back") > 15 * block
    assert page_faults("kept") < block


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls of `mallopt` in this process; none of them takes effect."""
    calls: list[tuple[int, int]] = []
    real = ctypes.CDLL

    class Libc:
        def mallopt(self, parameter: int, value: int) -> None:
            calls.append((parameter, value))

    monkeypatch.setattr(
        ctypes,
        "CDLL",
        lambda name, *rest, **more: real(name, *rest, **more) if name else Libc(),
    )
    return calls


def test_the_library_leaves_the_process_alone(untrained_run: Path, settings) -> None:
    """A program that imports `Embedder` decides about its own memory."""
    Embedder.load(untrained_run, device="cpu")
    assert settings == []


def test_the_command_line_keeps_freed_memory(settings) -> None:
    """Its process has no other work."""
    assert CliRunner().invoke(app, ["presets"]).exit_code == 0
    assert len(settings) == 2
