"""One self-contained HTML page of ranked lists, saliency rows and tables.

Nothing is loaded from anywhere: styles stand in the page, pictures are data: URIs, there is no
script, and a content security policy forbids the rest. All text is escaped. A ranked list opens on
a click (`<details>`: by keyboard and touch too) and shows its numbers and paths. The page follows
the reader's light or dark setting and wraps at the width of a phone.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from airnet_cli.core.drawing import (
    COLOURS,
    MEANINGS,
    FrameState,
    draw_mark,
    open_picture,
)
from airnet_cli.core.files import write_text
from airnet_cli.core.ranked import RankedList

PICTURE_HEIGHT = 256
"""Pixels; higher pictures of ranked lists are reduced to it, which is twice what is shown."""
MARK = 44
"""Pixels; twice what is shown."""


@dataclass(frozen=True)
class Figure:
    """A picture with words above and under it."""

    image: Image.Image
    heading: str
    caption: str


@dataclass(frozen=True)
class FigureRow:
    """Pictures side by side under one label."""

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
    states = {
        match.state
        for section in sections
        for block in section.blocks
        if isinstance(block, RankedList)
        for match in block.matches
    }
    shown: list[FrameState] = ["query"] if states else []
    shown += [state for state in MEANINGS if state in states]
    marks = "".join(
        f".{state}{{--frame:{COLOURS[state]}}}"
        f".{state}>.mark{{background-image:url({_data_uri(draw_mark(state, MARK), 'PNG')})}}"
        for state in shown
    )
    parts = [
        HEAD.format(title=_escape(title), style=STYLE + marks),
        f"<h1>{_escape(title)}</h1>",
        f'<p class="lead">{_escape(text)}</p>' if text else "",
        _legend(shown),
        *(part for section in sections for part in _section(section)),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"<section><h2>{_escape(section.heading)}</h2>"
    if section.text:
        yield f"<p>{_escape(section.text)}</p>"
    for block in section.blocks:
        match block:
            case RankedList():
                yield _ranked(block)
            case FigureRow():
                yield _figures(block)
            case Table():
                yield _table(block.columns, block.rows)
    yield "</section>"


def _legend(states: Sequence[FrameState]) -> str:
    entries = "".join(
        f'<li class="{state}"><span class="mark"></span>{_escape(MEANINGS[state])}</li>'
        for state in states
    )
    return f'<ul class="legend">{entries}</ul>' if entries else ""


def _ranked(row: RankedList) -> str:
    """A list that shows its pictures, and on a click its numbers and paths."""
    assert row.image is not None, "checked before the work"
    pictures = [_framed(row.image, "query", "query", "")]
    pictures += [
        _framed(match.path, match.state, f"{match.rank_text} · {match.score:.3f}", match.caption)
        for match in row.matches
    ]
    rows = [
        (match.rank_text, f"{match.score:.4f}", match.state, match.caption, match.name)
        for match in row.matches
    ]
    return (
        f'<details class="ranked"><summary><h3>{_escape(row.label)}</h3>'
        f'<div class="strip">{"".join(pictures)}</div></summary>'
        f'<p class="path">query: {_escape(row.query)}</p>'
        f"{_table(('rank', 'score', 'state', 'image', 'path'), rows)}</details>"
    )


def _framed(path: Path, state: FrameState, words: str, caption: str) -> str:
    picture = open_picture(path)
    if picture.height > PICTURE_HEIGHT:
        width = max(1, round(picture.width * PICTURE_HEIGHT / picture.height))
        picture = picture.resize((width, PICTURE_HEIGHT), Image.Resampling.BICUBIC)
    alt = _escape(f"{MEANINGS[state]}: {path.name}")
    small = f"<small>{_escape(caption)}</small>" if caption else ""
    return (
        f'<figure class="{state}"><span class="mark"></span>'
        f'<img src="{_data_uri(picture, "JPEG")}" alt="{alt}" title="{_escape(path.name)}">'
        f"<figcaption>{_escape(words)}{small}</figcaption></figure>"
    )


def _figures(row: FigureRow) -> str:
    figures = "".join(
        f"<figure><div>{_escape(figure.heading)}</div>"
        f'<img src="{_data_uri(figure.image, "JPEG")}" '
        f'alt="{_escape(f"{row.label}: {figure.heading}")}">'
        f"<figcaption><small>{_escape(figure.caption)}</small></figcaption></figure>"
        for figure in row.figures
    )
    return (
        f'<article class="figures"><h3>{_escape(row.label)}</h3>'
        f'<div class="wrap">{figures}</div></article>'
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _escape(text: str) -> str:
    # A file name may hold bytes that are no UTF-8; Python keeps them as lone surrogates.
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True)


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.convert("RGB").save(buffer, kind, quality=88)
    else:
        image.save(buffer, kind, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style></head><body><main>"""

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f5f5f4;--ink:#1a1a1a;--faint:#5c5c5c;
--line:#d9d9d6;--link:#0b5cad}
@media (prefers-color-scheme:dark){:root{--paper:#141414;--card:#1f1f1f;--ink:#ececec;
--faint:#a8a8a8;--line:#3a3a3a;--link:#7db8ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1400px;margin:0 auto;padding:1.25rem}
h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2rem 0 .25rem}
h3{font-size:1rem;margin:0 0 .5rem;overflow-wrap:anywhere}
p{max-width:70ch;margin:.25rem 0 .75rem}
.lead,small,.path{color:var(--faint)}
.lead,.path{overflow-wrap:anywhere}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.4rem 1.25rem;padding:0;margin:.75rem 0}
.legend li{display:flex;align-items:center;gap:.4rem}
.mark{display:inline-block;flex:none;width:22px;height:22px;background-size:contain}
.ranked,.figures{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:.75rem;margin:.75rem 0}
.figures{display:inline-block;vertical-align:top;max-width:100%;margin:.75rem .75rem 0 0}
summary{cursor:pointer;list-style:none;border-radius:4px}
summary::-webkit-details-marker{display:none}
summary:focus-visible{outline:3px solid var(--link);outline-offset:3px}
summary h3::before{content:"\\25B8";display:inline-block;width:1.1em;color:var(--link)}
details[open] summary h3::before{content:"\\25BE"}
.strip{display:flex;gap:.6rem;overflow-x:auto;padding:0 0 .5rem}
.wrap{display:flex;flex-wrap:wrap;gap:.75rem}
figure{margin:0;position:relative;flex:none}
.strip figure{width:78px}
.strip figure.query{margin-right:.75rem}
.strip img{display:block;width:78px;height:140px;object-fit:contain;background:var(--paper);
border:4px solid var(--frame);border-radius:3px}
.strip .mark{position:absolute;top:2px;left:2px}
.wrap figure{width:132px}
.wrap img{display:block;width:132px;height:auto;border-radius:3px}
.wrap figure>div{font-weight:600;font-size:.9rem;overflow-wrap:anywhere}
figcaption{font-size:.85rem;font-variant-numeric:tabular-nums;margin-top:.2rem}
small{display:block;font-size:.75rem;line-height:1.25;overflow-wrap:anywhere;white-space:pre-line}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
td:last-child{overflow-wrap:anywhere;min-width:12rem}
@media (max-width:480px){main{padding:.75rem}.wrap{gap:.4rem}.wrap figure,.wrap img{width:72px}
.wrap figure>div{min-height:2.6rem;line-height:1.3;display:flex;align-items:flex-end}
.ranked,.figures{padding:.6rem}}
"""
