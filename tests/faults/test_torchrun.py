"""Under torchrun a process is killed: the run goes on by itself, as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

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


def members(torchrun: subprocess.Popen[str]) -> list[int]:
    """The process ids of those that torchrun started, in their order."""
    found: dict[int, int] = {}
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for pid in map(int, children):
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        for variable in variables:
            if variable.startswith("RANK="):
                found[int(variable.removeprefix("RANK="))] = pid
    return [found[member] for member in sorted(found)]


def lines_of(runs_root: Path) -> list[dict]:
    logs = list(runs_root.glob("*/log.jsonl"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("member", [0, 1], ids=["the first", "another"])
def test_a_killed_process_is_started_again_and_the_run_goes_on(
    member, tiny_data_root, tiny_overrides, tmp_path
):
    """One run folder, all epochs, and the weights of the run that nobody disturbed."""

    def words(runs_root: Path) -> list[object]:
        sets = [word for each in (*tiny_overrides, "training.epochs=3") for word in ("--set", each)]
        where = ["--data-root", tiny_data_root, "--runs-root", runs_root, "--device", "cpu"]
        return ["train", "-p", "demo", *sets, *where]

    calm = start(*words(tmp_path / "calm"))
    said, _ = calm.communicate(timeout=600)
    assert calm.returncode == 0, said

    killed = start(*words(tmp_path / "killed"), restarts=1)
    until = time.monotonic() + 600
    while not lines_of(tmp_path / "killed") and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(members(killed)[member], signal.SIGKILL)
    said, _ = killed.communicate(timeout=600)
    assert killed.returncode == 0, said

    (run,) = (tmp_path / "killed").iterdir()
    (undisturbed,) = (tmp_path / "calm").iterdir()
    assert [line["epoch"] for line in lines_of(tmp_path / "killed")] == [1, 2, 3]
    assert json.loads((run / "preset.json").read_text())["processes"] == 2
    weights, expected = (load_file(each / "model.safetensors") for each in (run, undisturbed))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
