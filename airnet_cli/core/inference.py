"""Images to embeddings, streamed: reader -> network -> whoever asked, in order, each timed."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from airnet_cli.core.data.dataset import ImageDataset, inference_loader, raise_for_bad
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.processes import reporting_dead_workers
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import PrecisionName, autocast


class Network(Protocol):
    """What embedding asks of a network: AirNet, or an engine that runs an exported one."""

    @property
    def head_slices(self) -> dict[str, slice]:
        """Where each head's vector lies in the embedding."""

    def embed(self, images: Tensor) -> Tensor:
        """The embeddings (B, D) of RGB `images` (B, 3, H, W), uint8 or floating point in 0-1."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """What became of some images that follow each other."""

    indices: tuple[int, ...]
    """Positions in the list of paths, of the images that could be read."""
    embeddings: Tensor
    """(B, D) float32 on the CPU, a row for each of `indices`."""
    bad: tuple[tuple[int, str], ...]
    """Position and reason, of each image that can't be read."""
    reading_seconds: float
    """Spent waiting for the images; worker processes read while the network computes."""
    network_seconds: float


def embed_batches(
    embed: Callable[[Tensor], Tensor],
    paths: Sequence[Path],
    *,
    height_px: int,
    width_px: int,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[EmbeddedBatch]:
    """Read `paths` in order, `batch_size` at a time, and give each batch to `embed`.

    `embed` takes uint8 images (B, 3, H, W) on the CPU, B at least 1, and returns (B, D). An image
    that can't be read raises nothing: it is in its batch's `bad`.

    Raises:
        DataError: a process that reads images died. Whoever has workers and does much between two
            batches uses `reporting_dead_workers` too: the death may be met there.
    """
    loader = inference_loader(
        ImageDataset(paths, height_px=height_px, width_px=width_px),
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    started = time.perf_counter()
    with reporting_dead_workers("free some, or read with --workers 0"):
        for batch in loader:
            read = time.perf_counter()
            embeddings = embed(batch.images) if batch.indices else torch.empty(0, 0)
            embedded = time.perf_counter()
            yield EmbeddedBatch(
                indices=batch.indices,
                embeddings=embeddings,
                bad=batch.bad,
                reading_seconds=read - started,
                network_seconds=embedded - read,
            )
            started = time.perf_counter()


def embed_tensor(
    network: Network,
    images: Tensor,
    *,
    device: torch.device,
    precision: PrecisionName,
    normalize_heads: bool,
    heads: Sequence[str] | None = None,
    flip: bool = False,
) -> Tensor:
    """The embeddings (B, D), float32 on the CPU, of RGB `images` (B, 3, H, W), uint8 or 0-1.

    Args:
        network: in evaluation mode, on `device`; an engine's is the CPU.
        images: of the size that the network was trained on.
        device: where to compute.
        precision: autocast; fp32 changes nothing.
        normalize_heads: give each head's vector length 1.
        heads: only these, in the network's order; None for all.
        flip: the mean of the embeddings of image and mirror image, before any normalisation of the
            vectors (field usage: flip testing). Pixels are normalised once, inside the network.
    """
    images = images.to(device, non_blocking=True)
    with torch.inference_mode(), autocast(device, precision):
        embeddings = network.embed(images)  # (B, D)
        if flip:
            embeddings = (embeddings + network.embed(images.flip(3))) / 2
        parts = [
            embeddings[:, part]
            for name, part in network.head_slices.items()
            if heads is None or name in heads
        ]
        if normalize_heads:
            parts = [nn.functional.normalize(part, dim=1) for part in parts]
        return torch.cat(parts, dim=1).float().cpu()


def embed_images(
    network: AirNet,
    paths: Sequence[Path],
    *,
    height_px: int,
    width_px: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: PrecisionName,
    normalize_heads: bool,
    heads: Sequence[str] | None = None,
    flip: bool = False,
    stage: str = "embedding",
    progress: Progress = silent,
) -> Tensor:
    """The embeddings of the images `paths` as one (N, D) float32 tensor; see `embed_tensor`.

    Raises:
        DataError: an image can't be read, or a process that reads them died.
    """
    network.eval()

    def embed(images: Tensor) -> Tensor:
        return embed_tensor(
            network,
            images,
            device=device,
            precision=precision,
            normalize_heads=normalize_heads,
            heads=heads,
            flip=flip,
        )

    width = sum(
        part.stop - part.start
        for name, part in network.head_slices.items()
        if heads is None or name in heads
    )
    embeddings = torch.empty(len(paths), width)
    row = 0
    with reporting_dead_workers("free some, or read with --workers 0"):
        for batch in embed_batches(
            embed,
            paths,
            height_px=height_px,
            width_px=width_px,
            batch_size=batch_size,
            workers=workers,
            device=device,
        ):
            raise_for_bad(paths, batch.bad)
            embeddings[row : row + len(batch.embeddings)] = batch.embeddings
            row += len(batch.embeddings)
            progress(stage, row, len(paths), "images")
    return embeddings
