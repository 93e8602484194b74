"""Images for people, drawn with Pillow: ranked lists and saliency sheets.

Images keep their aspect ratio and are enlarged to a size that can be read. Functions return
`PIL.Image.Image`, and `save_picture` writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from airnet_cli.core.data.images import try_open_image
from airnet_cli.core.files import replacing
from airnet_cli.core.ranked import RankedList
from airnet_cli.core.sheet import (
    FAINT,
    HEADING_HEIGHT,
    LABEL_HEIGHT,
    MARGIN,
    MEANINGS,
    QUERY_GAP,
    SMALL,
    TEXT,
    Cell,
    HeatScale,
    Sheet,
)
from airnet_cli.errors import DataError


@dataclass(frozen=True)
class SaliencyPanel:
    """Where one head of one model looked."""

    heading: str
    """The head: A1, A2, I, M."""
    model: str
    """The model, in a word; may be empty."""
    heat: npt.NDArray[np.float32]
    """(h, w) at the network's own resolution; not negative, or signed."""
    is_signed: bool
    """Whether values under zero mean something; then zero is shown as nothing."""
    caption: str
    """What is explained, in a few words, such as "person 12: 81%"; up to two lines, or empty."""


@dataclass(frozen=True)
class SaliencyRow:
    """A picture and the panels beside it."""

    label: str
    image: Path
    panels: tuple[SaliencyPanel, ...]


def draw_ranked_lists(
    rows: Sequence[RankedList], *, title: str = "", height_px: int = 192, width_px: int = 104
) -> Image.Image:
    """Draw a row per list: the query, then its matches with frame, mark, rank and score.

    Ranks count what is ranked: ignored and junk pictures stand where they were found, without one.

    Args:
        rows: at least one; rows may differ in length.
        title: stands above, if not empty.
        height_px: the height of each picture on the sheet.
        width_px: its width; pictures are fitted in, their aspect ratio is kept.

    Raises:
        DataError: an image is missing or can't be read.
    """
    cell = Cell(width_px, height_px)
    longest = max(len(row.matches) for row in rows)
    queries = [row.query for row in rows]
    images = [_image_of(row) for row in rows]
    states = {match.state for row in rows for match in row.matches}
    sheet = Sheet(
        width_px=cell.step + QUERY_GAP + longest * cell.step,
        row_height_px=LABEL_HEIGHT + cell.height,
        rows=len(rows),
        lines_before=[row for row in range(1, len(rows)) if queries[row] != queries[row - 1]],
        title=title,
        legend=[state for state in MEANINGS if state == "query" or state in states],
    )
    for row, image, top in zip(rows, images, sheet.row_tops, strict=True):
        sheet.text((MARGIN, top), row.label, width_px=sheet.inner_width, size=TEXT, bold=True)
        top += LABEL_HEIGHT
        picture = open_picture(image)
        sheet.framed(picture, (MARGIN, top), cell, state="query")
        left = MARGIN + cell.step + QUERY_GAP
        for match in row.matches:
            sheet.framed(open_picture(match.path), (left, top), cell, state=match.state)
            under = top + cell.framed_height + 4
            score = f"{match.score:.3f}"
            sheet.text(
                (left, under), match.rank_text, width_px=cell.framed_width, size=TEXT, bold=True
            )
            sheet.text((left, under), score, width_px=cell.framed_width, size=TEXT, align="right")
            sheet.text(
                (left, under + 20),
                match.caption,
                width_px=cell.framed_width,
                size=SMALL,
                colour=FAINT,
            )
            left += cell.step
    return sheet.image


def _image_of(ranked: RankedList) -> Path:
    if ranked.image is None:
        raise ValueError(f"query {ranked.query} has no image to draw")
    return ranked.image


