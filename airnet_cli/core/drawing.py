"""Pictures for people, drawn with Pillow: ranked lists and saliency sheets. No torch here.

- What a match is (right, wrong, ignored, junk, ...) is told by the colour of its frame and by the
  mark on it, so that nobody needs to tell colours apart; the colours are Okabe and Ito's, which
  most colour-blind readers can.
- Marks are drawn as shapes, not written: no font is needed but Pillow's own.
- Pictures keep their aspect ratio, and are enlarged to a size that can be read.

Functions return `PIL.Image.Image`; who calls them writes the file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from airnet_cli.errors import DataError

MatchState = Literal["right", "wrong", "ignored", "junk", "unknown", "same"]
MATCH_STATES: tuple[MatchState, ...] = get_args(MatchState)
FrameState = MatchState | Literal["query"]

COLOURS: dict[FrameState, str] = {
    "query": "#0072b2",
    "right": "#009e73",
    "wrong": "#d55e00",
    "ignored": "#8c8c8c",
    "junk": "#3d3d3d",
    "unknown": "#b87a00",
    "same": "#009e73",
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
}
"""What the legend says."""

NOT_RANKED: frozenset[MatchState] = frozenset({"ignored", "junk"})
"""States whose pictures stand in the list but have no rank of their own."""


@dataclass(frozen=True)
class RankedMatch:
    """One picture of a ranked list."""

    path: Path
    score: float
    """Similarity to the query; printed with three decimals."""
    state: MatchState
    caption: str
    """A few words under the score, such as "person 12, camera 3"; may be empty."""


@dataclass(frozen=True)
class RankedRow:
    """A query and its matches, best first."""

    label: str
    """What ranked them ("whole embedding", "head A1"), or the query's name."""
    query: Path
    matches: tuple[RankedMatch, ...]


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
    """What is explained, in a few words, such as "person 12, 81%"; may be empty."""


@dataclass(frozen=True)
class SaliencyRow:
    """A picture and the panels beside it."""

    label: str
    image: Path
    panels: tuple[SaliencyPanel, ...]


def draw_ranked_lists(
    rows: Sequence[RankedRow], *, title: str = "", height_px: int = 192, width_px: int = 104
) -> Image.Image:
    """Draw a row per list: the query, then its matches with frame, mark, rank and score.

    Args:
        rows: at least one; rows may differ in length.
        title: stands above, if not empty.
        height_px: the height of each picture on the sheet.
        width_px: its width; pictures are fitted in, their aspect ratio is kept.

    Raises:
        DataError: an image is missing or can't be read.
    """
    raise NotImplementedError


def draw_saliency_sheet(
    rows: Sequence[SaliencyRow], *, title: str = "", height_px: int = 256, width_px: int = 132
) -> Image.Image:
    """Draw a row per picture: the picture, then one column per panel (the paper's Figure 4).

    Raises:
        DataError: an image is missing or can't be read.
    """
    raise NotImplementedError
