"""One self-contained HTML page of ranked lists, saliency rows and tables.

Nothing is loaded from anywhere: styles are part of the page, images are data: URIs, there is no
script, and a content security policy forbids the rest. All text is escaped. A ranked list opens on
a click (`<details>`: by keyboard and touch too) and shows its numbers and paths. The page follows
the reader's light or dark setting and wraps at the width of a phone.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from airnet_cli.core.drawing import open_picture
from airnet_cli.core.files import write_text
from airnet_cli.core.ranked import RankedList, RankedMatch
from airnet_cli.core.sheet import COLOURS, MEANINGS, draw_mark

PICTURE_HEIGHT = 256
"""Pixels; higher images of ranked lists are reduced to it, which is twice what is shown."""
MARK = 44
"""Pixels; twice what is shown."""
TEMPLATE = Path(__file__).with_name("report.html")
"""The page and its style; rendered by Jinja."""


@dataclass(frozen=True)
class Figure:
    """An image with words above and under it."""

    image: Image.Image
    heading: str
    caption: str


@dataclass(frozen=True)
class FigureRow:
    """Images side by side under one label."""

    label: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Table:
    """Plain cells under column names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = RankedList | FigureRow | Table


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph of plain text (may be empty), and blocks in order."""

    heading: str
    text: str
    blocks: tuple[Block, ...]


def write_report(path: Path, *, title: str, sections: Sequence[Section], text: str = "") -> None:
    """Write the page to `path`, whole or not at all.

    Args:
        path: the .html file; replaced if it exists.
        title: of the page, plain text.
        sections: in order.
        text: a paragraph of plain text under the title, such as which model and when.

    Raises:
        DataError: an image of a ranked row is missing or can't be read.
        OutputError: `path` can't be written.
    """
    write_text(path, render_report(title=title, sections=sections, text=text))


def render_report(*, title: str, sections: Sequence[Section], text: str = "") -> str:
    """The page as text; see `write_report`."""
    # Imported here: most commands write no page.
    from jinja2 import Environment

    blocks = [block for section in sections for block in section.blocks]
    rows = [block for block in blocks if isinstance(block, RankedList)]
    used = {match.state for row in rows for match in row.matches}
    states = [state for state in MEANINGS if state in used or (used and state == "query")]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(meanings=MEANINGS, colours=COLOURS)
    environment.filters.update(
        thumbnail=_thumbnail,
        jpeg=partial(_data_uri, kind="JPEG"),
        mark=lambda state: _data_uri(draw_mark(state, MARK), "PNG"),
        numbers=_numbers,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(title=title, text=text, states=states, sections=sections)
    # A file name may contain bytes that are not UTF-8; Python keeps them as lone surrogates.
    return page.encode("utf-8", "replace").decode("utf-8")


def _numbers(matches: Sequence[RankedMatch]) -> list[tuple[str, ...]]:
    """The rows of the table under a ranked list."""
    return [
        (match.rank_text, f"{match.score:.4f}", match.state, match.caption, match.name)
        for match in matches
    ]


def _thumbnail(path: Path) -> str:
    """The image at `path`, at most `PICTURE_HEIGHT` high, as a data: URI."""
    image = open_picture(path)
    if image.height > PICTURE_HEIGHT:
        width = max(1, round(image.width * PICTURE_HEIGHT / image.height))
        image = image.resize((width, PICTURE_HEIGHT), Image.Resampling.BICUBIC)
    return _data_uri(image, "JPEG")


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.convert("RGB").save(buffer, kind, quality=88)
    else:
        image.save(buffer, kind, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
