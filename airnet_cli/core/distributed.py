"""Several processes that train one network together: torchrun with DistributedDataParallel.

The P x K batch is that of all processes. Each computes P / size of its people, every process
computes the losses of all outputs, and gradients are summed. With batch norms in evaluation mode a
step is that of one process, but for rounding. In training, SyncBatchNorm takes the statistics of
the whole batch on CUDA; on CPUs each process takes those of its own images, and the running
statistics that count are those of rank 0. For a single process every part of this does nothing.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from airnet_cli.errors import RuntimeSetupError, TrainingError

T = TypeVar("T")

START_TIMEOUT = timedelta(minutes=10)
"""How long a process waits at the start until the others are there."""

TIMEOUT = timedelta(hours=2)
"""How long a process waits for another: the others wait while rank 0 scores the network. When a
process ends, gloo notices at once, and torchrun ends those that use NCCL."""


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees it (torch's terms)."""

    rank: int
    """From 0; only rank 0 writes files, evaluates and prints."""
    size: int

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wrap `network` so that its gradients become the mean over all processes.

        All processes start with the weights of rank 0. On CUDA batch norms become SyncBatchNorm, in
        place; parameters, buffers and their names stay.
        """
        if self.size == 1:
            return network
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(network)

    def gather(self, local: Tensor) -> Tensor:
        """The rows (B, …) of all processes in rank order; `local` (B / size, …) are this one's.

        Gradients reach `local` only. Where each process computes the same loss of all rows, the
        gradient of that loss is the sum of what the processes have.
        """
        if self.size == 1:
            return local
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(self.size)]
        dist.all_gather(parts, local.detach())
        parts[self.rank] = local
        return torch.cat(parts)

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, which alone calls it, on all ranks."""
        if self.size == 1:
            return make()
        values: list[Any] = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(values, src=0)
        return cast(T, values[0])

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


SINGLE = World(rank=0, size=1)
"""A process that trains by itself."""


def launched_size() -> int:
    """How many processes torchrun started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def launched_rank() -> int:
    """The rank that torchrun gave this process; 0 without it."""
    return int(os.environ["RANK"]) if launched_size() > 1 else 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Connect the processes that torchrun started, for the block; without it, `SINGLE`.

    Raises:
        RuntimeSetupError: more processes on this machine than GPUs, or a device on which only one
            process trains.
        TrainingError: another process ended or can't be reached, in the block too.
    """
    if launched_size() == 1:
        yield SINGLE
        return
    take_device(device)
    try:
        store, rank, size = next(rendezvous("env://", timeout=START_TIMEOUT))
        # torchrun keeps the store when it starts processes again, with the addresses of the dead.
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
        )
        try:
            yield World(rank, size)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:  # gloo has no class of its own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            "another process of this training ended or can't be reached; its own lines say why"
        ) from error


def take_device(device: torch.device) -> None:
    """Have this process, one of those that torchrun started, use the GPU of its local rank.

    Raises:
        RuntimeSetupError: more processes on this machine than GPUs, or a device of which a machine
            has only one.
    """
    if device.type == "mps":
        raise RuntimeSetupError("device 'mps' is for one process; leave torchrun out")
    if device.type == "cuda":
        gpus, processes = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if processes > gpus:
            raise RuntimeSetupError(
                f"torchrun started {processes} processes on this machine, which has {gpus} GPUs; "
                f"give --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def kept_over_restarts(key: str, make: Callable[[], str]) -> str:
    """What `make` returned when a process of this launch first asked for `key`.

    The store of torchrun outlives the processes that `--max-restarts` starts again. Without
    torchrun, `make` is called.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return make()
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = PrefixStore("airnet", TCPStore(*address, is_master=False))
    if not store.check([key]):
        store.set(key, make())
    return str(store.get(key).decode())
