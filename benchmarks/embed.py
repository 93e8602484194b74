"""Embedding JPEGs from disk, beside the network alone on a batch that is ready.

Random weights: the time is the same. Files are noise drawn small and enlarged, of 64 x 128 pixels.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from airnet_cli.core.inference import embed_batches, embed_tensor
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import BackboneName, build_backbone
from airnet_cli.workflows.memory import keep_freed_memory
from benchmarks.measure import Row, Sizes, in_turn, peak_memory_mb

CPU = torch.device("cpu")
BACKBONES: tuple[tuple[BackboneName, int, int, int, str], ...] = (
    ("mobilenet_v2", 128, 64, 32, "at most 1.18 (85% of its images/s)"),
    ("resnet50", 384, 192, 8, "at most 1.05 (95%)"),
    ("resnet18", 128, 64, 32, ""),
    ("resnet18_ibn", 128, 64, 32, ""),
    ("resnet50_ibn", 384, 192, 8, "at most 1.05 (95%)"),
    ("resnet50_gc", 384, 192, 8, "at most 1.05 (95%)"),
)


def rows(sizes: Sizes) -> Iterator[Row]:
    """Each backbone at its usual size; memory for 1,000 and 50,000 images in full."""
    keep_freed_memory()
    chosen = sizes.pick(BACKBONES, BACKBONES[:2])
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), 64)
        for backbone, height, width, batch, target in chosen:
            size = height, width
            paths = files[: sizes.pick(4 * batch, batch)]
            network = build(backbone)
            ready = torch.randint(0, 256, (min(batch, len(paths)), 3, *size), dtype=torch.uint8)
            seconds, rival_seconds = in_turn(
                partial(embed, network, paths, size, batch),
                partial(alone, network, ready, len(paths)),
                turns=sizes.pick(4, 2),
            )
            yield Row(
                path="embed",
                case=f"{backbone}, {size[0]} x {size[1]}, {len(paths)} JPEGs, batch {batch}",
                rival="the network alone on a ready batch",
                seconds=seconds,
                rival_seconds=rival_seconds,
                target=target or "none",
                note=f"{len(paths) / seconds:.1f} and {len(paths) / rival_seconds:.1f} images/s",
            )
        for images in sizes.pick((1_000, 50_000), ()):
            yield Row(
                path="embed",
                case=f"memory for {images:,} images, mobilenet_v2",
                rival="as the row before",
                seconds=seconds,
                rival_seconds=rival_seconds,
                target="memory alone counts: the same for 1,000 and 50,000",
                memory_mb=peak_memory_mb(prepare, embed_many, folder, images),
            )


def write_images(folder: Path, number: int) -> list[Path]:
    """JPEGs of 64 x 128 pixels (width x height)."""
    random = np.random.default_rng(0)
    paths = []
    for index in range(number):
        small = Image.fromarray(random.integers(0, 256, (16, 8, 3), dtype=np.uint8))
        paths.append(folder / f"{index:03}.jpg")
        small.resize((64, 128), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def build(backbone: BackboneName) -> AirNet:
    """An untrained network in evaluation mode, as `restore_network` gives it."""
    network = AirNet(build_backbone(backbone), variant="airnet", identities=None)
    return network.to(memory_format=torch.channels_last).eval()


def embed(network: AirNet, paths: list[Path], size: tuple[int, int], batch: int) -> None:
    """Ours: files to embeddings."""

    def run(images: torch.Tensor) -> torch.Tensor:
        return embed_tensor(network, images, device=CPU, precision="fp32", normalize_heads=False)

    for _ in embed_batches(
        run, paths, height_px=size[0], width_px=size[1], batch_size=batch, workers=0, device=CPU
    ):
        pass


def alone(network: AirNet, ready: torch.Tensor, images: int) -> None:
    """The limit: the same number of images, which are in memory."""
    with torch.inference_mode():
        for _ in range(0, images, len(ready)):
            network.embed(ready)


def prepare(folder: str, images: int) -> tuple[AirNet, list[Path]]:
    """A warm network and so many paths, in another process."""
    keep_freed_memory()
    files = sorted(Path(folder).glob("*.jpg"))
    network = build("mobilenet_v2")
    embed(network, files[:32], (128, 64), 32)
    return network, [files[index % len(files)] for index in range(images)]


def embed_many(prepared: tuple[AirNet, list[Path]]) -> None:
    """All of the paths."""
    embed(*prepared, (128, 64), 32)
