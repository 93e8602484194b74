"""Images of strangers: spoilt, cut, huge, odd; an image or a few words, and nothing else."""

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from airnet_cli.core.data.transforms import try_read_image

SIZE = {"height_px": 8, "width_px": 4}


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    random_ = np.random.default_rng(4)
    noise = Image.fromarray(random_.integers(0, 256, (24, 12, 3), dtype=np.uint8))
    file = BytesIO()
    image = noise.convert(mode) if mode != "I;16" else Image.new(mode, (12, 24), 9000)
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> Any:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


FRAMES = [Image.new("RGB", (12, 24), colour) for colour in ("red", "green", "blue")]
SEEDS = {
    "jpeg": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True, exif=turned()),
    "cmyk": saved("JPEG", "CMYK"),
    "png": saved("PNG"),
    "palette": saved("PNG", "P", transparency=3),
    "deep": saved("PNG", "I;16"),
    "alpha": saved("PNG", "RGBA", exif=turned()),
    "gif": saved("GIF", save_all=True, append_images=FRAMES),
    "webp": saved("WEBP", exif=turned()),
    "animated": saved("WEBP", save_all=True, append_images=FRAMES),
    "tiff": saved("TIFF", compression="tiff_lzw"),
    "pages": saved("TIFF", save_all=True, append_images=FRAMES, compression="tiff_deflate"),
    "deep-tiff": saved("TIFF", "I;16"),
    "bmp": saved("BMP"),
    "ppm": saved("PPM"),
}


def check(read: Tensor | str) -> bool:
    """Whether it was read; either way it is what the docstring says."""
    if isinstance(read, str):
        assert read
        assert read.isprintable()
        return False
    assert read.shape == (3, 8, 4)
    assert read.dtype == torch.uint8
    return True


def test_spoilt_images(tmp_path: Path, survive, damage) -> None:
    """Bytes changed anywhere, under any ending: pixels of the right size, or words."""
    names = ["x.jpg", "x.png", "x", "x.tiff", "x.npy"]
    read = dict.fromkeys(SEEDS, 0)

    def attempt(chance: random.Random) -> None:
        kind = chance.choice(list(SEEDS))
        path = tmp_path / chance.choice(names)
        path.write_bytes(damage(SEEDS[kind], chance))
        read[kind] += check(try_read_image(path, **SIZE))

    survive("images", attempt)
    assert sum(count > 0 for count in read.values()) > len(read) / 2, "some damage does no harm"


@pytest.mark.parametrize("kind", SEEDS)
def test_cut_images(tmp_path: Path, kind: str) -> None:
    """Cut off anywhere: the same pixels as the whole image (what is lost was no pixel), or words;
    never a picture whose lower part is grey.
    """
    content = SEEDS[kind]
    path = tmp_path / "x"
    path.write_bytes(content)
    whole = try_read_image(path, **SIZE)
    assert isinstance(whole, Tensor)
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        cut = try_read_image(path, **SIZE)
        assert not check(cut) or torch.equal(cut, whole), length


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(pixels, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def zeros(width: int, height: int, *, depth: int, colour: int, channels: int) -> bytes:
    row = bytes(1 + (width * depth * channels + 7) // 8)
    return png(width, height, depth=depth, colour=colour, pixels=row * height)


def claimed(
    content: bytes, *, width: int, height: int, places: tuple[int, int], order: str
) -> bytes:
    """`content` with other numbers where its header has the size."""
    spoilt = bytearray(content)
    for place, number in zip(places, (width, height), strict=True):
        struct.pack_into(order, spoilt, place, number)
    return bytes(spoilt)


NASTY = {
    "claims-everything": (png(2**31 - 1, 2**31 - 1), False),
    "claims-much": (png(40_000, 40_000), False),
    "bomb": (zeros(20_000, 20_000, depth=1, colour=0, channels=1), False),
    "too-large": (zeros(7_100, 7_100, depth=8, colour=0, channels=1), False),
    "largest-alpha": (zeros(7_000, 7_000, depth=8, colour=6, channels=4), True),
    "largest-deep": (zeros(7_000, 7_000, depth=16, colour=0, channels=1), True),
    "wide": (zeros(30_000, 1, depth=8, colour=2, channels=3), True),
    "high": (zeros(1, 30_000, depth=8, colour=2, channels=3), True),
    "one": (zeros(1, 1, depth=1, colour=0, channels=1), True),
    "none": (png(0, 0), False),
    "gif": (claimed(SEEDS["gif"], width=65535, height=65535, places=(6, 8), order="<H"), False),
    "bmp": (
        claimed(SEEDS["bmp"], width=2**31 - 1, height=2**31 - 1, places=(18, 22), order="<i"),
        False,
    ),
    "bmp-upside-down": (
        claimed(SEEDS["bmp"], width=12, height=-(2**31), places=(18, 22), order="<i"),
        False,
    ),
    "ppm": (b"P6 999999999 999999999 255\n" + bytes(100), False),
    "ppm-digits": (b"P6 " + b"9" * 100_000 + b" 1 255\n" + bytes(100), False),
    "text-chunks": (SEEDS["png"][:33] + 3 * SEEDS["png"][33:], True),
}


def test_nasty_images(tmp_path: Path, in_child) -> None:
    """Bombs and odd sizes are read or refused as they should be, within 2 GB and a minute each."""
    for name, (content, _) in NASTY.items():
        (tmp_path / name).write_bytes(content)
    program = """
import sys
from pathlib import Path
from airnet_cli.core.data.images import try_open_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    image = try_open_image(path)
    print(path.name, not isinstance(image, str), image if isinstance(image, str) else image.size)
"""
    found = [line.split(" ", 2) for line in in_child(program, str(tmp_path)).splitlines()]
    assert {name: read == "True" for name, read, _ in found} == {
        name: is_read for name, (_, is_read) in NASTY.items()
    }, found
