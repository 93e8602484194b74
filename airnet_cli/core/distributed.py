"""Several processes that train as one (torchrun): who they are, and what passes between them.

The P x K batch is the whole team's. Each process computes P / size of its people; batch norms take
the statistics of all images; each process computes the losses of all outputs; gradients are summed.
So a step is that of one process with the same batch, but for rounding. For a process alone every
part of this does nothing.

torch's own engines do the work: torchrun starts, watches and restarts, DistributedDataParallel sums
gradients while they are computed, SyncBatchNorm synchronises on CUDA. It knows no CPU: there the
batch norm of this file does.

Letters: B images of the whole batch, C channels.
"""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from airnet_cli.errors import RuntimeSetupError, TrainingError

T = TypeVar("T")

MEETING_PAUSE_S = 0.02
"""How long a process waits before it looks again whether all are there."""

CONNECT = timedelta(minutes=1)
"""How long gloo may take to connect when all are there; it takes five times as long to give up."""

PATIENCE = timedelta(hours=12)
"""How long a process waits for another: the first one scores while the others wait. Of a process
that died they hear at once."""


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it."""

    member: int
    """0 for the first, which alone writes and scores (torch calls this the rank)."""
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, scores and speaks."""
        return self.member == 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """`network`, whose gradients become the sum over the team as they are computed.

        For as long as the same parameters are trained. All begin with the first one's weights.
        """
        if self.size == 1:
            return network
        wrapped = DistributedDataParallel(network)
        wrapped.register_comm_hook(None, _sum_gradients)
        return wrapped

    def gather(self, local: Tensor) -> Tensor:
        """The rows (B, …) of all processes, in their order, of which `local` (B / size, …) are
        this one's.

        The gradient of `local` is right where each process computes the same loss of all rows:
        nothing of it is left for others to add.
        """
        if self.size == 1:
            return local
        gathered: Tensor = _Gather.apply(local, self)
        return gathered

    def tell(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in all of them; it runs there alone."""
        if self.size == 1:
            return make()
        told: list[Any] = [make() if self.leads else None]
        dist.broadcast_object_list(told, src=0)
        result: T = told[0]
        return result

    def ask(self, answer: T) -> list[T]:
        """The answers of all processes, in their order."""
        if self.size == 1:
            return [answer]
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, answer)
        return answers


ALONE = Team(member=0, size=1)


def launched_size() -> int:
    """How many processes torchrun started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def leads() -> bool:
    """Whether this process is the first of those that torchrun started; True without it."""
    return launched_size() == 1 or os.environ.get("RANK") == "0"


@contextlib.contextmanager
def joining(device: torch.device) -> Iterator[Team]:
    """Join the processes that torchrun started with this one, for the block; alone without it.

    Each takes the GPU of its number on its machine.

    Raises:
        RuntimeSetupError: more processes on this machine than GPUs, or a device on which only one
            process trains.
        TrainingError: another process ended or can't be reached, in the block too.
    """
    if launched_size() == 1:
        yield ALONE
        return
    take_device(device)
    with naming_the_lost():
        store, member, size = next(rendezvous("env://", timeout=PATIENCE))
        backend, timeout = ("nccl", PATIENCE) if device.type == "cuda" else ("gloo", CONNECT)
        dist.init_process_group(
            backend,
            store=met(store, member, size),
            rank=member,
            world_size=size,
            timeout=timeout,
        )
        if timeout != PATIENCE:
            _set_timeout(PATIENCE)
        try:
            yield Team(member, size)
        finally:
            dist.destroy_process_group()


def met(store: Store, member: int, size: int) -> PrefixStore:
    """A part of `store` that only the processes use which are here now, once all `size` are.

    torchrun keeps its store when it starts processes again, and in it what those before them wrote:
    gloo and NCCL would take the addresses of the dead for those of the living. So each says that it
    is here, by a word that nobody used before, then which words it saw of all. That all saw the
    same, this one's among them, only those who are here now can say.

    Raises:
        DistError: another process came in this one's place, or some didn't come in twelve hours.
    """
    word, until = uuid.uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
    here, saw = ([f"{key} {each}" for each in range(size)] for key in ("here", "saw"))
    store.set(here[member], word)
    while time.monotonic() < until:
        if store.check(here):
            words = [each.decode() for each in store.multi_get(here)]
            if words[member] != word:
                raise dist.DistError(f"another process is number {member} of this training now")
            team = " ".join(words)
            store.set(saw[member], team)
            if store.check(saw) and all(each.decode() == team for each in store.multi_get(saw)):
                return PrefixStore(hashlib.sha256(team.encode()).hexdigest(), store)
        time.sleep(MEETING_PAUSE_S)
    raise dist.DistError(f"some of the {size} processes of this training did not come")


def _set_timeout(timeout: timedelta) -> None:
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(timeout)
    else:  # torch before 2.13
        dist.distributed_c10d._set_pg_timeout(timeout)


def launched_member() -> int:
    """Which of the processes that torchrun started this one is, from 0; 0 without it."""
    return int(os.environ["RANK"]) if launched_size() > 1 else 0


def take_device(device: torch.device) -> None:
    """Have this process, one of those that torchrun started, use the GPU of its number.

    Raises:
        RuntimeSetupError: more processes on this machine than GPUs, or a device of which a machine
            has but one.
    """
    if device.type == "mps":
        raise RuntimeSetupError("device 'mps' is for one process; leave torchrun out")
    if device.type == "cuda":
        there, here = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if here > there:
            raise RuntimeSetupError(
                f"torchrun started {here} processes on this machine, which has {there} GPUs; give "
                f"--nproc-per-node {there}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Turn what comes of the end of another process into one line.

    Raises:
        TrainingError: another process ended or can't be reached.
    """
    try:
        yield
    except RuntimeError as error:  # torch's own errors are children of it, but not gloo's
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            "another process of this training ended or can't be reached; its own lines say why"
        ) from None


def remembered(key: str, make: Callable[[], str]) -> str:
    """What `make` returned when a process of this launch first asked for `key`.

    torchrun keeps a store that outlives the processes that it restarts. Without torchrun nothing
    is remembered: `make` is called.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return make()
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = PrefixStore("airnet", TCPStore(*place, is_master=False))
    if not store.check([key]):
        store.set(key, make())
    return str(store.get(key).decode())


def synchronize_batch_norms(network: nn.Module, team: Team, device: torch.device) -> None:
    """Have the batch norms of `network` take the statistics of the whole team's batch, in place.

    Parameters, buffers and their names stay.
    """
    if team.size == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = _TeamBatchNorm  # type: ignore[assignment]  # the same but for forward
            module.team = team  # type: ignore[assignment]


class _TeamBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the images of all processes, of which each has as many; for the CPU."""

    team: Team

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (B / size, C, …), in training by mean and variance of all (B, C, …)."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            axes = [axis for axis in range(input.ndim) if axis != 1]
            moments = torch.stack(torch.var_mean(input.float(), axes, correction=0))  # (2, C)
            variances, means = torch.stack(_gather(moments, self.team), dim=1)  # (size, C) each
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0)
            count = self.team.size * input.numel() // input.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normalized: Tensor = _Normalize.apply(
            input, self.weight, self.bias, mean, variance, self.eps, count
        )
        return normalized


class _Normalize(torch.autograd.Function):
    """(input - mean) / deviation * weight + bias, where mean and variance are of all processes.

    torch's kernels with fixed statistics do all but the statistics' own part of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        return nn.functional.batch_norm(input, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance = ctx.saved_tensors
        grad, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], input, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])  # (2, C): of grad * normalized, of grad
        dist.all_reduce(sums)
        scale = (variance + ctx.eps).rsqrt()
        # weight * scale / count * (sums[1] + normalized * sums[0]), as slope * input + offset
        slope = weight * scale.square() * sums[0] / ctx.count
        offset = weight * scale * sums[1] / ctx.count - slope * mean
        shape = (1, -1) + (1,) * (input.ndim - 2)
        grad = grad - (slope.view(shape) * input + offset.view(shape)).to(grad.dtype)
        return grad, grad_weight, grad_bias, None, None, None, None


class _Gather(torch.autograd.Function):
    """See `Team.gather`."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, team: Team) -> Tensor:
        ctx.part = slice(team.member * len(local), (team.member + 1) * len(local))
        return torch.cat(_gather(local, team))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.part], None


def _gather(local: Tensor, team: Team) -> list[Tensor]:
    local = local.contiguous()
    parts = [torch.empty_like(local) for _ in range(team.size)]
    dist.all_gather(parts, local)
    return parts


def _sum_gradients(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The sum, where DistributedDataParallel itself would take the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed
