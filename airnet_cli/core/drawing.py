"""Pictures for people, drawn with Pillow: ranked lists and saliency sheets.

- What a match is (right, wrong, ignored, junk, ...) is told by the colour of its frame and by the
  mark on it, so that nobody needs to tell colours apart; the colours are Okabe and Ito's, which
  most colour-blind readers can.
- Marks are drawn as shapes, not written: no font is needed but Pillow's own.
- Pictures keep their aspect ratio, and are enlarged to a size that can be read.

Functions return a `PIL.Image.Image`; `save_picture` writes it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from airnet_cli.core.data.images import try_open_image
from airnet_cli.core.files import replacing
from airnet_cli.core.ranked import MatchState, RankedList
from airnet_cli.errors import DataError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FrameState = MatchState | Literal["query"]

COLOURS: dict[FrameState, str] = {
    "query": "#0072b2",
    "right": "#009e73",
    "wrong": "#d55e00",
    "ignored": "#8c8c8c",
    "junk": "#7b5ea7",
    "unknown": "#b87a00",
    "same": "#009e73",
    "unjudged": "#4a5a6a",
}
"""Frame colours, RGB; the mark on a disc of the same colour is white."""

MEANINGS: dict[FrameState, str] = {
    "query": "query",
    "right": "right: the same person",
    "wrong": "wrong: another person",
    "ignored": "ignored: same person, same camera",
    "junk": "junk: not ranked",
    "unknown": "unknown",
    "same": "same person",
    "unjudged": "no verdict",
}
"""What the legend says."""


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
    cell = _Cell(width_px, height_px)
    longest = max(len(row.matches) for row in rows)
    queries = [row.query for row in rows]
    images = [_image_of(row) for row in rows]
    states = {match.state for row in rows for match in row.matches}
    sheet = _Sheet(
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
    cell = _Cell(width_px, height_px)
    panels = rows[0].panels
    scales = [heat_scale(is_signed) for is_signed in sorted({p.is_signed for p in panels})]
    sheet = _Sheet(
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


def heat_scale(is_signed: bool) -> "HeatScale":
    """The colour bar of a kind of map: its colours from left to right, and what its ends mean."""
    values = np.linspace(-1 if is_signed else 0, 1, 160, dtype=np.float32)
    bar = _colour_of(values, is_signed=is_signed)
    cover = (np.abs(values) * COVER)[:, None]
    pixels = np.repeat((255 * 0.6 * (1 - cover) + bar * cover)[None], 14, axis=0)  # over mid grey
    image = Image.fromarray(pixels.round().astype(np.uint8))
    if is_signed:
        return HeatScale(image, "negative", "positive (of each map's strongest)")
    return HeatScale(image, "0", "each map's strongest")


@dataclass(frozen=True)
class HeatScale:
    """A colour bar and the words at its two ends."""

    image: Image.Image
    low: str
    high: str


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


def draw_mark(state: FrameState, size_px: int) -> Image.Image:
    """The mark of a state: a white sign on a disc of its colour, RGBA, `size_px` square."""
    fine = 4  # drawn larger and reduced, which smooths the edges
    s = size_px * fine
    image = Image.new("RGBA", (s, s), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0, 0, s - 1, s - 1), fill=COLOURS[state], outline="white", width=fine * 2)
    line = max(1, s // 9)

    def stroke(*points: tuple[float, float]) -> None:
        draw.line([(x * s, y * s) for x, y in points], fill="white", width=line, joint="curve")

    match state:
        case "right":
            stroke((0.26, 0.52), (0.44, 0.70), (0.75, 0.32))
        case "wrong":
            stroke((0.30, 0.30), (0.70, 0.70))
            stroke((0.70, 0.30), (0.30, 0.70))
        case "ignored":
            stroke((0.26, 0.50), (0.74, 0.50))
        case "junk":
            draw.ellipse((0.24 * s, 0.24 * s, 0.76 * s, 0.76 * s), outline="white", width=line)
            stroke((0.33, 0.67), (0.67, 0.33))
        case "same":
            stroke((0.26, 0.39), (0.74, 0.39))
            stroke((0.26, 0.61), (0.74, 0.61))
        case "unknown":
            draw.text((s / 2, s / 2), "?", fill="white", font=_font(s * 0.7), anchor="mm")
        case "unjudged":
            draw.ellipse((0.40 * s, 0.40 * s, 0.60 * s, 0.60 * s), fill="white")
        case "query":
            draw.ellipse((0.24 * s, 0.24 * s, 0.62 * s, 0.62 * s), outline="white", width=line)
            stroke((0.57, 0.57), (0.76, 0.76))
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS)


MARGIN = 20
TEXT = 16
SMALL = 13
LABEL_HEIGHT = 26
HEADING_HEIGHT = 44
TITLE_HEIGHT = 34
LEGEND_HEIGHT = 34
FRAME = 5
MARK = 26
QUERY_GAP = 18
LINE_GAP = 24
BACKGROUND = "white"
INK = "#1a1a1a"
FAINT = "#5c5c5c"

HEAT_HEIGHT = 256
"""Pictures lower than this are enlarged before a map is laid over them."""
COVER = 0.85
"""How much of the picture the strongest place of a map hides."""


class _Cell:
    """The measures of one framed picture with its two lines of text."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self.width = width_px
        self.picture_height = height_px
        self.framed_width = width_px + 2 * FRAME
        self.framed_height = height_px + 2 * FRAME
        self.height = self.framed_height + 48
        self.step = self.framed_width + 12