def draw_saliency_sheet(
    rows: Sequence[SaliencyRow], *, title: str = "", height_px: int = 256, width_px: int = 132
) -> Image.Image:
    """Draw a row per picture: the picture, then one column per panel (the paper's Figure 4).

    The headings of the first row's panels stand over the columns: all rows have the same.

    Args:
        rows: at least one, each with the same number of panels.
        title: stands above, if not empty.
        height_px: the height of each picture on the sheet.
        width_px: its width; pictures are fitted in, their aspect ratio is kept.

    Raises:
        DataError: an image is missing or can't be read.
    """
    cell = Cell(width_px, height_px)
    panels = rows[0].panels
    scales = [heat_scale(is_signed) for is_signed in sorted({p.is_signed for p in panels})]
    sheet = Sheet(
        width_px=(1 + len(panels)) * cell.step,
        row_height_px=LABEL_HEIGHT + cell.height,
        rows=len(rows),
        title=title,
        legend=(),
        heading_height_px=HEADING_HEIGHT,
        scales=scales,
    )
    top = sheet.headings_top
    for column, panel in enumerate(panels, start=1):
        left = MARGIN + column * cell.step
        sheet.text((left, top), panel.heading, width_px=cell.framed_width, size=TEXT, bold=True)
        sheet.text(
            (left, top + 20), panel.model, width_px=cell.framed_width, size=SMALL, colour=FAINT
        )
    for row, top in zip(rows, sheet.row_tops, strict=True):
        sheet.text((MARGIN, top), row.label, width_px=sheet.inner_width, size=SMALL)
        top += LABEL_HEIGHT
        picture = open_picture(row.image)
        sheet.framed(picture, (MARGIN, top), cell, state=None)
        for column, panel in enumerate(row.panels, start=1):
            left = MARGIN + column * cell.step
            shown = draw_heat(picture, panel.heat, is_signed=panel.is_signed)
            sheet.framed(shown, (left, top), cell, state=None)
            for number, line in enumerate(panel.caption.split("\n")):
                sheet.text(
                    (left, top + cell.framed_height + 4 + 18 * number),
                    line,
                    width_px=cell.framed_width,
                    size=SMALL,
                    colour=FAINT,
                )
    return sheet.image


def draw_heat(
    picture: Image.Image, heat: npt.NDArray[np.float32], *, is_signed: bool
) -> Image.Image:
    """Lay `heat` (h, w) over `picture`, which is enlarged first if it is small; RGB.

    The map is scaled by its own largest absolute value and enlarged bilinearly. Where it is 0 the
    picture is seen in grey, and the stronger it is the more colour covers it.
    """
    width, height = picture.size
    enlarge = max(1.0, HEAT_HEIGHT / height)
    size = (max(1, round(width * enlarge)), round(height * enlarge))
    strongest = float(np.abs(heat).max(initial=0.0))
    relative = heat / strongest if strongest > 0 else np.zeros_like(heat)
    smooth = Image.fromarray(relative.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(smooth), -1, 1)[..., None]  # (H, W, 1)
    grey = picture.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    covered = np.abs(strength) * COVER
    shown = np.asarray(grey, dtype=np.float32) * (1 - covered)
    shown += _colour_of(strength[..., 0], is_signed=is_signed) * covered
    return Image.fromarray(shown.round().astype(np.uint8))


def heat_scale(is_signed: bool) -> HeatScale:
    """The colour bar of a kind of map: its colours from left to right, and what its ends mean."""
    values = np.linspace(-1 if is_signed else 0, 1, 160, dtype=np.float32)
    bar = _colour_of(values, is_signed=is_signed)
    cover = (np.abs(values) * COVER)[:, None]
    pixels = np.repeat((255 * 0.6 * (1 - cover) + bar * cover)[None], 14, axis=0)  # over mid grey
    image = Image.fromarray(pixels.round().astype(np.uint8))
    if is_signed:
        return HeatScale(image, "negative", "positive (of each map's strongest)")
    return HeatScale(image, "0", "each map's strongest")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its name, complete or not at all.

    Raises:
        OutputError: it can't be written.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    with replacing(path) as temporary:
        picture.save(temporary, kind)


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Formats of the pictures that we write."""


def open_picture(path: Path) -> Image.Image:
    """The image at `path` as the network gets it (upright, RGB), at its own size.

    Raises:
        DataError: it is missing or can't be read.
    """
    image = try_open_image(path)
    if isinstance(image, str):
        raise DataError(f"image '{path}' can't be read: {image}")
    return image


HEAT_HEIGHT = 256
"""Pictures lower than this are enlarged before a map is laid over them."""
COVER = 0.85
"""How much of the picture the strongest place of a map hides."""


def _colour_of(values: npt.NDArray[np.float32], *, is_signed: bool) -> npt.NDArray[np.float32]:
    """RGB in 0-255, (..., 3), of values in 0-1 (or -1-1, signed)."""
    anchors = DIVERGING if is_signed else SEQUENTIAL
    places = np.linspace(-1 if is_signed else 0, 1, len(anchors))
    channels = [np.interp(values, places, [rgb[c] for rgb in anchors]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


SEQUENTIAL = ((30, 20, 90), (140, 30, 130), (225, 65, 85), (250, 150, 50), (255, 240, 110))
"""Dark blue over red to yellow: lightness rises steadily, so it reads without colour vision."""
DIVERGING = ((20, 80, 200), (90, 170, 255), (235, 235, 235), (255, 170, 50), (215, 85, 0))
"""Blue for negative, orange for positive: a pair that colour-blind readers tell apart."""
