"""One image file, whoever made it, as upright RGB; or in a few words why it can't be read.

What a file may cost is bounded before it is decoded: regular files only (a pipe would wait for
ever), formats that people store pictures in only (Pillow would start Ghostscript for others), and
no more than `MAX_PIXELS`. No torch here: worker processes that check images import Pillow only.
"""

import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from airnet_cli.errors import printable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file's name ends with."""

MAX_PIXELS = 50_000_000
"""Of one image: 1.2 GB while it is decoded, at worst. A crop of a person has some ten thousand."""

MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
"""Pixels times scans of a JPEG: ten scans are usual; thousands keep a decoder busy for hours."""

NEUTRAL = (124, 116, 104, 255)
"""The ImageNet mean as an opaque RGBA colour."""


def try_open_image(path: Path) -> Image.Image | str:
    """The image at `path`, upright, RGB, decoded; or, in a few words, why it can't be read."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return "a folder, not a file"
        if not stat.S_ISREG(status.st_mode):
            return "a pipe or device, not a file"
        if status.st_size == 0:
            return "empty file"
        with warnings.catch_warnings():
            # Pillow's words on odd metadata: the pixels are what counts.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as file:
                problem = _too_large(file)
                return upright_rgb(file) if problem is None else problem
    except FileNotFoundError:
        return "no such file; was its folder moved?"
    except UnidentifiedImageError:
        return "not an image"
    except Image.DecompressionBombError:
        return f"more than {MAX_PIXELS:,} pixels; reduce it"
    # Decoders raise nearly anything on broken bytes (SyntaxError, struct.error, IndexError, ...).
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error)  # strerror: without the path
        return printable(" ".join(text.split())) or type(error).__name__


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any image of Pillow's as RGB, 8 bits, turned as its EXIF orientation says.

    EXIF data that can't be understood turn nothing, as in other programs. 16-bit grey is scaled
    (Pillow's own conversion clips it to white). Behind transparent parts lies the ImageNet mean,
    which is zero for the network, as an erased patch is in training.

    Raises:
        ValueError: pixels without a defined brightness (32-bit integers, floating point).
        Exception: nearly anything, for an image that is read from a broken file only now.
    """
    image.load()
    is_16_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")  # Pillow before 11 widens 16-bit PNG
    )
    if image.mode in ("I", "F") and not is_16_bit:
        raise ValueError("32-bit pixels have no defined brightness; save it with 8 or 16 bits")
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if is_16_bit:
        values = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257
    if upright.has_transparency_data:
        ground = Image.new("RGBA", upright.size, NEUTRAL)
        upright = Image.alpha_composite(ground, upright.convert("RGBA"))
    return upright.convert("RGB")


_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright."""


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    # As of decoders: nearly anything on broken bytes.
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _too_large(image: Image.Image) -> str | None:
    """Say what makes an image too costly to decode, by its header alone."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        return f"{image.width:,} x {image.height:,} are more than {MAX_PIXELS:,} pixels; reduce it"
    file = image.fp if isinstance(image, ImageFile.ImageFile) else None
    if file is not None and image.format in ("JPEG", "MPO"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(place)
        if pixels * scans > MAX_SCANNED_PIXELS:
            return f"{pixels:,} pixels in {scans:,} scans take too long; save it again"
    return None
