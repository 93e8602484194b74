"""The page: self-contained, escaped, readable in light and dark, on a desk and on a phone."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.ranked import NOT_RANKED, RankedList, RankedMatch
from airnet_cli.core.report import Figure, FigureRow, Section, Table, write_report
from airnet_cli.errors import DataError, OutputError

EVIL = """<script>alert("1")</script>'&é漢.png"""


class Reader(HTMLParser):
    """Collects tags, attributes and text; and checks that tags are closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page with everything on it, and an image whose name is an attack."""
    folder = tmp_path_factory.mktemp("page")
    evil = folder / EVIL.replace("/", "_")
    colours = np.linspace(0, 255, 10).astype(int).tolist()
    matches = []
    Image.new("RGB", (64, 128), "teal").save(evil)
    states = ["ignored", "right", "wrong", "junk", "right", "unknown", "same", "unjudged"]
    for index, (state, grey) in enumerate(zip(states, colours, strict=False)):
        path = folder / f"match{index}.png"
        Image.new("RGB", (64, 128), (grey, 90, 160)).save(path)
        columns = {"person_id": str(index + 1), "camera_id": "1"}
        rank = None if state in NOT_RANKED else 1 + sum(m.rank is not None for m in matches)
        matches.append(RankedMatch(rank, index, str(path), 0.95 - index / 10, state, columns))
    figure = Figure(Image.new("RGB", (128, 256), "olive"), "A1 airnet", "person 7: 93%")
    sections = [
        Section(
            "Lists",
            "Click.",
            tuple(RankedList(str(evil), evil, EVIL, tuple(matches)) for _ in range(2)),
        ),
        Section("Maps", "", (FigureRow("a.jpg", (figure,) * 5),)),
        Section("Numbers", "", (Table(("head", "cosine"), (("A1", "0.5"), (EVIL, "0.4"))),)),
    ]
    path = folder / "report.html"
    write_report(path, title=f"Title {EVIL}", text=f"Lead {EVIL}", sections=sections)
    return path


def test_page_is_whole_and_escaped(page):
    """Every tag is closed, there is no script, and names are text in full."""
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert f"Title {EVIL}" in reader.text
    assert f"Lead {EVIL}" in reader.text
    assert reader.text.count(EVIL) >= 4
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)


def test_page_needs_nothing_else(page):
    """No address but data: URIs is in any attribute or style, and the policy forbids the rest."""
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    for _, attributes in reader.tags:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert set(re.findall(r"url\((.{5})", text)) == {"data:"}
    assert "@import" not in text
    policies = [a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_has_words(page):
    """Each image says in its alternative text what it is: for who can't see it."""
    images = [
        attributes for tag, attributes in Reader(page.read_text("utf-8")).tags if tag == "img"
    ]
    assert len(images) == 2 * 9 + 5
    assert all(image["alt"] for image in images)
    assert images[2]["alt"] == "right: the same person: match1.png"


def test_rows_carry_their_numbers(page):
    """Rank (only of what is ranked), score, state and path of each match."""
    text = Reader(page.read_text("utf-8")).text
    assert "1 · 0.850" in text
    assert "- · 0.950" in text
    assert "0.8500" in text
    assert str(page.parent / "match1.png") in text


def test_a_page_without_lists_has_no_legend(tmp_path):
    """Marks are explained only where there are some."""
    path = tmp_path / "report.html"
    write_report(path, title="t", sections=[Section("h", "", (Table(("a",), (("1",),)),))])
    tags = Reader(path.read_text("utf-8")).tags
    assert not any(tag in ("ul", "img") for tag, _ in tags)


def test_a_missing_image_leaves_the_old_page(tmp_path):
    """The page is rendered before it is written."""
    path = tmp_path / "report.html"
    path.write_text("old")
    row = RankedList("gone.png", tmp_path / "gone.png", "a", ())
    with pytest.raises(DataError, match=r"gone\.png' can't be read: no such file"):
        write_report(path, title="t", sections=[Section("h", "", (row,))])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_can_not_be_written_is_one_line(tmp_path):
    """It names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"can't write '.*report\.html'"):
        write_report(tmp_path / "file" / "report.html", title="t", sections=[])


WIDTHS = {"desk": 1280, "phone": 360}


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(browser, page, tmp_path, width, scheme):
    """It opens without a complaint or a request, fits the window, and a click opens a row."""
    browser.open(page, width_px=width, height_px=900, scheme=scheme)
    assert browser.complaints() == []
    assert browser.run("return document.title").startswith("Title <script>")
    scrolls = "const page = document.documentElement; return page.scrollWidth > page.clientWidth"
    assert not browser.run(scrolls)
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run(
        "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    shown = "return document.querySelector('details .scroll').checkVisibility()"
    assert not browser.run(shown)
    browser.click("summary")
    assert browser.run(shown)
    assert browser.run("return document.querySelectorAll('details[open]').length") == 1
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.size == (width, 900)
        corner = shot.convert("L").getpixel((2, 2))
    assert corner > 200 if scheme == "light" else corner < 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(browser, page, scheme):
    """Text and ground differ by a contrast of 4.5 at least (WCAG 2.2, AA), in both schemes."""
    browser.open(page, width_px=800, height_px=600, scheme=scheme)
    pairs = browser.run(
        """const ground = element => {
          for (let e = element; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)') return colour;
          }
        };
        return [...document.querySelectorAll('h1,h2,h3,p,small,figcaption,li,td,th')]
          .map(e => [getComputedStyle(e).color, ground(e)]);"""
    )
    assert len(pairs) > 50
    assert min(contrast(*pair) for pair in set(map(tuple, pairs))) >= 4.5


def contrast(one: str, two: str) -> float:
    """The contrast ratio of two CSS colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)
