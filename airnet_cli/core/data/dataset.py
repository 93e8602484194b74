"""Images by index for torch's loader, and the loaders of training and inference."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import read_image


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images of one size: item i is (uint8 RGB (3, H, W), i)."""

    def __init__(self, paths: Sequence[Path], *, height_px: int, width_px: int) -> None:
        """Read the files `paths` when they are asked for."""
        self._paths = paths
        self._height_px = height_px
        self._width_px = width_px

    def __len__(self) -> int:
        """The number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read image `index`; raises `DataError` where it can't be."""
        image = read_image(self._paths[index], height_px=self._height_px, width_px=self._width_px)
        return image, index


Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) uint8, and their indices (B,)."""


def training_loader(
    dataset: ImageDataset, sampler: IdentitySampler, *, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """The batches of the epoch that `sampler` has planned."""
    return DataLoader[Batch](
        dataset,  # type: ignore[arg-type]  # items (Tensor, int) are collated to a Batch
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
    )


def inference_loader(
    dataset: ImageDataset, *, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """All images in order."""
    return DataLoader[Batch](
        dataset,  # type: ignore[arg-type]  # as above
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
    )


def _one_thread(_worker: int) -> None:
    """Keep a worker to one thread: the network's threads need the other cores."""
    torch.set_num_threads(1)
