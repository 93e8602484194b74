"""Training: one step, one epoch, and `fit`, a generator of epoch reports. Knows no files.

Nothing of an epoch depends on the ones before it but the network, its average, the optimizer and
the loss scaler: batches and augmentation are drawn anew from (seed, epoch). So a run can be resumed
at any epoch's start and go on bit by bit the same.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from airnet_cli.core.averaging import WeightAverage
from airnet_cli.core.data.dataset import TrainingLoader
from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.distributed import SINGLE, World
from airnet_cli.core.losses import Loss, compute_loss
from airnet_cli.core.model.airnet import AirNet, HeadOutput
from airnet_cli.core.processes import reporting_dead_workers
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import PrecisionName, autocast
from airnet_cli.errors import TrainingError


@dataclass(frozen=True)
class HeadReport:
    """Means over an epoch's batches for one head."""

    name: str
    identity_loss: float
    triplet_loss: float
    active_triplets: float
    """Share, 0-1."""


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch."""

    epoch: int
    """1 for the first."""
    epochs: int
    loss: float
    """Eq. (7), mean over the epoch's batches."""
    heads: tuple[HeadReport, ...]
    learning_rate: float
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images trained on per second of the epoch."""
        return self.images / self.seconds


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate by epoch: warm-up, then in steps (paper 4.2) or along half a cosine."""

    shape: Literal["steps", "cosine"]
    learning_rate: float
    factor: float
    """Of each step; the cosine has none."""
    epochs: Sequence[int]
    """`steps`: from so many finished epochs on, the rate is multiplied by `factor`."""
    total_epochs: int
    """`cosine`: the rate would be 0 after so many."""
    warmup_epochs: int
    """The rate rises linearly for so many epochs; 0 for none (the paper)."""
    warmup_start: float
    """Share of the rate that the first epoch of a warm-up has."""

    def at(self, epoch: int) -> float:
        """The rate of the epoch that follows `epoch` finished ones.

        >>> steps = Schedule(
        ...     shape="steps", learning_rate=1.0, factor=0.5, epochs=[2, 3], total_epochs=4,
        ...     warmup_epochs=0, warmup_start=0.1,
        ... )
        >>> [steps.at(epoch) for epoch in range(4)]
        [1.0, 1.0, 0.5, 0.25]
        """
        rate = self.learning_rate
        match self.shape:
            case "steps":
                rate *= self.factor ** sum(epoch >= step for step in self.epochs)
            case "cosine":
                past = max(0, epoch - self.warmup_epochs)
                rate *= (
                    1 + math.cos(math.pi * past / (self.total_epochs - self.warmup_epochs))
                ) / 2
        if epoch < self.warmup_epochs:
            rate *= self.warmup_start + (1 - self.warmup_start) * epoch / self.warmup_epochs
        return rate


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The parts that training is made of; `network` and `optimizer` change while it runs."""

    network: AirNet
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    sampler: IdentitySampler
    loader: TrainingLoader
    """Over `sampler`, or over this process's share of it."""
    labels: Tensor
    """(N,), the class of each image of the loader's dataset."""
    augmentation: Augmentation
    triplet_margin: float
    label_smoothing: float
    precision: PrecisionName
    device: torch.device
    seed: int
    scaler: torch.amp.GradScaler
    """Does nothing unless the precision is fp16."""
    clip_norm: float
    """Gradients longer than this (L2, all parameters together) are shortened to it; 0: never."""
    average: WeightAverage | None
    """Of the weights after each step; None for none (the paper)."""
    world: World = SINGLE
    """The processes that train together."""

    @property
    def scored_network(self) -> AirNet:
        """The network whose weights count: the average where there is one."""
        return self.network if self.average is None else self.average.network

    def fit(
        self, *, epochs: int, first_epoch: int = 0, progress: Progress = silent
    ) -> Iterator[EpochReport]:
        """Train from `first_epoch` (finished ones, 0 for a new run) to `epochs`, a report after
        each.

        Raises:
            DataError: an image can't be read, or a process that reads them died.
            TrainingError: the loss or the weights are not finite any more; no report of that
                epoch is given. Or another process of the world ended.
        """
        network = self.world.parallel(self.network, self.device)
        for epoch in range(first_epoch, epochs):
            with reporting_dead_workers("free some, or set training.workers to 0"):
                report = self._train_epoch(network, epoch, epochs, progress)
            yield report

    def _train_epoch(
        self, network: nn.Module, epoch: int, epochs: int, progress: Progress
    ) -> EpochReport:
        started = time.perf_counter()
        learning_rate = self.schedule.at(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.sampler.set_epoch(epoch)
        random = np.random.default_rng((self.seed, epoch, AUGMENTATION_STREAM))
        self.network.train()  # scoring left it in evaluation mode
        sums: Tensor | None = None
        images = 0
        stage = f"epoch {epoch + 1}/{epochs}"
        for done, batch in enumerate(self.loader, start=1):
            labels = self.labels[list(batch.indices)]
            loss = self.step(batch.images, labels, random, network=network)
            # Summed on the device: reading a loss here would wait for the device at every step.
            per_head = [t for h in loss.heads for t in (h.identity, h.triplet, h.active)]
            terms = torch.stack([loss.total, *per_head]).detach()
            sums = terms if sums is None else sums + terms
            images += len(batch.images) * self.world.size
            if done % CHECK_EVERY == 0:
                self._check_loss(float(sums[0]), epoch, done)
            progress(stage, done, len(self.sampler), "batches")
        assert sums is not None  # the sampler refuses data sets without a single batch
        total, *means = (sums / len(self.sampler)).tolist()
        self._check_loss(total, epoch, len(self.sampler))
        self._check_weights(epoch)
        heads = tuple(
            HeadReport(name, *means[3 * i : 3 * i + 3])
            for i, name in enumerate(self.network.head_names)
        )
        seconds = time.perf_counter() - started
        return EpochReport(epoch + 1, epochs, total, heads, learning_rate, images, seconds)

    def _check_loss(self, loss: float, epoch: int, batches: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch + 1} (noticed after batch {batches} of "
                f"{len(self.sampler)}); {self._what_to_do(epoch)}"
            )

    def _check_weights(self, epoch: int) -> None:
        """The last step's loss is of the weights before it: a broken one shows in the weights."""
        floating = {k: t for k, t in self.network.state_dict().items() if t.is_floating_point()}
        is_finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
        broken = [name for name, finite in zip(floating, is_finite, strict=True) if not finite]
        if broken:
            raise TrainingError(
                f"{len(broken)} tensors are not finite after epoch {epoch + 1}, {broken[0]} among "
                f"them; {self._what_to_do(epoch)}"
            )

    def _what_to_do(self, epoch: int) -> str:
        return (
            f"start again with a lower training.learning_rate than {self.schedule.at(epoch):g}, "
            "with training.clip_norm=5, or with precision fp32"
        )

    def step(
        self,
        images: Tensor,
        labels: Tensor,
        random: np.random.Generator,
        *,
        network: nn.Module | None = None,
    ) -> Loss:
        """One optimisation step on uint8 `images` (B, 3, H, W) of the classes `labels` (B,).

        Each process of several gives its share of the batch, and gets the loss of all of it.
        `network` is what `World.parallel` made of the trainer's; without it the trainer's itself.
        """
        world = self.world
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        first, drawn = world.rank * len(images), world.size * len(images)
        with autocast(self.device, self.precision):
            augmented = self.augmentation(images, random, first=first, drawn=drawn)
            outputs = (self.network if network is None else network)(augmented)
        loss = compute_loss(
            [_gathered(output, world) for output in outputs],
            world.gather(labels),
            triplet_margin=self.triplet_margin,
            label_smoothing=self.label_smoothing,
        )
        self.optimizer.zero_grad(set_to_none=True)
        # The gradients become the mean over all processes; it is their sum that is wanted.
        scaled = self.scaler.scale(loss.total * world.size)
        scaled.backward()  # type: ignore[no-untyped-call]
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(
                [p for group in self.optimizer.param_groups for p in group["params"]],
                self.clip_norm,
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network)
        return loss


CHECK_EVERY = 50
"""Batches between two looks at the loss: each waits for the device to finish."""

AUGMENTATION_STREAM = 1
"""Tells the augmentation's random numbers from the sampler's, which share seed and epoch."""


def _gathered(output: HeadOutput, world: World) -> HeadOutput:
    """What the losses need of a head, for the images of all processes."""
    if world.size == 1:
        return output
    assert output.logits is not None, "a network in training has logits"
    return replace(output, pooled=world.gather(output.pooled), logits=world.gather(output.logits))
