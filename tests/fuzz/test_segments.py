"""Damaged folders of segments: sound rows, or one line; no file is removed but those of segments
that the folder itself gives up.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core.gallery import GalleryWriter, Listing
from airnet_cli.core.retrieval.search import search
from airnet_cli.core.segments import (
    MANIFEST,
    changing,
    compact,
    delete_rows,
    publish,
    read_columns,
    read_segments,
)

ROWS, DIMENSIONS = 5, 6
CASES = 250
RECORD = {
    "fingerprint": "ab" * 32,
    "checkpoint": "runs/x/model.safetensors",
    "heads": {"A1": [0, 4], "I": [4, 6]},
    "normalize_heads": False,
    "flip": False,
}
NAMES = ("part-a", "part-b", "part-c")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three segments of five rows, two of them deleted; a file of somebody else beside them."""
    folder = tmp_path / "people"
    draw = np.random.default_rng(3)
    for name in NAMES:
        listing = Listing(
            tuple(f"{name}/{row}.jpg" for row in range(ROWS)), {"note": ("x",) * ROWS}
        )
        with GalleryWriter(
            folder / f"{name}.npy",
            listing,
            dimensions=DIMENSIONS,
            dtype="float32",
            settings={},
            resume=False,
        ) as writer:
            writer.append(range(ROWS), draw.normal(size=(ROWS, DIMENSIONS)).astype(np.float32))
            writer.finish(RECORD)
    publish(folder, NAMES)
    with changing(folder) as manifest:
        assert manifest is not None
        delete_rows(folder, manifest, np.arange(3 * ROWS) % 7 == 1)
    (tmp_path / "notes.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def restore(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_spoilt_segments(people: Path, survive, damage) -> None:
    """Rows in step with the table, or one line."""
    files = contents(people)

    def attempt(chance: random.Random) -> None:
        spoilt = chance.choice([MANIFEST, MANIFEST, *files])
        (people / spoilt).write_bytes(damage(files[spoilt], chance))
        try:
            found = read_segments(people)
            rows = np.asarray(found.embeddings)
            assert {len(cells) for cells in found.columns.values()} == {len(rows)}
        finally:
            (people / spoilt).write_bytes(files[spoilt])

    survive("segments", attempt, cases=CASES)


JUNK: list[Any] = [None, True, -1, 0, 5, 2**40, 2**70, 1.5, float("nan"), "", "x", "\ud800", []]
JUNK += ["a\0b", "x" * 5000, "/dev/zero", "../part-a", "part-b", "gallery", "notes", {}, [[0, 6]]]
JUNK += ["0", "0-4", "1,3", "1,2", "4-9", "0-999999999999999", "1-", "-1", ",", "9" * 400, ["x"]]
JUNK += [{"A1": [0, 6]}, {"A1": [0, 9]}, {"A1": "06"}, {"a\nb\x1b": [0, 6]}, "int8", "float16"]
JUNK += [["part-d"], ["../notes"], ["notes"], ["segment-000001"], [{"name": "part-a"}]]


def replaced(value: Any, chance: random.Random) -> Any:
    """`value` with something else somewhere in it."""
    if chance.random() < 0.2 or not value or not isinstance(value, dict | list):
        return chance.choice(JUNK)
    if isinstance(value, list):
        place = chance.randrange(len(value))
        if chance.random() < 0.2:  # twice, or in another place
            return [*value, value[place]] if chance.random() < 0.5 else value[::-1]
        return [*value[:place], replaced(value[place], chance), *value[place + 1 :]]
    key = chance.choice(list(value))
    return {**value, key: replaced(value[key], chance)}


def test_made_up_manifests(people: Path, survive) -> None:
    """Rows in step with the table, a search that finds finite scores, and changes that leave other
    files alone; or one line.
    """
    files = contents(people)
    good = json.loads(files[MANIFEST])

    def attempt(chance: random.Random) -> None:
        record = good
        for _ in range(chance.choice((1, 1, 2))):
            record = replaced(record, chance)
        text = json.dumps(record)
        restore(people, files | {MANIFEST: text.encode()})
        try:
            found = read_segments(people)
            rows, width = found.embeddings.shape
            assert all(len(cells) == rows for cells in found.columns.values())
            assert np.asarray(found.embeddings).shape == (rows, width)
            for row in range(rows):
                found.image_path(row)
            scores = search(
                queries=np.ones((1, width)),
                gallery_embeddings=found.embeddings,
                k=3,
                parts=tuple(found.heads.values()),
            ).scores
            assert np.isfinite(scores).all()
            with changing(people) as manifest:
                assert manifest is not None
                assert read_columns(people, manifest) == found.columns
                left = delete_rows(people, manifest, np.arange(rows) == 0)
            with changing(people) as manifest:
                compact(people, left)
            assert read_segments(people).columns["path"] == found.columns["path"][1:]
        finally:
            assert (people.parent / "notes.json").exists()
            assert {path.name for path in people.parent.iterdir()} == {"people", "notes.json"}

    accepted, refused = survive("manifests of segments", attempt, cases=CASES)
    assert accepted > 5
    assert refused > CASES / 2
