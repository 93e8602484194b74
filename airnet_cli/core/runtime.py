"""Device, precision, seeds: what a process is told once, by explicit call, never on import."""

import contextlib
import random
from typing import Literal

import numpy as np
import torch

from airnet_cli.errors import RuntimeSetupError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["fp32", "bf16", "fp16"]

AUTOCAST_DTYPES: dict[PrecisionName, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def choose_device(name: DeviceName) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        RuntimeSetupError: a device was asked for by name and is not there.
    """
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, is_there in has.items() if is_there))
    if not has[name]:
        there = ", ".join(device for device, is_there in has.items() if is_there)
        raise RuntimeSetupError(f"device '{name}' is not on this machine; there is: {there}")
    return torch.device(name)


def check_precision(precision: PrecisionName, device: torch.device) -> None:
    """Refuse a precision in which `device` can't train.

    Raises:
        RuntimeSetupError: float16 on the CPU: its gradients would underflow without a GPU's loss
        scaling.
    """
    if precision == "fp16" and device.type != "cuda":
        raise RuntimeSetupError(
            f"precision 'fp16' needs a CUDA device, not '{device}'; use bf16 or fp32"
        )


def autocast(
    device: torch.device, precision: PrecisionName
) -> contextlib.AbstractContextManager[object]:
    """The context in which the network runs in `precision`; fp32 changes nothing."""
    dtype = AUTOCAST_DTYPES[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 itself; a CPU without it is far slower in bf16."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; the same seed on the same machine gives the same run."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
