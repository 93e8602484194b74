"""The tracker of docs/how-to/track.md: what it links, and that its script runs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "track.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("track_how_to", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["track_how_to"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def frames(script: ModuleType) -> list:
    return list(script.video(2, frames=12))


def test_people_leave_the_video_and_come_back(script: ModuleType, frames: list) -> None:
    """It is the same each time, boxes are of the crops' size, and somebody is seen after a gap."""
    again = list(script.video(2, frames=12))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(frames, again, strict=True))
    height, width, _ = frames[0].pixels.shape
    for frame in frames:
        assert len(frame.boxes) == len(frame.people) == len(set(frame.people))
        for left, top, right, bottom in frame.boxes:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    seen = ["".join("x" if person in f.people else " " for f in frames) for person in range(5)]
    assert any(" " in each.strip() for each in seen)


def test_true_appearances_are_linked_without_a_switch(script: ModuleType, frames: list) -> None:
    """Through crossings and gaps, if the embeddings say who it is: one track a person."""
    truth = np.random.default_rng(1).normal(size=(5, 32))
    noise = np.random.default_rng(2)
    told = iter(frames)

    def embed(crops: list[np.ndarray]) -> np.ndarray:
        people = next(told).people
        assert len(crops) == len(people)
        return truth[people] + 0.2 * noise.normal(size=(len(people), 32))

    tracker = script.Tracker(threshold=0.5, forget_after=100)
    tracked = list(script.track(iter(frames), embed, tracker))
    assert tracker.begun == 5
    assert script.count_switches(tracked) == 0


EAST, NORTH, BETWEEN = (1.0, 0.0), (0.0, 1.0), (1.0, 0.9)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([[EAST], [EAST]], [[1], [1]]),
        ([[EAST], [NORTH]], [[1], [2]]),
        ([[EAST, NORTH], [NORTH, EAST]], [[1, 2], [2, 1]]),
        ([[EAST], [EAST, EAST]], [[1], [1, 2]]),
        ([[EAST], [BETWEEN, EAST]], [[1], [2, 1]]),
        ([[EAST], [], [EAST]], [[1], [], [1]]),
        ([[EAST], [], [], [EAST]], [[1], [], [], [2]]),
        ([[], []], [[], []]),
    ],
    ids=["same", "other", "order", "once a frame", "best first", "gap", "forgotten", "nobody"],
)
def test_what_is_linked(script: ModuleType, frames: list, expected: list) -> None:
    """The rules of the page, each by itself."""
    tracker = script.Tracker(threshold=0.5, forget_after=2)
    rows = [np.array(each, float).reshape(-1, 2) for each in frames]
    assert [tracker.update(each) for each in rows] == expected


def test_switches_are_counted(script: ModuleType) -> None:
    """A number that differs from the person's last one, also after a gap."""

    def frame(people: list[int]) -> object:
        return script.Frame(np.zeros((1, 1, 3), np.uint8), [(0, 0, 1, 1)] * len(people), people)

    tracked = [
        (frame([0, 1]), [1, 2]),
        (frame([0]), [1]),
        (frame([0, 1]), [2, 1]),
        (frame([1]), [1]),
    ]
    assert script.count_switches(tracked) == 2


def test_the_script(
    script: ModuleType, untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With any network it says what came of it, and draws six of the frames."""
    picture = tmp_path / "track.png"
    script.main([str(untrained_run), "-o", str(picture), "--frames", "6"])
    said = capsys.readouterr().out
    assert said.startswith("6 frames, ")
    assert said.endswith(f"switches; {picture}\n")
    with Image.open(picture) as drawn:
        assert drawn.size == (600, 6 * 147)
