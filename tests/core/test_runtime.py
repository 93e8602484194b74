"""Device, precision and seeds: what was asked for, or an error that says what there is."""

import random

import numpy as np
import pytest
import torch

from airnet_cli.core.runtime import (
    autocast,
    check_precision,
    choose_device,
    has_native_bfloat16,
    seed_everything,
)
from airnet_cli.errors import RuntimeSetupError

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says which accelerators the machine has."""

    def has(*names: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)

    return has


@pytest.mark.parametrize(
    ("there", "name", "expected"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "mps"),
        (("cuda",), "auto", "cuda"),
        (("cuda", "mps"), "auto", "cuda"),
        (("cuda",), "cpu", "cpu"),
        (("cuda", "mps"), "mps", "mps"),
    ],
)
def test_choice_of_device(machine, there, name, expected):
    """`auto` takes the fastest that is there; a name is taken at its word."""
    machine(*there)
    assert choose_device(name).type == expected


@pytest.mark.parametrize(
    ("there", "name", "listed"),
    [((), "cuda", "cpu"), (("mps",), "cuda", "mps, cpu"), (("cuda",), "mps", "cuda, cpu")],
)
def test_absent_device_is_an_error_and_never_another(machine, there, name, listed):
    """One line with the value and what the machine has."""
    machine(*there)
    with pytest.raises(RuntimeSetupError, match=f"device '{name}' is not .*there is: {listed}$"):
        choose_device(name)


@pytest.mark.parametrize(
    ("precision", "device", "fits"),
    [
        ("fp32", "cpu", True),
        ("bf16", "cpu", True),
        ("fp16", "cpu", False),
        ("fp16", "mps", False),
        ("fp16", "cuda", True),
    ],
)
def test_precisions_that_a_device_can_train_in(precision, device, fits):
    """float16 needs CUDA's loss scaling; the refusal names what to take instead."""
    if fits:
        check_precision(precision, torch.device(device))
    else:
        with pytest.raises(RuntimeSetupError, match=f"'fp16'.*not '{device}'; use bf16 or fp32"):
            check_precision(precision, torch.device(device))


def test_autocast_computes_in_what_was_asked_for():
    """A product in bfloat16 for bf16; fp32 changes nothing, not even an outer autocast."""
    x = torch.ones(4, 4)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("avx512", [True, False])
def test_native_bfloat16_on_a_cpu(monkeypatch, avx512, amx):
    """Either of the two instruction sets will do."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_native_bfloat16(CPU) is (avx512 or amx)


def test_seed_seeds_all_three_generators():
    """Defect 11: the same seed, the same numbers, in Python, NumPy and torch."""

    def draw(seed):
        seed_everything(seed)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        first, again, other = draw(3), draw(3), draw(4)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
