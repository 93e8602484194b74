"""Training: one step, one epoch, and `fit`, a generator of epoch reports. Knows no files.

Nothing of an epoch depends on the ones before it but the network and the optimizer: batches and
augmentation are drawn anew from (seed, epoch). So a run can be resumed at any epoch's start and go
on bit by bit the same.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from airnet_cli.core.data.dataset import TrainingLoader
from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.losses import HeadLoss, Loss, compute_loss
from airnet_cli.core.model.airnet import AirNet
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
    """Learning rate by epoch: multiplied by `factor` from each of `epochs` on (paper 4.2)."""

    learning_rate: float
    factor: float
    epochs: Sequence[int]

    def at(self, epoch: int) -> float:
        """The rate of the epoch that follows `epoch` finished ones.

        >>> [Schedule(learning_rate=1.0, factor=0.5, epochs=[2, 3]).at(i) for i in range(4)]
        [1.0, 1.0, 0.5, 0.25]
        """
        return self.learning_rate * self.factor ** sum(epoch >= step for step in self.epochs)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The parts that training is made of; `network` and `optimizer` change while it runs."""

    network: AirNet
    optimizer: torch.optim.Optimizer
    """A group of its parameters may have a `RATE_FACTOR`."""
    schedule: Schedule
    sampler: IdentitySampler
    loader: TrainingLoader
    """Over `sampler`."""
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

    def fit(
        self, *, epochs: int, first_epoch: int = 0, progress: Progress = silent
    ) -> Iterator[EpochReport]:
        """Train from `first_epoch` (finished ones, 0 for a new run) to `epochs`, a report after
        each.

        Raises:
            DataError: an image can't be read.
            TrainingError: the loss is not finite any more.
        """
        for epoch in range(first_epoch, epochs):
            yield self._train_epoch(epoch, epochs, progress)

    def _train_epoch(self, epoch: int, epochs: int, progress: Progress) -> EpochReport:
        started = time.perf_counter()
        learning_rate = self.schedule.at(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(RATE_FACTOR, 1.0)
        self.sampler.set_epoch(epoch)
        random = np.random.default_rng((self.seed, epoch, AUGMENTATION_STREAM))
        self.network.train()
        sums: Tensor | None = None
        images = 0
        stage = f"epoch {epoch + 1}/{epochs}"
        for done, batch in enumerate(self.loader, start=1):
            labels = self.labels[list(batch.indices)]
            loss = self.step(batch.images, labels, random)
            # Summed on the device: reading a loss here would wait for the device at every step.
            terms = torch.stack([loss.total, *(t for h in loss.heads for t in _terms(h))]).detach()
            sums = terms if sums is None else sums + terms
            images += len(batch.images)
            progress(stage, done, len(self.sampler), "batches")
        assert sums is not None  # the sampler refuses data sets without a single batch
        total, *per_head = (sums / len(self.sampler)).tolist()
        if not np.isfinite(total):
            raise TrainingError(
                f"the loss is {total} in epoch {epoch + 1}; start again with a lower "
                f"training.learning_rate than {learning_rate:g}, or with precision fp32"
            )
        heads = tuple(
            HeadReport(name, *per_head[3 * i : 3 * i + 3])
            for i, name in enumerate(self.network.head_names)
        )
        seconds = time.perf_counter() - started
        return EpochReport(epoch + 1, epochs, total, heads, learning_rate, images, seconds)

    def step(self, images: Tensor, labels: Tensor, random: np.random.Generator) -> Loss:
        """One optimisation step on uint8 `images` (B, 3, H, W) of the classes `labels` (B,)."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            outputs = self.network(self.augmentation(images, random))
        loss = compute_loss(
            outputs,
            labels,
            triplet_margin=self.triplet_margin,
            label_smoothing=self.label_smoothing,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss


RATE_FACTOR = "rate_factor"
"""Key of an optimizer's group: its learning rate as a multiple of the schedule's."""

AUGMENTATION_STREAM = 1
"""Tells the augmentation's random numbers from the sampler's, which share seed and epoch."""


def _terms(head: HeadLoss) -> tuple[Tensor, Tensor, Tensor]:
    return head.identity, head.triplet, head.active
