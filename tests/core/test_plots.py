"""Figures of curves: what is drawn, and what can't be."""

import sys

import pytest

from airnet_cli.core.plots import SUFFIXES, Line, Panel, draw_panels
from airnet_cli.errors import OutputError, UsageError

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'airnet[plots]'")

LINES = (Line("airnet", (1, 2, 3), (3.0, 2.0, 1.0)), Line("baseline", (1, 2), (2.5, 2.0)))
MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_name_decides_the_format(tmp_path, suffix):
    """Each ending gives a file of its kind, and nothing else is left in the folder."""
    path = tmp_path / f"curves{suffix}"
    draw_panels(path, [Panel("Loss", "epoch", "loss", LINES)] * 3, title="t")
    assert path.read_bytes().startswith(MAGIC[suffix])
    assert list(tmp_path.iterdir()) == [path]


def test_every_name_and_label_is_shown(tmp_path):
    """A line's name stands in the legend once, however many panels have it."""
    path = tmp_path / "curves.svg"
    panels = [Panel("Loss", "epoch", "eq. (7)", LINES), Panel("CMC", "rank", "found", LINES[:1])]
    draw_panels(path, panels, title="two runs")
    text = path.read_text(encoding="utf-8")
    for words in ("two runs", "Loss", "CMC", "eq. (7)", "epoch", "rank", "baseline"):
        assert f"<!-- {words} -->" in text
    assert text.count("<!-- airnet -->") == 1


def test_a_name_has_one_colour_in_all_panels(tmp_path):
    """The second panel lacks the first line; the other keeps its colour."""
    path = tmp_path / "curves.svg"
    draw_panels(path, [Panel("a", "x", "y", LINES[1:])], title="t")
    alone = path.read_text().count("#d55e00")
    draw_panels(path, [Panel("a", "x", "y", LINES), Panel("b", "x", "y", LINES[1:])], title="t")
    assert alone == 0
    assert path.read_text().count("#d55e00") > 2


@pytest.mark.parametrize("name", ["curves.jpg", "curves", "curves.png.txt"])
def test_other_names_are_refused(tmp_path, name):
    """The line names the file and the endings that work."""
    with pytest.raises(UsageError, match=r"no picture's name; it ends in one of \.png, \.svg"):
        draw_panels(tmp_path / name, [Panel("a", "x", "y", LINES)], title="t")


def test_without_matplotlib_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'airnet\[plots\]'"):
        draw_panels(tmp_path / "a.png", [Panel("a", "x", "y", LINES)], title="t")


def test_a_place_that_can_not_be_written_is_one_line(tmp_path):
    """It names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't write"):
        draw_panels(tmp_path / "file" / "a.png", [Panel("a", "x", "y", LINES)], title="t")
