"""Images to embeddings, streamed: reader -> network -> whoever asked, in order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from airnet_cli.core.data.dataset import ImageDataset, inference_loader
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import PrecisionName, autocast


def embed_batches(
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
) -> Iterator[Tensor]:
    """Yield the embeddings (B, D), float32 on the CPU, of the images `paths`, batch by batch in
    order.

    Raises:
        DataError: an image can't be read.
    """
    loader = inference_loader(
        ImageDataset(paths, height_px=height_px, width_px=width_px),
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    network.eval()
    for images, _ in loader:
        with torch.inference_mode(), autocast(device, precision):
            embeddings = network.embed(
                images.to(device, non_blocking=True), normalize_heads=normalize_heads
            )
        yield embeddings.cpu()


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
    stage: str = "embedding",
    progress: Progress = silent,
) -> Tensor:
    """The embeddings of `paths` as one (N, D) float32 tensor; see `embed_batches`."""
    embeddings = torch.empty(len(paths), network.embedding_size)
    row = 0
    for batch in embed_batches(
        network,
        paths,
        height_px=height_px,
        width_px=width_px,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        normalize_heads=normalize_heads,
    ):
        embeddings[row : row + len(batch)] = batch
        row += len(batch)
        progress(stage, row, len(paths), "images")
    return embeddings
