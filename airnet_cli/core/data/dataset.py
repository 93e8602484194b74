"""Images by index for torch's loader, and the loaders of training and inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import read_image, try_read_image


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


@dataclass(frozen=True)
class ReadBatch:
    """Images that were read one after the other, and those among them that could not be."""

    images: Tensor
    """(B, 3, H, W) uint8"""
    indices: tuple[int, ...]
    """The position in the list of paths, of each image."""
    bad: tuple[tuple[int, str], ...]
    """Position and reason, of each that can't be read."""

    def pin_memory(self) -> "ReadBatch":
        """What torch's loader calls before a copy to a GPU."""
        return ReadBatch(self.images.pin_memory(), self.indices, self.bad)


class _Reading(Dataset[tuple[int, Tensor | str]]):
    """Item i is (i, the image), or (i, why it can't be read).

    Nothing is raised: an error that crosses from a worker process is a traceback by then.
    """

    def __init__(self, paths: Sequence[Path], *, height_px: int, width_px: int) -> None:
        self._paths = paths
        self._height_px = height_px
        self._width_px = width_px

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        path = self._paths[index]
        return index, try_read_image(path, height_px=self._height_px, width_px=self._width_px)

    def collate(self, items: Sequence[tuple[int, Tensor | str]]) -> ReadBatch:
        images = [image for _, image in items if isinstance(image, Tensor)]
        none = torch.empty(0, 3, self._height_px, self._width_px, dtype=torch.uint8)
        return ReadBatch(
            images=torch.stack(images) if images else none,
            indices=tuple(index for index, image in items if isinstance(image, Tensor)),
            bad=tuple((index, image) for index, image in items if isinstance(image, str)),
        )


def inference_loader(
    paths: Sequence[Path],
    *,
    height_px: int,
    width_px: int,
    batch_size: int,
    workers: int,
    pin_memory: bool,
) -> DataLoader[ReadBatch]:
    """All images of `paths` in order, in batches of `batch_size` paths."""
    dataset = _Reading(paths, height_px=height_px, width_px=width_px)
    return DataLoader[ReadBatch](
        dataset,  # type: ignore[arg-type]  # items are collated to a ReadBatch
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        collate_fn=dataset.collate,
    )


def _one_thread(_worker: int) -> None:
    """Keep a worker to one thread: the network's threads need the other cores."""
    torch.set_num_threads(1)
