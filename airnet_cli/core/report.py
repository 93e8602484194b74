"""One self-contained HTML page of ranked lists, saliency rows and tables.

Nothing is loaded from anywhere: styles stand in the page, pictures are data: URIs, there is no
script, and a content security policy forbids the rest. All text is escaped. Rows open on a click
(`<details>`) and show their numbers. The page follows the reader's light or dark setting and wraps
at the width of a phone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from airnet_cli.core.drawing import RankedRow


@dataclass(frozen=True)
class Figure:
    """A picture with words above and under it."""

    image: Image.Image
    heading: str
    caption: str


@dataclass(frozen=True)
class FigureRow:
    """Pictures side by side under one label; the same columns for each row of a section."""

    label: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Table:
    """Plain cells under column names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = RankedRow | FigureRow | Table


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
        DataError: an image of a ranked row is missing or can't be read, or `path` can't be written.
    """
    raise NotImplementedError
