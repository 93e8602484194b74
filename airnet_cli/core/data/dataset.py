"""Images by index for torch's loader, and the loaders of training and inference.

An image that can't be read is carried along as text and becomes an error in this process: what a
worker process raises is a traceback by the time it arrives.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from airnet_cli.core.data.transforms import try_read_image
from airnet_cli.errors import DataError


@dataclass(frozen=True)
class ReadBatch:
    """Some images that were read, and those among them that could not be."""

    images: Tensor
    """(B, 3, H, W) uint8"""
    indices: tuple[int, ...]
    """The position in the list of paths, of each image."""
    bad: tuple[tuple[int, str], ...]
    """Position and reason, of each that can't be read."""

    def pin_memory(self) -> "ReadBatch":
        """What torch's loader calls before a copy to a GPU."""
        return ReadBatch(self.images.pin_memory(), self.indices, self.bad)


class ImageDataset(Dataset[tuple[int, Tensor | str]]):
    """Images of one size: item i is (i, uint8 RGB (3, H, W)), or (i, why it can't be read)."""

    def __init__(self, paths: Sequence[Path], *, height_px: int, width_px: int) -> None:
        """Read the files `paths` when they are asked for."""
        self.paths = paths
        self._height_px = height_px
        self._width_px = width_px

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        """Read image `index`; raises nothing."""
        path = self.paths[index]
        return index, try_read_image(path, height_px=self._height_px, width_px=self._width_px)

    def collate(self, items: Sequence[tuple[int, Tensor | str]]) -> ReadBatch:
        """Stack what could be read."""
        images = [image for _, image in items if isinstance(image, Tensor)]
        none = torch.empty(0, 3, self._height_px, self._width_px, dtype=torch.uint8)
        return ReadBatch(
            images=torch.stack(images) if images else none,
            indices=tuple(index for index, image in items if isinstance(image, Tensor)),
            bad=tuple((index, image) for index, image in items if isinstance(image, str)),
        )


class TrainingLoader:
    """The batches of the epoch that a sampler has planned, each complete or an error."""

    def __init__(
        self, dataset: ImageDataset, sampler: Sampler[list[int]], *, workers: int, pin_memory: bool
    ) -> None:
        """Read in `workers` processes; 0: in this one."""
        self._dataset = dataset
        self._loader = DataLoader[ReadBatch](
            dataset,  # type: ignore[arg-type]  # items are collated to a ReadBatch
            batch_sampler=sampler,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_begin,
            collate_fn=dataset.collate,
        )

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[ReadBatch]:
        """Yield the planned batches in order.

        Raises:
            DataError: an image can't be read.
        """
        for batch in self._loader:
            raise_for_bad(self._dataset.paths, batch.bad)
            yield batch


def inference_loader(
    dataset: ImageDataset, *, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[ReadBatch]:
    """All images in order, in batches of `batch_size` paths."""
    return DataLoader[ReadBatch](
        dataset,  # type: ignore[arg-type]  # as above
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin,
        collate_fn=dataset.collate,
    )


def raise_for_bad(paths: Sequence[Path], bad: Sequence[tuple[int, str]]) -> None:
    """Raise a DataError for the first of some images that can't be read; nothing for none."""
    for index, reason in bad:
        raise DataError(f"image '{paths[index]}' can't be read: {reason}")


def _begin(_worker: int) -> None:
    """Keep a worker to one thread, as the network's threads need the other cores; and deaf to
    Ctrl-C, which its parent hears. It notices its parent's death by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