class _Sheet:
    """A white page with a title, rows of equal height, and a legend at its foot.

    `lines_before` are the rows over which a line is drawn: where another query begins.
    """

    def __init__(
        self,
        *,
        width_px: int,
        row_height_px: int,
        rows: int,
        title: str,
        legend: Sequence[FrameState],
        lines_before: Sequence[int] = (),
        heading_height_px: int = 0,
        scales: Sequence[HeatScale] = (),
    ) -> None:
        needed = max(_legend_width(legend), _scales_width(scales))
        # A single short row may be narrower than its legend: the legend wraps, but no word is cut.
        self.inner_width = max(width_px, min(needed, SHORTEST_LEGEND))
        legend_lines = _wrap_legend(legend, self.inner_width)
        self.headings_top = MARGIN + (TITLE_HEIGHT if title else 0)
        top = self.headings_top + heading_height_px
        self.row_tops: list[int] = []
        lines: list[int] = []
        for row in range(rows):
            if row in lines_before:
                lines.append(top + LINE_GAP // 3)
                top += LINE_GAP
            self.row_tops.append(top)
            top += row_height_px
        foot = top + 10
        height = foot + LEGEND_HEIGHT * (len(legend_lines) + len(scales)) + MARGIN
        self.image = Image.new("RGB", (self.inner_width + 2 * MARGIN, height), BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)
        for line in lines:
            self._draw.line((MARGIN, line, MARGIN + self.inner_width, line), fill="#c4c4c4")
        if title:
            self.text((MARGIN, MARGIN - 4), title, width_px=self.inner_width, size=20, bold=True)
        for states in legend_lines:
            self._draw_legend(states, foot)
            foot += LEGEND_HEIGHT
        for scale in scales:
            self._draw_scale(scale, foot)
            foot += LEGEND_HEIGHT

    def framed(
        self, picture: Image.Image, at: tuple[int, int], cell: _Cell, *, state: FrameState | None
    ) -> None:
        """Put `picture`, fitted into `cell`, at a place; with the frame and mark of its state."""
        left, top = at
        box = (left, top, left + cell.framed_width - 1, top + cell.framed_height - 1)
        fitted = ImageOps.contain(
            picture, (cell.width, cell.picture_height), Image.Resampling.BICUBIC
        )
        self._draw.rectangle(box, fill="#ececec")
        place = (
            left + FRAME + (cell.width - fitted.width) // 2,
            top + FRAME + (cell.picture_height - fitted.height) // 2,
        )
        self.image.paste(fitted, place)
        if state is None:
            self._draw.rectangle(box, outline="#d0d0d0", width=1)
            return
        self._draw.rectangle(box, outline=COLOURS[state], width=FRAME)
        mark = draw_mark(state, MARK)
        self.image.paste(mark, (left + FRAME - 2, top + FRAME - 2), mark)

    def text(
        self,
        at: tuple[int, int],
        text: str,
        *,
        width_px: int,
        size: int,
        colour: str = INK,
        bold: bool = False,
        align: Literal["left", "right"] = "left",
    ) -> None:
        """Write one line that is shortened to `width_px`; Pillow's font has one weight: bold is
        drawn with a thin outline."""
        font = _font(size)
        line = _shorten(text, font, width_px)
        left = at[0] if align == "left" else at[0] + width_px - math.ceil(font.getlength(line))
        self._draw.text(
            (left, at[1]),
            line,
            fill=colour,
            font=font,
            stroke_width=0.35 if bold else 0,
            stroke_fill=colour,
        )

    def _draw_legend(self, states: Sequence[FrameState], top: int) -> None:
        left = MARGIN
        for state in states:
            mark = draw_mark(state, 22)
            self.image.paste(mark, (left, top), mark)
            self._draw.text((left + 28, top + 2), MEANINGS[state], fill=INK, font=_font(SMALL + 1))
            left += _legend_entry_width(state)

    def _draw_scale(self, scale: HeatScale, top: int) -> None:
        font = _font(SMALL)
        self._draw.text((MARGIN, top), scale.low, fill=INK, font=font)
        left = MARGIN + math.ceil(font.getlength(scale.low)) + 8
        self.image.paste(scale.image, (left, top + 1))
        self._draw.text((left + scale.image.width + 8, top), scale.high, fill=INK, font=font)


SHORTEST_LEGEND = 480
"""A sheet is made at least so wide if its legend needs it."""


def _legend_entry_width(state: FrameState) -> int:
    return 28 + math.ceil(_font(SMALL + 1).getlength(MEANINGS[state])) + 24


def _legend_width(legend: Sequence[FrameState]) -> int:
    return sum(_legend_entry_width(state) for state in legend)


def _scales_width(scales: Sequence[HeatScale]) -> int:
    font = _font(SMALL)
    widths = [
        math.ceil(font.getlength(scale.low + scale.high)) + scale.image.width + 16
        for scale in scales
    ]
    return max(widths, default=0)


def _wrap_legend(legend: Sequence[FrameState], width_px: int) -> list[list[FrameState]]:
    lines: list[list[FrameState]] = []
    for state in legend:
        if not lines or _legend_width([*lines[-1], state]) > width_px + 24:
            lines.append([])
        lines[-1].append(state)
    return lines


def _shorten(text: str, font: Font, width_px: int) -> str:
    """`text`, or its two ends around an ellipsis: the end of a file name tells most."""
    text = " ".join(text.split())
    if font.getlength(text) <= width_px:
        return text
    for kept in range(len(text) - 1, 1, -1):
        tail = (kept * 2) // 3
        shortened = text[: kept - tail] + "…" + text[len(text) - tail :]
        if font.getlength(shortened) <= width_px:
            return shortened
    return "…"


@functools.cache
def _font(size: float) -> Font:
    return ImageFont.load_default(size)


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
