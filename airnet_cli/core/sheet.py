"""The page on which images are drawn: rows of frames, a title, a legend and colour bars.

The colour of a frame and the mark on it tell what an image is (right, wrong, ignored, junk, ...),
so nobody has to distinguish colours. They are Okabe and Ito's, which most colour-blind readers can
distinguish. Marks are drawn as shapes: no font is needed but Pillow's own.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps

from airnet_cli.core.ranked import MatchState

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
SHORTEST_LEGEND = 480
"""A sheet is made at least this wide if its legend needs it."""
INK = "#1a1a1a"
FAINT = "#5c5c5c"


@dataclass(frozen=True)
class HeatScale:
    """A colour bar and the words at its two ends."""

    image: Image.Image
    low: str
    high: str


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


class Cell:
    """The measures, in pixels, of one framed image with its two lines of text."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self.width = width_px
        self.picture_height = height_px
        self.framed_width = width_px + 2 * FRAME
        self.framed_height = height_px + 2 * FRAME
        self.height = self.framed_height + 48
        self.step = self.framed_width + 12


class Sheet:
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
        self, picture: Image.Image, at: tuple[int, int], cell: Cell, *, state: FrameState | None
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
