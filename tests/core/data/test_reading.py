"""Reading one image: every format and mode that people have, as they look on a screen."""

import itertools
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from airnet_cli.core.data import images
from airnet_cli.core.data.images import NEUTRAL, upright_rgb
from airnet_cli.core.data.transforms import read_image, try_read_image
from airnet_cli.core.model.airnet import IMAGENET_MEAN
from airnet_cli.errors import DataError

HEIGHT, WIDTH = 6, 4


def picture() -> Image.Image:
    """Red above, blue below, and a green corner at the upper left: no two turns look alike."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:3, :, 0] = pixels[3:, :, 2] = 200
    pixels[0, 0] = (0, 200, 0)
    return Image.fromarray(pixels)


def read(path: Path, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return read_image(path, height_px=height, width_px=width).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp", "jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    """Each format gives the same pixels, JPEG nearly so."""
    lossy = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    picture().save(tmp_path / f"x.{suffix}", **lossy.get(suffix, {}))
    error = np.abs(read(tmp_path / f"x.{suffix}").astype(int) - np.asarray(picture()))
    assert error.max() <= (12 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "LA"])
def test_modes(mode: str) -> None:
    """Each mode of Pillow's looks as Pillow's own conversion of it, if nothing is transparent."""
    image = picture().convert(mode)
    assert np.array_equal(upright_rgb(image), image.convert("RGB"))
    assert upright_rgb(image).mode == "RGB"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    """0-65535 becomes 0-255, rounded: Pillow's own conversion would clip nearly all to white."""
    values = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    pixels = read(tmp_path / f"x.{suffix}", height=2)
    assert all(np.array_equal(pixels[..., channel], expected) for channel in range(3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path: Path, orientation: int) -> None:
    """A picture that a camera stored turned or mirrored is read as it was seen."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture() if orientation == 1 else picture().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read(tmp_path / "x.png"), picture())


def as_palette() -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([255, 0, 255, 10, 20, 30])
    image.putpixel((0, 0), 0)
    file = BytesIO()
    image.save(file, "PNG", transparency=0)
    return file.getvalue()


def as_rgba() -> bytes:
    image = Image.new("RGBA", (WIDTH, HEIGHT), (10, 20, 30, 255))
    image.putpixel((0, 0), (255, 0, 255, 0))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("content", [as_palette(), as_rgba()], ids=["palette", "alpha"])
def test_behind_what_is_transparent_lies_the_mean(tmp_path: Path, content: bytes) -> None:
    """The colour that a transparent pixel hides never shows; it is zero for the network."""
    (tmp_path / "x.png").write_bytes(content)
    pixels = read(tmp_path / "x.png")
    assert pixels[0, 0].tolist() == [round(255 * value) for value in IMAGENET_MEAN]
    assert (pixels.reshape(-1, 3)[1:] == (10, 20, 30)).all()


def test_first_frame_counts(tmp_path: Path) -> None:
    """Of an animation, the first frame; of a TIFF, the first page."""
    frames = [picture(), Image.new("RGB", (WIDTH, HEIGHT), "white")]
    for name in ("x.gif", "x.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.array_equal(read(tmp_path / name), picture())


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (300, 2), (3, 500), (6, 4)], ids=lambda size: str(size)
)
def test_any_size_is_resized(tmp_path: Path, height: int, width: int) -> None:
    """A plain colour stays what it is at every size and aspect."""
    Image.new("RGB", (width, height), (9, 99, 199)).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", height_px=64, width_px=32)
    assert image.shape == (3, 64, 32)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.tensor([9, 99, 199]).byte().view(3, 1, 1).expand(3, 64, 32))


def cut_jpeg() -> bytes:
    file = BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    return file.getvalue()[:900]


def as_float() -> bytes:
    file = BytesIO()
    Image.new("F", (4, 4), 0.5).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file; was its folder moved?"),
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (cut_jpeg(), "truncated"),
        (as_float(), "32-bit pixels have no defined brightness; save it with 8 or 16 bits"),
    ],
    ids=["missing", "empty", "page", "cut", "float"],
)
def test_what_can_not_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """One line with the path and why."""
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"image '{path}' can't be read: ")
    assert reason in str(error.value)
    assert reason in str(try_read_image(path, height_px=2, width_px=2))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    """Nor is a pipe, at which a reader would wait for ever."""
    assert try_read_image(tmp_path, height_px=2, width_px=2) == "a folder, not a file"
    os.mkfifo(tmp_path / "x.jpg")
    reason = try_read_image(tmp_path / "x.jpg", height_px=2, width_px=2)
    assert reason == "a pipe or device, not a file"


def test_turns_are_told_apart() -> None:
    """The picture of the EXIF test looks different in all eight turns: that test can fail."""
    turned = [np.asarray(picture().resize((4, 4)).transpose(turn)) for turn in Image.Transpose]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(turned, 2))


def test_neutral_is_the_mean() -> None:
    """Written out where no torch is: the same as the network's."""
    assert (*(round(255 * value) for value in IMAGENET_MEAN), 255) == NEUTRAL


def as_jpeg(**options: object) -> bytes:
    file = BytesIO()
    picture().resize((64, 64)).save(file, "JPEG", **options)
    return file.getvalue()


def eps() -> bytes:
    file = BytesIO()
    picture().save(file, "EPS")
    return file.getvalue()


def many_scans(content: bytes) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + 300_000 * scan[:20] + b"\xff\xd9"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (eps(), "not an image"),
        (many_scans(as_jpeg(progressive=True)), "4,096 pixels in 300,"),
    ],
    ids=["eps", "scans"],
)
def test_what_would_cost_too_much(tmp_path: Path, content: bytes, reason: str) -> None:
    """Nothing is decoded that starts another program, or takes minutes."""
    (tmp_path / "x.jpg").write_bytes(content)
    assert reason in str(try_read_image(tmp_path / "x.jpg", height_px=2, width_px=2))


@pytest.mark.parametrize("limit", [63 * 64, 1000], ids=["more", "many-times-more"])
def test_too_many_pixels(tmp_path: Path, monkeypatch, limit: int) -> None:
    """Refused by the header; Pillow's own limit says the same."""
    monkeypatch.setattr(images, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / "x.jpg").write_bytes(as_jpeg())
    assert f"more than {limit:,} pixels; reduce it" in str(
        try_read_image(tmp_path / "x.jpg", height_px=2, width_px=2)
    )


def test_exif_that_can_not_be_understood_turns_nothing(tmp_path: Path) -> None:
    """The picture is whole: it is shown as it is stored, as other programs do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = as_jpeg(exif=exif.tobytes())
    at = whole.index(b"Exif\0\0")
    for place, bad in ((at + 6, b"XX"), (at + 10, b"\xff\xff\xff\xff"), (at + 16, b"\x99" * 8)):
        (tmp_path / "x.jpg").write_bytes(whole[:place] + bad + whole[place + len(bad) :])
        (tmp_path / "plain.jpg").write_bytes(as_jpeg())
        assert np.array_equal(read(tmp_path / "x.jpg"), read(tmp_path / "plain.jpg"))
