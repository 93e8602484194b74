"""A team of processes against one process with the same batches: losses, weights, statistics."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._C._distributed_c10d import PrefixStore

from airnet_cli.core import distributed
from airnet_cli.core.distributed import (
    ALONE,
    MEETING_PAUSE_S,
    Team,
    joining,
    launched_size,
    leads,
    met,
    remembered,
    synchronize_batch_norms,
)
from airnet_cli.errors import RuntimeSetupError

PROJECT = Path(__file__).parents[2]
TEAM = Path(__file__).with_name("team.py")

CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "exactly": {"dtype": "float64"},
    "settings exactly": {
        "dtype": "float64",
        "variant": "airnet_gc",
        "freeze_epochs": 1,
        "ema_decay": 0.9,
        "clip_norm": 1.0,
        "pad_crop_px": 4,
        "label_smoothing": 0.1,
    },
}
"""The network and the settings that a step hangs on; float64 leaves rounding no excuse."""

TOLERANCES = {"float32": 1e-4, "float64": 1e-9}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def team() -> ModuleType:
    """team.py, to train in this process."""
    spec = importlib.util.spec_from_file_location("team", TEAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_team(crops, tmp_path_factory) -> Callable[..., Path]:
    """Trains `cases` as a team of two; the folder of what came out."""
    paths, person_ids = crops

    def run(cases: dict[str, dict[str, Any]], *, late: int | None = None) -> Path:
        folder = tmp_path_factory.mktemp("team")
        task = {
            "paths": [str(path) for path in paths],
            "person_ids": person_ids,
            "cases": cases,
            "late": late,
        }
        (folder / "task.json").write_text(json.dumps(task))
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TEAM), str(folder), "2"]
        subprocess.run(command, env=environment, check=True, timeout=300)
        return folder

    return run


@pytest.fixture(scope="module")
def two(run_team) -> Path:
    """What a team of two made of all cases."""
    folder: Path = run_team(CASES)
    assert json.loads((folder / "codes.json").read_text()) == [0, 0]
    return folder


def as_tensor(reports: list[list[Any]]) -> torch.Tensor:
    """Losses, images and terms of each epoch as numbers in a row."""
    rows = [[*report[:2], *(term for terms in report[2:] for term in terms)] for report in reports]
    return torch.tensor(rows, dtype=torch.float64)


@needs_fork
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, two, team, crops):
    """After some steps losses, weights, running statistics and the average are those of one
    process with the same batches.
    """
    reports, weights = team.train(*crops, ALONE, **CASES[case])
    tolerance = TOLERANCES[CASES[case].get("dtype", "float32")]
    near = {"atol": tolerance, "rtol": tolerance}
    for member in range(2):
        theirs = json.loads((two / f"{case}-{member}.json").read_text())
        torch.testing.assert_close(as_tensor(theirs), as_tensor(reports), **near)
    together = load_file(two / f"{case}.safetensors")
    assert together.keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(together[name], expected, **near, msg=name)


@needs_fork
def test_a_lost_process_is_one_line_for_the_others(run_team):
    """A process that dies is noticed at once, in words."""
    folder = run_team({"any": {"lost": True}})
    assert json.loads((folder / "codes.json").read_text()) == [0, 9]
    said = (folder / "error-0.txt").read_text()
    assert said.startswith("another process of this training ended")


def test_nobody_goes_on_before_all_of_now_are_there():
    """Neither what an earlier team wrote nor a part of the team is enough; all get one place."""
    store = torch.distributed.HashStore()
    places: list[list[PrefixStore]] = [[], []]

    def meet(generation: int, member: int) -> threading.Thread:
        def work() -> None:
            places[generation].append(met(store, member, 3))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    for thread in [meet(0, member) for member in range(3)]:
        thread.join(timeout=30)
    assert len(places[0]) == 3

    early = [meet(1, 0), meet(1, 2)]
    time.sleep(20 * MEETING_PAUSE_S)
    assert not places[1]
    for thread in [*early, meet(1, 1)]:
        thread.join(timeout=30)
    assert len(places[1]) == 3

    for generation, (first, *others) in enumerate(places):
        first.set("key", f"generation {generation}")
        assert [each.get("key") for each in others] == [f"generation {generation}".encode()] * 2
    assert places[0][0].get("key") == b"generation 0"


def test_a_process_whose_place_is_taken_gives_up(monkeypatch):
    """One that was forgotten, by a torchrun that was killed, does not speak for who came after."""
    monkeypatch.setattr(distributed, "MEETING_PAUSE_S", 0.2)
    store = torch.distributed.HashStore()
    failed: list[BaseException] = []

    def wait_in_vain() -> None:
        try:
            met(store, 1, 2)
        except torch.distributed.DistError as error:
            failed.append(error)

    forgotten = threading.Thread(target=wait_in_vain, daemon=True)
    forgotten.start()
    while not store.check(["here 1"]):
        time.sleep(0.01)
    members = [
        threading.Thread(target=met, args=(store, member, 2), daemon=True) for member in (1, 0)
    ]
    for thread in members:
        thread.start()
    for thread in [*members, forgotten]:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert [str(error) for error in failed] == ["another process is number 1 of this training now"]


def test_waiting_for_others_has_an_end(monkeypatch):
    """Who never comes is not waited for for ever."""
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=0.1))
    with pytest.raises(torch.distributed.DistError, match="some of the 2 processes"):
        met(torch.distributed.HashStore(), 0, 2)


@pytest.mark.soak
@needs_fork
def test_a_team_started_again_takes_nobody_for_there_who_is_not(run_team):
    """torchrun's store keeps what an earlier team wrote: addresses at which nobody listens now."""
    folder = run_team({"any": {}}, late=0)
    assert json.loads((folder / "codes.json").read_text()) == [0, 0]
    assert not list(folder.glob("error-*"))


def test_without_torchrun_a_process_is_alone(monkeypatch):
    """Nothing is joined, gathered or remembered, and the network is handed back as it is."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another launcher
    network, rows = torch.nn.BatchNorm1d(3), torch.ones(2, 3)
    with joining(torch.device("cpu")) as team:
        assert team == ALONE
        assert team.leads
        assert team.parallel(network) is network
        assert team.gather(rows) is rows
        assert team.tell(lambda: "made") == "made"
        assert team.ask(3) == [3]
    synchronize_batch_norms(network, team, torch.device("cpu"))
    assert type(network) is torch.nn.BatchNorm1d
    assert (launched_size(), leads()) == (1, True)
    assert [remembered("key", lambda made=made: made) for made in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "torchrun started 3 processes on this machine, which has 2 GPUs"),
        ("mps", "device 'mps' is for one process"),
    ],
)
def test_devices_that_a_team_can_not_have(device, message, monkeypatch):
    """More processes than GPUs are refused before any of them waits for another."""
    environment = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeSetupError, match=message), joining(torch.device(device)):
        pass


def test_on_cuda_torch_synchronises_batch_norms():
    """Its own module takes their place; names, parameters and buffers stay."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    weight, names = network[1].weight, list(network.state_dict())
    synchronize_batch_norms(network, Team(0, 2), torch.device("cuda"))
    assert type(network[1]) is torch.nn.SyncBatchNorm
    assert network[1].weight is weight
    assert list(network.state_dict()) == names
