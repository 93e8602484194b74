"""Changes of a folder of segments are killed (SIGKILL) before each operation on a file: a reader
finds what was before or what is after, and the same command then ends as the undisturbed.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.segments import read_segments

pytestmark = pytest.mark.slow

EAGER = {"airnet_cli.core.gallery:SYNC_SECONDS": 0.0}
"""Each batch is brought to disk, so that there is something to go on with."""


@pytest.fixture(scope="module")
def start(nursery, untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops in `old/` and `new/`, two of them broken, and `people/` of three segments of the old
    ones, one row deleted.
    """
    folder = tmp_path_factory.mktemp("start")
    draw = np.random.default_rng(2)
    for name, numbers in (("old", range(12)), ("new", range(10, 22))):
        (folder / name).mkdir()
        for number in numbers:
            pixels = draw.integers(0, 256, (40, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    for number in (13, 21):
        (folder / "new" / f"{number}.png").write_bytes(b"no image")
    for part in (range(4), range(4, 8), range(8, 12)):
        images = [folder / "old" / f"{number:02}.png" for number in part]
        done(nursery.run(*append_words(folder, images, untrained_run)))
    done(nursery.run("gallery", "delete", folder / "people", folder / "old" / "05.png"))
    return folder


def append_words(folder: Path, images: Sequence[Path], model: Path) -> list[Any]:
    words = ["embed", *images, "-o", folder / "people", "--append", "--checkpoint", model]
    return [*words, "--on-bad-image", "skip", "--batch-size", "4", "--workers", "0", "--resume"]


def done(ended: Any) -> Any:
    assert ended.code == 0, ended.output
    return ended


def rows(people: Path) -> tuple[tuple[str, ...], bytes]:
    """What a reader finds."""
    gallery = read_segments(people)
    return gallery.columns["path"], np.asarray(gallery.embeddings).tobytes()


def files(people: Path) -> list[str]:
    """Everything in the folder; each of it is named by the manifest."""
    named = [each["name"] for each in json.loads((people / "gallery.json").read_text())["segments"]]
    there = sorted(path.name for path in people.iterdir())
    expected = [f"{name}{suffix}" for name in named for suffix in (".npy", ".csv", ".json")]
    assert there == sorted(["gallery.json", *expected])
    return there


@pytest.mark.parametrize(
    "kind", ["delete", "delete a segment", pytest.param("compact", marks=pytest.mark.soak)]
)
def test_killed_before_each_operation(nursery, start: Path, tmp_path: Path, kind: str) -> None:
    """Deleting and compacting: old or new for readers; and what is left behind goes in time."""

    def words(folder: Path) -> list[Any]:
        if kind == "compact":
            return ["gallery", "compact", folder / "people"]
        numbers = range(4, 8) if kind == "delete a segment" else (0, 9)
        images = [folder / "old" / f"{number:02}.png" for number in numbers]
        return ["gallery", "delete", folder / "people", *images]

    shutil.copytree(start, tmp_path / "whole")
    before = rows(tmp_path / "whole" / "people")
    whole = done(nursery.run(*words(tmp_path / "whole"), folder=str(tmp_path)))
    after = rows(tmp_path / "whole" / "people")
    expected = files(tmp_path / "whole" / "people")
    assert (before == after) == (kind == "compact")
    seen = set()
    for moment in range(1, whole.operations + 1):
        folder = tmp_path / f"killed-{moment}"
        shutil.copytree(start, folder)
        people = folder / "people"
        ended = nursery.run(*words(folder), folder=str(tmp_path), kill_at=moment)
        assert ended.was_killed, ended.output
        assert rows(people) in (before, after), f"killed at {moment}"
        is_new = (people / "gallery.json").read_bytes() == (
            tmp_path / "whole" / "people" / "gallery.json"
        ).read_bytes()
        seen.add(is_new)
        ended = nursery.run(*words(folder))
        assert ended.code == 0 or (is_new and "has no row of these images" in ended.output)
        assert rows(people) == after, f"killed at {moment}"
        assert files(people) == expected
        shutil.rmtree(folder)
    assert False in seen
    assert True in seen or kind == "delete", "a deletion's last operation is the one that counts"


@pytest.mark.soak
def test_killed_append_goes_on(nursery, kills, start: Path, untrained_run, tmp_path) -> None:
    """Before each operation from the last batch on, and some before: the gallery is the old one or
    the new one, and the same command ends as if nothing had been.
    """

    def words(folder: Path) -> list[Any]:
        images = [folder / "old" / "08.png", folder / "old" / "11.png", folder / "new"]
        return append_words(folder, images, untrained_run)

    shutil.copytree(start, tmp_path / "whole")
    before = rows(tmp_path / "whole" / "people")
    whole = done(nursery.run(*words(tmp_path / "whole"), folder=str(tmp_path), set=EAGER))
    after = rows(tmp_path / "whole" / "people")
    files(tmp_path / "whole" / "people")
    assert len(after[0]) == len(before[0]) + 10
    assert len(set(after[0])) == len(after[0])
    seen = set()
    gone_on = 0
    count = whole.operations
    moments = range(1, count + 1) if kills >= 30 else [3, 9, *range(count - 13, count + 1)]
    for moment in moments:
        folder = tmp_path / f"killed-{moment}"
        shutil.copytree(start, folder)
        people = folder / "people"
        ended = nursery.run(*words(folder), folder=str(tmp_path), kill_at=moment, set=EAGER)
        assert ended.was_killed, ended.output
        found = rows(people)
        assert found in (before, after), f"killed at {moment}"
        seen.add(found == after)
        ended = done(nursery.run(*words(folder)))
        gone_on += "going on after 14 of 14 images" in ended.output
        assert rows(people) == after, f"killed at {moment}"
        files(people)
        shutil.rmtree(folder)
    assert seen == {True, False}
    assert gone_on > 5, "what was embedded is not embedded again"
