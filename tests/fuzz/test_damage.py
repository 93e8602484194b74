"""Cut-off files and flipped bits: what is read is sound, or there is an error without traceback."""

import random
import shutil
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from airnet_cli.config.presets import load_preset, preset_text
from airnet_cli.core.data.archive import extract_zip, staged_folder
from airnet_cli.core.data.images import try_open_image
from airnet_cli.core.data.manifest import read_manifest, write_manifest
from airnet_cli.core.data.readers.table import read
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.data.transforms import try_read_image
from airnet_cli.core.gallery import Gallery, read_gallery
from airnet_cli.core.gallery.files import write_gallery
from airnet_cli.errors import AirnetError

SIZE = {"height_px": 8, "width_px": 4}
ROWS = np.random.default_rng(3).normal(size=(7, 6)).astype(np.float32)


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(4).integers(0, 256, (24, 12, 3), dtype=np.uint8)
    image = Image.new(mode, (12, 24), 9000) if mode == "I;16" else Image.fromarray(noise)
    file = BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


IMAGES = {
    "jpeg": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True),
    "cmyk": saved("JPEG", "CMYK"),
    "png": saved("PNG"),
    "palette": saved("PNG", "P", transparency=3),
    "deep": saved("PNG", "I;16"),
    "alpha": saved("PNG", "RGBA"),
    "gif": saved("GIF"),
    "webp": saved("WEBP"),
    "tiff": saved("TIFF", compression="tiff_lzw"),
    "bmp": saved("BMP"),
    "ppm": saved("PPM"),
}


def is_read(read: Tensor | str) -> bool:
    if isinstance(read, str):
        assert read
        assert read.isprintable()
        return False
    assert (read.shape, read.dtype) == ((3, 8, 4), torch.uint8)
    return True


def test_images(tmp_path: Path, survive, damage) -> None:
    """Pixels of the right size, or words; some damage does no harm."""
    read = dict.fromkeys(IMAGES, 0)

    def attempt(chance: random.Random) -> None:
        kind = chance.choice(list(IMAGES))
        path = tmp_path / chance.choice(["x.jpg", "x.png", "x"])
        path.write_bytes(damage(IMAGES[kind], chance))
        read[kind] += is_read(try_read_image(path, **SIZE))

    survive("images", attempt)
    assert sum(count > 0 for count in read.values()) > len(read) / 2


@pytest.mark.parametrize("kind", IMAGES)
def test_cut_images(tmp_path: Path, kind: str) -> None:
    """The pixels of the whole image (what is lost was not a pixel) or words; no grey lower part."""
    content = IMAGES[kind]
    path = tmp_path / "x"
    path.write_bytes(content)
    whole = try_read_image(path, **SIZE)
    assert isinstance(whole, Tensor)
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        cut = try_read_image(path, **SIZE)
        assert not is_read(cut) or torch.equal(cut, whole), length


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG of one bit per pixel, whatever `pixels` are."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        png(2**31 - 1, 2**31 - 1),
        png(0, 0),
        png(20_000, 20_000, bytes(2_501) * 20_000),
        b"P6 999999999 999999999 255\n" + bytes(100),
    ],
    ids=["claims", "empty", "bomb", "ppm"],
)
def test_images_of_too_many_pixels(tmp_path: Path, content: bytes) -> None:
    """Refused before any memory is taken."""
    (tmp_path / "x.png").write_bytes(content)
    assert isinstance(try_open_image(tmp_path / "x.png"), str)


def test_zips(tmp_path: Path, survive, damage) -> None:
    """All files as they went in, inside the folder, or nothing at all."""
    source, place = tmp_path / "set.zip", tmp_path / "deep" / "place"
    meant = {f"set/{number}.jpg": bytes([number]) * 40 for number in range(5)}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in meant.items():
            opened.writestr(name, content)
    good = source.read_bytes()

    def attempt(chance: random.Random) -> None:
        source.write_bytes(damage(good, chance))
        try:
            with staged_folder(place) as stage:
                extract_zip(source, stage)
        except AirnetError:
            assert not place.exists()
            raise
        finally:
            assert {path.name for path in tmp_path.iterdir()} == {"deep", "set.zip"}
        files = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
        shutil.rmtree(place)
        assert set(files) <= set(meant.values()), "zip has checksums"

    accepted, refused = survive("zips", attempt)
    assert min(accepted, refused) > 20


def test_galleries(tmp_path: Path, survive, damage) -> None:
    """Rows in step with the table and finite shapes, or an error."""
    path = tmp_path / "gallery.npy"
    columns = {"path": [f"{number}.jpg" for number in range(7)], "note": tuple("abcdefg")}
    record = {
        "fingerprint": "ab" * 32,
        "heads": {"A1": [0, 4], "I": [4, 6]},
        "normalize_heads": False,
        "flip": False,
        "dimensions": 6,
        "dtype": "float32",
    }
    write_gallery(path, Gallery(path, ROWS, columns, {}, {}), record)
    good = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(good) == 3

    def attempt(chance: random.Random) -> None:
        spoilt = chance.choice(list(good))
        for file, content in good.items():
            file.write_bytes(damage(content, chance) if file == spoilt else content)
        gallery = read_gallery(path)
        rows, width = gallery.embeddings.shape
        assert {len(cells) for cells in gallery.columns.values()} == {rows}
        assert max(part.stop for part in gallery.heads.values()) == width

    survive("galleries", attempt)


def test_manifests(tmp_path: Path, survive, damage) -> None:
    """As many images as the header says, or an error."""
    path = tmp_path / "few" / "manifest.jsonl"
    records = [ImageRecord(f"{n}/ü.png", n, 1, s) for n in (1, 2) for s in ("train", "gallery")]
    write_manifest(path, name="few", root=tmp_path, records=records, split_rule="by hand")
    good = path.read_bytes()

    def attempt(chance: random.Random) -> None:
        path.write_bytes(damage(good, chance))
        manifest = read_manifest(path)
        assert sum(count.images for count in manifest.counts.values()) == len(manifest.records)

    survive("manifests", attempt)


def test_tables_and_presets(tmp_path: Path, survive, damage) -> None:
    """Rows that name a person, or an error."""
    table, preset = tmp_path / "table.csv", tmp_path / "mine.toml"
    rows = [f"{n}.jpg,{n},1,{s}" for n in (1, 2) for s in ("train", "query", "gallery")]
    good = "\n".join(["path,person_id,camera_id,split", *rows]).encode()

    def attempt(chance: random.Random) -> None:
        if chance.random() < 0.5:
            table.write_bytes(damage(good, chance))
            assert all(row.record.path for row in read(table))
        else:
            preset.write_bytes(damage(preset_text("demo").encode(), chance))
            load_preset(str(preset))

    survive("tables and presets", attempt)
