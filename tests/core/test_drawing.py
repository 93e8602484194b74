"""Pictures for people: sizes, frames, marks, legends, and what is refused."""

from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageColor

from airnet_cli.core.drawing import (
    SaliencyPanel,
    SaliencyRow,
    draw_heat,
    draw_ranked_lists,
    draw_saliency_sheet,
    heat_scale,
    open_picture,
)
from airnet_cli.core.ranked import MatchState, RankedList, RankedMatch
from airnet_cli.core.sheet import COLOURS, FRAME, MARK, MEANINGS, draw_mark
from airnet_cli.errors import DataError


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    """A plain crop, of a grey that no frame has."""
    path = tmp_path / "crop.png"
    Image.new("RGB", (64, 128), (120, 130, 140)).save(path)
    return path


def row(crop, *states, label="head A1", person="12"):
    columns = {"person_id": person, "camera_id": "3"}
    matches = (
        RankedMatch(rank, 0, str(crop), 0.9, state, columns)
        for rank, state in enumerate(states, start=1)
    )
    return RankedList(str(crop), crop, label, tuple(matches))


def panel(heat, *, is_signed=False, caption="person 12: 81%"):
    return SaliencyPanel("A1", "airnet", np.array(heat, np.float32), is_signed, caption)


def count(image, colour):
    pixels = np.asarray(image.convert("RGB"))
    return int((pixels == ImageColor.getrgb(colour)).all(axis=2).sum())


@pytest.mark.parametrize("state", get_args(MatchState))
def test_a_match_has_the_frame_of_its_state(crop, state):
    """The frame's pixels are there for this state, besides those of the small mark."""
    drawn = draw_ranked_lists([row(crop, state)], height_px=128, width_px=64)
    empty = draw_ranked_lists([row(crop)], height_px=128, width_px=64)
    frame = 2 * FRAME * (128 + 64 + 2 * FRAME)
    hidden_by_the_mark = 2 * FRAME * MARK
    added = count(drawn, COLOURS[state]) - count(empty, COLOURS[state])
    assert added > frame - hidden_by_the_mark


@pytest.mark.parametrize(("one", "two"), list(combinations(MEANINGS, 2)))
def test_marks_differ_without_colour(one, two):
    """As white signs on a disc, each two differ in more than a twentieth of the square."""
    shapes = []
    for state in (one, two):
        mark = np.asarray(draw_mark(state, 44).convert("RGB"), np.float32)
        ground = np.array(ImageColor.getrgb(COLOURS[state]), np.float32)
        shapes.append(np.abs(mark - ground).sum(axis=2) > 150)  # the white sign
    assert (shapes[0] != shapes[1]).mean() > 0.05


@pytest.mark.parametrize("lengths", [(1,), (10,), (3, 0, 7)], ids=str)
def test_sheet_holds_the_longest_row(crop, lengths):
    """The sheet is as wide as its longest row, and as high as its rows."""
    rows = [row(crop, *["right"] * length) for length in lengths]
    narrow = draw_ranked_lists(rows[:1])
    sheet = draw_ranked_lists(rows)
    assert sheet.mode == "RGB"
    assert sheet.width >= max(lengths) * 104
    assert sheet.height >= narrow.height + (len(rows) - 1) * 192


def test_text_never_leaves_the_sheet(crop):
    """Long names are shortened, whatever their script: the sheet stays as wide as without."""
    name = "a/very long name " * 40 + "é漢字.jpg"
    long = draw_ranked_lists([row(crop, "right", label=name, person=name)], title=name)
    short = draw_ranked_lists([row(crop, "right", label="a", person="a")], title="a")
    assert long.size == short.size


def test_legend_names_only_what_is_there(crop):
    """A state that no picture has is not explained."""
    only_right = draw_ranked_lists([row(crop, "right", "right")])
    both = draw_ranked_lists([row(crop, "right", "wrong")])
    assert count(only_right, COLOURS["wrong"]) == 0
    assert count(both, COLOURS["wrong"]) > 0


def test_heat_covers_where_it_is_strong():
    """Where the map is 0 the picture is grey; at its strongest place it is coloured."""
    picture = Image.new("RGB", (64, 128), (200, 60, 60))
    heat = np.zeros((8, 4), np.float32)
    heat[0, 0] = 3.7
    drawn = np.asarray(draw_heat(picture, heat, is_signed=False)).astype(int)
    assert drawn.shape == (256, 128, 3)
    assert np.ptp(drawn[-20:, -20:], axis=2).max() == 0
    assert np.ptp(drawn[10, 10]) > 100


def test_signed_heat_tells_the_signs_apart():
    """Positive is more red than blue, negative more blue than red."""
    heat = np.array([[1, 0], [0, 0], [0, 0], [0, -0.9]], np.float32)
    drawn = np.asarray(draw_heat(Image.new("RGB", (64, 128)), heat, is_signed=True)).astype(int)
    assert drawn[5, 5, 0] > drawn[5, 5, 2] + 50
    assert drawn[-5, -5, 2] > drawn[-5, -5, 0] + 50


def test_heat_of_nothing_shows_the_picture_in_grey():
    """A map of zeros is no division by zero, and colours nothing."""
    drawn = draw_heat(
        Image.new("RGB", (64, 300), "red"), np.zeros((8, 4), np.float32), is_signed=False
    )
    assert drawn.size == (64, 300)  # high enough: not enlarged
    assert np.ptp(np.asarray(drawn), axis=2).max() == 0


@pytest.mark.parametrize("is_signed", [False, True])
def test_the_ends_of_the_scale_differ(is_signed):
    """Nothing and the strongest, or the two signs, look different; between signs it is grey."""
    bar = np.asarray(heat_scale(is_signed).image.convert("RGB")).astype(int)[0]
    assert np.abs(bar[0] - bar[-1]).sum() > 150
    if is_signed:
        middle = bar[len(bar) // 2]
        assert np.ptp(middle) < 30


def test_saliency_sheet_has_a_column_for_each_panel(crop):
    """Each panel adds a column, each picture a row; signed and plain maps have their scales."""
    heat = [[0, 1], [2, 0]]
    one = draw_saliency_sheet([SaliencyRow("a", crop, (panel(heat),))])
    three = draw_saliency_sheet([SaliencyRow("a", crop, (panel(heat),) * 3)])
    both = draw_saliency_sheet(
        [SaliencyRow("a", crop, (panel(heat), panel(heat, is_signed=True), panel(heat)))]
    )
    two_rows = draw_saliency_sheet([SaliencyRow("a", crop, (panel(heat),) * 3)] * 2)
    assert three.width > one.width
    assert both.height > three.height
    assert two_rows.height >= three.height + 256


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file; was its folder moved"),
        (b"no image", "can't be read"),
        (b"", "can't be read"),
    ],
    ids=["missing", "text", "empty"],
)
def test_a_bad_image_is_one_line(tmp_path, content, words):
    """It names the file, and says what is wrong with it."""
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
