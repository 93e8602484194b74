"""Under torchrun a process is killed: the run is resumed, and ends as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.soak]

PROJECT = Path(__file__).parents[2]


def start(*words: object, restarts: int = 0) -> subprocess.Popen[str]:
    """Start two processes of `airnet` with these words."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [*torchrun, "-m", "airnet_cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def workers(torchrun: subprocess.Popen[str]) -> list[int]:
    """The process ids of those that torchrun started, by rank."""
    found: dict[int, int] = {}
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for pid in map(int, children):
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        for variable in variables:
            if variable.startswith("RANK="):
                found[int(variable.removeprefix("RANK="))] = pid
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def words(scarce_data_root, tiny_overrides) -> Callable[[Path], list[object]]:
    """The command line of a training of two epochs into a folder."""
    sets = [word for each in tiny_overrides for word in ("--set", each)]
    where = ["--data-root", scarce_data_root, "--device", "cpu"]
    return lambda runs_root: ["train", "-p", "demo", *sets, *where, "--runs-root", runs_root]


@pytest.fixture(scope="module")
def expected(words, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a run that was not disturbed."""
    runs_root = tmp_path_factory.mktemp("calm")
    calm = start(*words(runs_root))
    said, _ = calm.communicate(timeout=600)
    assert calm.returncode == 0, said
    (run,) = runs_root.iterdir()
    return load_file(run / "model.safetensors")


def kill(torchrun: subprocess.Popen[str], rank: int, sign: str, runs_root: Path) -> None:
    """Kill a process once there is a file of that name in the run."""
    until = time.monotonic() + 300
    while not list(runs_root.glob(f"*/{sign}")):
        assert torchrun.poll() is None, torchrun.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(workers(torchrun)[rank], signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_killed_processes_are_started_again_and_the_run_goes_on(words, expected, tmp_path):
    """Rank 0 before anything is saved, rank 1 after an epoch: one run folder, all epochs, and the
    weights of the undisturbed run.
    """
    killed = start(*words(tmp_path), restarts=2)
    kill(killed, 0, "preset.json", tmp_path)
    kill(killed, 1, "training-state.safetensors", tmp_path)
    said, _ = killed.communicate(timeout=600)
    assert killed.returncode == 0, said
    starts = said.split("training airnet")[1:]
    assert len(starts) == 3, said
    assert " 1/2 " not in starts[-1], said

    (run,) = tmp_path.iterdir()
    lines = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads((run / "preset.json").read_text())["processes"] == 2
    weights = load_file(run / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
