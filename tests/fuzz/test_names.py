"""Odd names of files: through every command as they are, and text on every page."""

import csv
import json
import os
import random
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from airnet_cli.cli.app import app
from airnet_cli.core.ranked import RankedList, RankedMatch
from airnet_cli.core.report import Figure, FigureRow, Section, Table, render_report

NAMES = ["a b", "'", '"', "a\nb", "a\rb", "a\tb", "-rf", "--help", "<script>alert(1)<_script>"]
NAMES += ['"onerror="alert(1)', "'onerror='x", "\u00fc\u6f22\U0001f600", "\x1b[2J", "\u202e"]
NAMES += ["=1+1", "$(id)", "`id`", "[red]", "C:\\x", "a,b;c", "#", "~", "x" * 240, "<_details>"]
NAMES += ["&lt;", "%s{x}", "]]>"]


class Reader(HTMLParser):
    """Which elements and attributes a page has, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.shape: list[tuple[str, ...]] = []
        self.said: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, *(name for name, _ in attrs)))
        self.said += [value or "" for name, value in attrs if name in ("alt", "title")]

    def handle_endtag(self, tag: str) -> None:
        self.shape.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def page_of(names: list[str], picture: Path) -> str:
    """A page that says each of six names wherever a page may say one."""
    title, text, label, caption, cell, path = names
    match = RankedMatch(1, 0, str(picture), 0.5, "right", {"person_id": caption})
    figure = Figure(Image.new("RGB", (4, 8)), label, caption)
    blocks = (
        RankedList(label, picture, label, (match,)),
        FigureRow(path, (figure,)),
        Table((cell,), ((path,),)),
    )
    return render_report(title=title, text=text, sections=[Section(label, text, blocks)])


def test_names_are_text(tmp_path: Path, survive) -> None:
    """Whatever names are on a page, it has the same elements, and they are all to be read."""
    plain = tmp_path / "plain.png"
    Image.new("RGB", (4, 8)).save(plain)
    meant = Reader(page_of(["x"] * 6, plain)).shape
    signs = [*"<>&\"'/=` -!\n\t{}%;#", "script", "onerror", "<!--", "-->", "]]>", "&#x", "\udcff"]

    def attempt(chance: random.Random) -> None:
        names = [
            chance.choice(NAMES)
            if chance.random() < 0.5
            else "x" + "".join(chance.choices(signs, k=chance.randrange(20)))
            for _ in range(6)
        ]
        picture = tmp_path / (names[5][:60].replace("/", "_") + ".png")
        plain.rename(picture)
        try:
            page = page_of(names, picture)
        finally:
            picture.rename(plain)
        assert page.encode()
        reader = Reader(page)
        assert reader.shape == meant
        said = "".join(reader.said)
        for name in names:
            assert name.encode("utf-8", "replace").decode() in said

    survive("pages", attempt)


def airnet(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture
def shop(tmp_path: Path, untrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run and a folder of images that have all names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(untrained_run)
    (tmp_path / "images").mkdir()
    for number, name in enumerate(NAMES):
        image = Image.new("RGB", (16, 32), (9 * number % 256, 90, 20 * number % 256))
        image.save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def test_odd_names_end_to_end(shop: Path) -> None:
    """Embedded, found, drawn: every row is of the file that it names, in each kind of output."""
    done = airnet("embed", "images", "-o", "gallery.npy")
    assert done.exit_code == 0, done.output
    with Path("gallery.csv").open(encoding="utf-8", newline="") as lines:
        paths = [row["path"] for row in csv.DictReader(lines, strict=True)]
    assert sorted(paths) == sorted(f"images/{name}.png" for name in NAMES)

    words = [
        "match",
        "images",
        "-g",
        "gallery.npy",
        "-k",
        "1",
        "--csv",
        "out.csv",
        "--html",
        "o.html",
    ]
    found = airnet(*words, "--json")
    assert found.exit_code == 0, found.output
    queries = json.loads(found.stdout)["queries"]
    assert {query["query"] for query in queries} == set(paths)
    for query in queries:  # some images may look the same to a network that was never trained
        row = query["matches"][0]["row"]
        assert query["matches"][0]["path"] == paths[row]
    with Path("out.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, strict=True))
    assert [(row["query"], row["path"]) for row in rows] == [
        (query["query"], query["matches"][0]["path"]) for query in queries
    ]
    reader = Reader(Path("o.html").read_text(encoding="utf-8"))
    assert {"script", "/script"}.isdisjoint(tag for tag, *_ in reader.shape)
    assert all(f"{name}.png" in reader.said for name in NAMES if "\r" not in name)

    table = airnet(*words)
    assert table.exit_code == 0, table.output
    assert all(line.isprintable() for line in table.stdout.split("\n"))
    assert {path.name for path in shop.iterdir()} == {
        *("runs", "images", "gallery.npy", "gallery.csv", "gallery.json", "out.csv", "o.html")
    }


@pytest.mark.parametrize("name", ["-rf", "<script>alert(1)<_script>", "a\nb", "x" * 240])
def test_odd_names_drawn(shop: Path, name: str) -> None:
    """`visualize` takes them, a leading dash after `--`."""
    done = airnet("visualize", "--gradcam", "--html", "page.html", "--", f"images/{name}.png")
    assert done.exit_code == 0, done.output
    assert f"{name}.png" in "".join(Reader(Path("page.html").read_text("utf-8")).said)


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "bad"],
        ["match", "bad/x\udcff.png", "-g", "gallery.npy"],
        ["embed", "bad.txt"],
        ["embed", "x" * 300],
        ["match", "images/a b.png", "-g", "y" * 5000 + ".npy"],
        ["visualize", "--gradcam", "x" * 300],
        ["prepare-data", "csv", "x" * 300],
        ["train", "--preset", "x" * 300 + ".toml"],
        ["embed", "loop.png"],
        ["embed", "pipe.png"],
    ],
    ids=lambda words: f"{words[0]}-{words[1][:9]!a}".replace("\\", ""),
)
def test_names_that_can_not_be_used(shop: Path, words: list[str]) -> None:
    """Names that are no UTF-8, too long, links in a circle: one line each."""
    airnet("embed", "images/a b.png", "-o", "gallery.npy")
    Path("bad").mkdir()
    Image.new("RGB", (4, 8)).save("bad/x.png")
    Path("bad/x.png").rename("bad/x\udcff.png")
    Path("bad.txt").write_bytes(b"bad/x\xff.png\n")
    Path("loop.png").symlink_to("loop.png")
    os.mkfifo("pipe.png")
    more = ["-o", "new.npy"] if words[0] == "embed" else []
    done = airnet(*words, *more)
    assert done.exit_code == 1, done.output
    said = [line for line in done.stderr.splitlines() if not line.startswith("embedding with")]
    assert said[0].startswith("error: "), said
    assert all(line.isprintable() for line in said)
    assert not Path("new.npy").exists()


def test_a_prepared_set_with_a_name_that_is_no_utf8(shop: Path) -> None:
    """It may be trained on; a gallery's table could not name it, and says so first."""
    for person in ("1", "2", "3"):
        for name in ("a", "b\udcff"):
            place = Path("people") / person / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            random_ = np.random.default_rng(int(person))
            Image.fromarray(random_.integers(0, 256, (8, 4, 3), dtype=np.uint8)).save(
                shop / "i.png"
            )
            (shop / "i.png").rename(place)
    done = airnet("prepare-data", "folder", "people", "--test-share", "1", "--workers", "0")
    assert done.exit_code == 0, done.output
    said = airnet("embed", "--data", "people", "--split", "gallery", "-o", "g.npy")
    assert said.exit_code == 1, said.output
    assert "is not valid UTF-8; rename the image" in said.stderr
