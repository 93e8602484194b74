"""Two processes compute the step of one; without torchrun, nothing of this does anything."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from airnet_cli.core.distributed import SINGLE, kept_over_restarts, launched_rank, process_group
from airnet_cli.errors import RuntimeSetupError

PROJECT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("two_processes.py")


def run_two(*words: str) -> list[tuple[int, str]]:
    """Exit code and output of two processes, in the environment that torchrun gives them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": "2", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *words],
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_two_processes_compute_the_step_of_one():
    """With norms in evaluation mode: same loss and gradients to 1e-5."""
    for code, said in run_two("step", "cpu"):
        assert code == 0, said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_processes_compute_the_step_of_one_on_cuda():
    """With SyncBatchNorm in training mode: the statistics are those of the whole batch."""
    for code, said in run_two("step", "cuda"):
        assert code == 0, said


def test_a_lost_process_is_an_error_for_the_others():
    """A process that dies is noticed at once, in words."""
    (code, said), (lost, _) = run_two("lost")
    assert (code, lost) == (0, 9)
    assert "another process of this training ended or can't be reached" in said


def test_without_torchrun_a_process_trains_by_itself(monkeypatch):
    """Also where another launcher has set its own variables."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    network, rows, cpu = torch.nn.BatchNorm1d(3), torch.ones(2, 3), torch.device("cpu")
    with process_group(cpu) as world:
        assert world == SINGLE
        assert world.parallel(network, cpu) is network
        assert world.gather(rows) is rows
        assert world.broadcast(lambda: "made") == "made"
        world.barrier()
    assert launched_rank() == 0
    assert [kept_over_restarts("key", lambda made=made: made) for made in "ab"] == ["a", "b"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "torchrun started 3 processes on this machine, which has 2 GPUs"),
        ("mps", "device 'mps' is for one process"),
    ],
)
def test_devices_that_several_processes_can_not_have(device, message, monkeypatch):
    """More processes than GPUs are refused before any of them waits for another."""
    environment = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeSetupError, match=message), process_group(torch.device(device)):
        pass
