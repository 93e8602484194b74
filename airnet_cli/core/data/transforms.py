"""From a file to the network's input: reading and resizing one image, augmenting a batch.

Images stay uint8 RGB until they are on the device; normalisation lives in the network.
Augmentation works on whole batches there, with random numbers that depend only on the generator it
is given: never on workers.

Letters: B images, H x W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from airnet_cli.core.data.images import try_open_image
from airnet_cli.core.model.airnet import IMAGENET_MEAN
from airnet_cli.errors import DataError


def read_image(path: Path, *, height_px: int, width_px: int) -> Tensor:
    """Read an image as RGB uint8 (3, H, W), resized (bilinear, antialiased) to `height_px` x
    `width_px`.

    The EXIF orientation is obeyed; the aspect ratio is not kept (paper 4.2: all images are
    resized). Of several frames or pages, the first counts.

    Raises:
        DataError: the file is missing or is no image that can be decoded.
    """
    image = try_read_image(path, height_px=height_px, width_px=width_px)
    if isinstance(image, Tensor):
        return image
    raise DataError(f"image '{path}' can't be read: {image}")


def try_read_image(path: Path, *, height_px: int, width_px: int) -> Tensor | str:
    """As `read_image`; or, in a few words, why the image can't be read."""
    image = try_open_image(path)
    if isinstance(image, str):
        return image
    return image_tensor(image, height_px=height_px, width_px=width_px)


def image_tensor(image: Image.Image, *, height_px: int, width_px: int) -> Tensor:
    """An RGB image as uint8 (3, H, W), resized (bilinear, antialiased) where it has another
    size.
    """
    if image.size != (width_px, height_px):
        image = image.resize((width_px, height_px), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random horizontal flip, pad-and-crop and random erasing (Zhong et al. 2020) for a batch.

    The erased patch becomes the ImageNet mean, so that it is exactly zero after normalisation. Its
    area and aspect (height / width) are drawn uniformly; a patch that does not fit into the image
    is drawn again. Pad-and-crop puts a frame of the same colour around the image and cuts an image
    of the old size out of it, at a place drawn uniformly: the picture is shifted.
    """

    flip_probability: float
    erasing_probability: float
    erasing_area: tuple[float, float]
    """Smallest and largest share of the image's area."""
    erasing_aspect: tuple[float, float]
    """Smallest and largest height / width."""
    pad_crop_px: int
    """Width of the frame, on each side; 0: no pad-and-crop (the paper)."""

    def __call__(
        self,
        images: Tensor,
        random: np.random.Generator,
        *,
        first: int = 0,
        drawn: int | None = None,
    ) -> Tensor:
        """Augment uint8 `images` (B, 3, H, W), never in place; float32 in 0-1, same shape.

        They may be part of a batch of `drawn` images, from its image `first` on: numbers are drawn
        for all of it, so that each image becomes what it becomes in the whole batch.
        """
        batch, _, height, width = images.shape
        drawn = batch if drawn is None else drawn
        part = slice(first, first + batch)
        flipped = torch.from_numpy(random.random(drawn)[part] < self.flip_probability)
        patches = [self._draw_patch(height, width, random) for _ in range(drawn)][part]
        erased = torch.zeros(batch, 1, height, width, dtype=torch.bool)
        for i, patch in enumerate(patches):
            if patch is not None:
                erased[i, 0, patch.top : patch.bottom, patch.left : patch.right] = True
        device = images.device
        flipped, erased = flipped.to(device)[:, None, None, None], erased.to(device)
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        augmented = torch.where(flipped, images.flip(3), images).float().div_(255)
        if self.pad_crop_px:  # drawn last: without it nothing is, and earlier runs stay the same
            corners = random.integers(2 * self.pad_crop_px + 1, size=(drawn, 2))[part]  # top, left
            augmented = self._pad_crop(augmented, torch.from_numpy(corners).to(device), mean)
        return torch.where(erased, mean, augmented)

    def _draw_patch(self, height: int, width: int, random: np.random.Generator) -> "Patch | None":
        if random.random() >= self.erasing_probability:
            return None
        for _ in range(MOST_DRAWS):
            area = random.uniform(*self.erasing_area) * height * width
            aspect = random.uniform(*self.erasing_aspect)
            patch_height, patch_width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < patch_height < height and 0 < patch_width < width:
                top = int(random.integers(height - patch_height + 1))
                left = int(random.integers(width - patch_width + 1))
                return Patch(top, top + patch_height, left, left + patch_width)
        return None

    def _pad_crop(self, images: Tensor, corners: Tensor, colour: Tensor) -> Tensor:
        """Frame `images` (B, 3, H, W) in `colour`; cut them out from `corners` (B, 2) on."""
        batch, channels, height, width = images.shape
        frame = self.pad_crop_px
        padded = colour.expand(batch, channels, height + 2 * frame, width + 2 * frame).clone()
        padded[:, :, frame : frame + height, frame : frame + width] = images
        rows = corners[:, 0, None] + torch.arange(height, device=images.device)  # (B, H)
        columns = corners[:, 1, None] + torch.arange(width, device=images.device)  # (B, W)
        image = torch.arange(batch, device=images.device)
        cut = padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None]]
        return cut.permute(0, 3, 1, 2)  # (B, 3, H, W)


MOST_DRAWS = 100
"""After so many patches that did not fit, the image stays whole (the usual rule)."""


@dataclass(frozen=True)
class Patch:
    """A rectangle of pixels, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int
