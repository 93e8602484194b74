"""Galleries of segments: every change is whole, and the rows are those of one file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core.gallery import Gallery, GalleryWriter, Listing, read_gallery
from airnet_cli.core.retrieval.search import search
from airnet_cli.core.segments import (
    MANIFEST,
    append_segment,
    changing,
    compact,
    delete_rows,
    next_segment,
    publish,
    read_segments,
)

DIMENSIONS = 6
RECORD = {
    "fingerprint": "ab" * 32,
    "checkpoint": "runs/a/model.safetensors",
    "heads": {"A1": [0, 4], "I": [4, 6]},
    "normalize_heads": False,
    "flip": True,
    "precision": "fp32",
}


def rows_of(numbers: Sequence[int]) -> np.ndarray:
    """The embeddings of images `numbers`; some of them are equal, for ties."""
    rows = [np.random.default_rng(number % 17).normal(size=DIMENSIONS) for number in numbers]
    return np.array(rows, np.float32)


def write(path: Path, numbers: Sequence[int], *, dtype: Any = "float32", **record: Any) -> dict:
    """A gallery of images `numbers`."""
    columns = record.pop("columns", {"camera_id": tuple(str(n % 3) for n in numbers)})
    listing = Listing(tuple(f"crops/{number:03}.jpg" for number in numbers), columns)
    with GalleryWriter(
        path, listing, dimensions=DIMENSIONS, dtype=dtype, settings={}, resume=False
    ) as writer:
        writer.append(range(len(numbers)), rows_of(numbers))
        return writer.finish(RECORD | record)


def append(folder: Path, numbers: Sequence[int], replaced: Sequence[int] = ()) -> None:
    """Append images `numbers`, without the rows `replaced`."""
    folder.mkdir(exist_ok=True)
    with changing(folder) as manifest:
        record = write(next_segment(folder, manifest), numbers)
        gone = np.zeros(0 if manifest is None else manifest.rows, np.bool_)
        gone[list(replaced)] = True
        append_segment(folder, manifest, record, gone)


def delete(folder: Path, rows: Sequence[int]) -> None:
    with changing(folder) as manifest:
        gone = np.zeros(manifest.rows, np.bool_)
        gone[list(rows)] = True
        delete_rows(folder, manifest, gone)


def compacted(folder: Path) -> None:
    with changing(folder) as manifest:
        compact(folder, manifest)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three segments of 10, 1 and 12 images; rows are deleted in two of them."""
    folder = tmp_path / "people"
    append(folder, range(10))
    append(folder, [10])
    append(folder, range(11, 23))
    delete(folder, [0, 4, 5, 12, 22])
    return folder


LEFT = [n for n in range(23) if n not in (0, 4, 5, 12, 22)]


def same(gallery: Gallery, numbers: Sequence[int]) -> None:
    """The gallery has the rows and cells of images `numbers`, in order."""
    assert gallery.columns["path"] == tuple(f"crops/{number:03}.jpg" for number in numbers)
    assert gallery.columns["camera_id"] == tuple(str(number % 3) for number in numbers)
    assert gallery.embeddings.shape == (len(numbers), DIMENSIONS)
    assert np.array_equal(np.asarray(gallery.embeddings), rows_of(numbers))


def test_rows_are_those_of_the_segments(people: Path) -> None:
    """In order, without those that are deleted; images are relative to the folder."""
    gallery = read_segments(people)
    same(gallery, LEFT)
    assert gallery.path == people
    assert gallery.image_path(0) == people / "crops/001.jpg"
    assert gallery.heads == {"A1": slice(0, 4), "I": slice(4, 6)}
    assert (gallery.fingerprint, gallery.flip, gallery.normalize_heads) == ("ab" * 32, True, False)
    entries = json.loads((people / MANIFEST).read_text())["segments"]
    assert [entry["deleted"] for entry in entries] == ["0,4-5", "", "1,11"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("queries", [1, 9])
def test_a_search_finds_what_it_finds_in_one_file(tmp_path: Path, dtype: str, queries: int) -> None:
    """Same rows, same scores, same ties, for any blocks, conditions and heads."""
    draw = np.random.default_rng(4)
    for case in range(6):
        folder = tmp_path / str(case)
        sizes = draw.integers(1, 40, size=draw.integers(1, 7))
        ends = np.cumsum(sizes)
        names = [f"part-{place}" for place in range(len(sizes))]
        for name, end, size in zip(names, ends, sizes, strict=True):
            write(folder / f"{name}.npy", range(end - size, end), dtype=dtype)
        publish(folder, names)
        gone = draw.random(ends[-1]) < draw.choice([0.0, 0.1, 0.8])
        gone[draw.integers(ends[-1])] = False
        with changing(folder) as manifest:
            delete_rows(folder, manifest, gone)
        left = np.flatnonzero(~gone).tolist()
        write(folder / "one.npy", left, dtype=dtype)
        one, many = read_gallery(folder / "one.npy"), read_segments(folder)
        assert one.columns == many.columns
        allowed = draw.random(len(left)) < 0.7
        allowed[0] = True
        for where in (None, allowed):
            expected, found = (
                search(
                    queries=rows_of(range(queries)),
                    gallery_embeddings=gallery.embeddings,
                    k=7,
                    allowed=where,
                    parts=tuple(gallery.heads.values())[: 1 + case % 2],
                    block_rows=(None, 5, 16)[case % 3],
                )
                for gallery in (one, many)
            )
            assert np.array_equal(found.rows, expected.rows)
            assert np.array_equal(found.scores, expected.scores)


def test_rows_by_number_slice_and_mask(people: Path) -> None:
    """As NumPy takes them from one matrix."""
    joined, whole = read_segments(people).embeddings, rows_of(LEFT)
    mask = np.arange(len(LEFT)) % 2 == 0
    for key in (3, -1, slice(2, 15, 3), slice(None, None, -1), [5, 0, 17, 5], [-2, 9], mask):
        assert np.array_equal(joined[key], whole[key]), key
    assert joined[[]].shape == (0, DIMENSIONS)
    assert np.array_equal(joined[np.array([[1, 2], [16, 0]])], whole[np.array([[1, 2], [16, 0]])])
    for wrong in (len(LEFT), [-len(LEFT) - 1], mask[:-1], [0.5]):
        with pytest.raises(IndexError):
            joined[wrong]
