"""Galleries of segments: every change is whole, and the rows are those of one file."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core import segments as module
from airnet_cli.core.files import lock_folder
from airnet_cli.core.gallery import Gallery, GalleryWriter, Listing, read_gallery
from airnet_cli.core.retrieval.search import search
from airnet_cli.core.segments import (
    MANIFEST,
    append_segment,
    changing,
    compact,
    delete_rows,
    next_segment,
    open_gallery,
    publish,
    read_columns,
    read_manifest,
    read_segments,
)
from airnet_cli.errors import DataError

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


def test_columns_of_all_segments(tmp_path: Path) -> None:
    """A table has the columns of all segments; cells of one that lacks a column are empty."""
    write(tmp_path / "a.npy", [0, 1], columns={"day": ("mon", "tue"), "note": ("x", "y")})
    write(tmp_path / "b.npy", [2], columns={"camera_id": ("7",), "day": ("wed",)})
    publish(tmp_path, ["a", "b"])
    assert read_segments(tmp_path).columns == {
        "path": ("crops/000.jpg", "crops/001.jpg", "crops/002.jpg"),
        "day": ("mon", "tue", "wed"),
        "note": ("x", "y", ""),
        "camera_id": ("", "", "7"),
    }
    with changing(tmp_path) as manifest:
        assert read_columns(tmp_path, manifest) == read_segments(tmp_path).columns


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files_of(*names: str) -> set[str]:
    return {
        MANIFEST,
        *(f"{name}{suffix}" for name in names for suffix in (".npy", ".csv", ".json")),
    }


def test_compacted(people: Path) -> None:
    """One segment with the rows that are left, as if they had been written at once; the old files
    are gone, and what is compact stays.
    """
    compacted(people)
    same(read_segments(people), LEFT)
    assert files_in(people) == files_of("compacted-000005")
    write(people.parent / "one.npy", LEFT)
    for suffix in (".npy", ".csv"):
        one = (people.parent / "one.npy").with_suffix(suffix)
        assert (people / f"compacted-000005{suffix}").read_bytes() == one.read_bytes()
    before = (people / MANIFEST).read_bytes()
    compacted(people)
    assert (people / MANIFEST).read_bytes() == before
    append(people, [40], replaced=[1])
    same(read_segments(people), [LEFT[0], *LEFT[2:], 40])
    compacted(people)
    same(read_segments(people), [LEFT[0], *LEFT[2:], 40])
    assert files_in(people) == files_of("compacted-000007")


def test_a_segment_without_rows_is_dropped(people: Path) -> None:
    """Its files go; without any rows the gallery is empty, and can be filled again."""
    delete(people, range(7, 18))
    assert files_in(people) == files_of("segment-000001")
    delete(people, range(7))
    assert files_in(people) == files_of()
    empty = read_segments(people)
    assert (empty.embeddings.shape, empty.columns) == ((0, DIMENSIONS), {"path": ()})
    compacted(people)
    append(people, [3])
    same(read_segments(people), [3])
    assert files_in(people) == files_of("segment-000004")


@pytest.mark.parametrize("case", range(20))
def test_any_changes_leave_the_rows_of_a_list(tmp_path: Path, case: int) -> None:
    """Random appends, deletions and compactions, against a list that is changed alike."""
    draw = np.random.default_rng(case)
    rows: list[int] = []
    upcoming = 0
    for _ in range(6):
        kind = draw.choice(["append", "delete", "compact"]) if rows else "append"
        gone = np.flatnonzero(draw.random(len(rows)) < draw.choice([0.05, 0.4, 1]))
        if kind == "append":
            new = [*range(upcoming, upcoming := upcoming + int(draw.integers(1, 9)))]
            append(tmp_path, new, gone)
        elif kind == "delete":
            new = []
            delete(tmp_path, gone)
        else:
            new, gone = [], gone[:0]
            compacted(tmp_path)
        rows = [row for place, row in enumerate(rows) if place not in gone] + new
        if rows:
            same(read_segments(tmp_path), rows)
        assert read_manifest(tmp_path).rows == len(rows)


def test_a_reader_begins_again_where_files_go(
    people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compacted between its manifest and its segments: it reads the new manifest."""
    real = module.read_gallery
    times = 1

    def read(path: Path) -> Gallery:
        nonlocal times
        if times:
            times -= 1
            append(people, [30 + times])
            compacted(people)
        return real(path)

    monkeypatch.setattr(module, "read_gallery", read)
    same(read_segments(people), [*LEFT, 30])


def test_a_reader_does_not_begin_again_for_ever(
    people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every manifest is out of date when its segments are opened, it says what it misses."""
    tries = 0

    def gone(path: Path) -> Gallery:
        nonlocal tries
        tries += 1
        top(generation=100 + tries)(people)
        raise DataError(f"gallery '{path}' does not exist")

    monkeypatch.setattr(module, "read_gallery", gone)
    with pytest.raises(DataError, match="does not exist"):
        read_segments(people)
    assert tries == module.TRIES


def test_readers_see_whole_states(people: Path) -> None:
    """While one thread appends, deletes and compacts, others read what is before or after each."""
    states = {tuple(LEFT)}
    seen: set[tuple[int, ...]] = set()
    problems: list[BaseException] = []
    is_over = threading.Event()

    def read() -> None:
        try:
            while not is_over.is_set():
                gallery = read_segments(people)
                numbers = tuple(int(path[6:9]) for path in gallery.columns["path"])
                assert np.array_equal(np.asarray(gallery.embeddings), rows_of(numbers))
                seen.add(numbers)
        except BaseException as problem:
            problems.append(problem)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    rows = list(LEFT)
    for number in range(100, 112):
        states.add((*rows, number))
        append(people, [number])
        states.add((*rows[1:], number))
        delete(people, [0])
        rows = [*rows[1:], number]
        compacted(people)
    is_over.set()
    for reader in readers:
        reader.join()
    assert not problems, problems
    assert seen <= states
    assert len(seen) > 3


def test_a_second_writer_is_kept_out(people: Path) -> None:
    """One line, and nothing is changed."""
    before = {path.name: path.read_bytes() for path in people.iterdir()}
    with lock_folder(people), pytest.raises(DataError, match="is being written by another process"):
        compacted(people)
    assert {path.name: path.read_bytes() for path in people.iterdir()} == before


def test_what_killed_jobs_left_is_removed(people: Path) -> None:
    """Files of segments that no manifest names, under our own names alone; an append that can be
    gone on with stays.
    """
    kept = {"segment-7.npy", "notes.txt", "shard-00000-of-00002.npy", ".segment-000004.npy.part"}
    kept |= {".segment-000004.part.json", "compacted.json", "segment-000099.csv"}
    gone = {"compacted-000009.npy", ".compacted-000009.npy.part", ".compacted-000009.part.json"}
    gone |= {".segment-000003.part.json", ".gallery.json.abcdefgh.part"}
    gone |= {".segment-000004.npy.abcdefgh.part"}
    before = files_in(people)
    for name in kept | gone:
        (people / name).write_bytes(b"")
    delete(people, [])
    assert files_in(people) == before | kept


def test_the_name_of_the_next_segment_is_taken(people: Path) -> None:
    """A file that no job of ours left there is not written over."""
    write(people / "segment-000004.npy", [1])
    with pytest.raises(
        DataError, match=r"segment-000004.npy' has the name of the next segment, and"
    ):
        append(people, [50])


SHARDS = ["shard-00000-of-00002", "shard-00001-of-00002"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two finished segments, without a manifest."""
    for place, name in enumerate(SHARDS):
        write(tmp_path / "shards" / f"{name}.npy", range(5 * place, 5 * place + 5))
    return tmp_path / "shards"


def test_published(shards: Path) -> None:
    """In order, and the same bytes whoever does it, again too; the folder is then like any."""
    publish(shards, SHARDS)
    same(read_segments(shards), range(10))
    written = (shards / MANIFEST).read_bytes()
    publish(shards, SHARDS)
    (shards / MANIFEST).unlink()
    threads = [threading.Thread(target=publish, args=(shards, SHARDS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (shards / MANIFEST).read_bytes() == written
    append(shards, [20], replaced=[3])
    same(read_segments(shards), [0, 1, 2, *range(4, 10), 20])
    with pytest.raises(DataError, match="is a gallery already, of 3 segments that are not these"):
        publish(shards, SHARDS)
    compacted(shards)
    assert files_in(shards) == files_of("compacted-000003")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / f"{SHARDS[1]}.json").unlink(), "has no shard-00001.*json beside"),
        (lambda folder: (folder / f"{SHARDS[1]}.csv").unlink(), "is not whole; write it again"),
        (lambda folder: (folder / f"{SHARDS[0]}.npy").unlink(), "is not whole; write it again"),
        (
            lambda folder: write(folder / f"{SHARDS[1]}.npy", [8], fingerprint="cd" * 32),
            "differ in model: cdcdcdcdcdcd and abababababab, so",
        ),
        (
            lambda folder: write(folder / f"{SHARDS[1]}.npy", [8], dtype="float16"),
            "shard-00001-of-00002.npy' and segment 'shard-00000-of-00002' differ in dtype",
        ),
        (
            lambda folder: write(folder / f"{SHARDS[1]}.npy", [8], flip=False),
            "differ in flip: false",
        ),
        (lambda folder: (folder / MANIFEST).write_text("{"), "gallery.json' can't be read"),
        (lambda folder: write(folder / "gallery.npy", [8]), "is the record of the gallery"),
    ],
    ids=["record", "table", "matrix", "model", "dtype", "flip", "broken manifest", "one file"],
)
def test_what_is_not_published(shards: Path, spoil: Callable[[Path], Any], message: str) -> None:
    """Segments that are not whole or do not belong together, and folders of something else."""
    spoil(shards)
    with pytest.raises(DataError, match=message) as error:
        publish(shards, SHARDS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names", [[], ["a", "a"], ["../a"], ["gallery"], ["segment-000001"], [""], ["a.b"]]
)
def test_names_that_no_program_may_give(shards: Path, names: list[str]) -> None:
    """A mistake of ours, not of a user."""
    with pytest.raises(ValueError, match="segment"):
        publish(shards, names)


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A manifest with wrong values."""

    def spoil(folder: Path) -> None:
        record = json.loads((folder / MANIFEST).read_text())
        change(record)
        (folder / MANIFEST).write_text(json.dumps(record))

    return spoil


def first(**values: object) -> Callable[[Path], None]:
    return changed(lambda record: record["segments"][0].update(values))


def top(**values: object) -> Callable[[Path], None]:
    return changed(lambda record: record.update(values))


def swap(folder: Path) -> None:
    """Another gallery under the name of a segment, whole in itself."""
    write(folder / "segment-000002.npy", [11, 12])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "up": (first(name="../people/segment-000001"), "wrong about its segments' names and rows"),
    "absolute": (first(name="/etc/passwd"), "wrong about its segments' names and rows"),
    "hidden": (first(name=".segment-000001"), "wrong about its segments' names and rows"),
    "itself": (first(name="gallery"), "wrong about its segments' names and rows"),
    "twice": (
        first(name="segment-000003"),
        "wrong about its segments, one of which is named twice",
    ),
    "to come": (first(name="segment-000009"), "segments: segment-000009 is to come yet"),
    "no segment": (first(name="nowhere"), "nowhere.npy' does not exist"),
    "no rows": (first(rows=0), "wrong about its segments' names and rows"),
    "huge": (first(rows=10**30), "wrong about its segments' names and rows"),
    "large": (
        first(rows=2**40, deleted=f"0-{2**40 - 8}"),
        "another than the one that gallery.json",
    ),
    "true": (first(rows=True), "wrong about its segments"),
    "other rows": (first(rows=9), "is another than the one|wrong about its rows"),
    "all deleted": (first(deleted="0-9"), "wrong about its deleted rows"),
    "beyond": (first(deleted="10"), "wrong about its deleted rows"),
    "negative": (first(deleted="-1"), "wrong about its deleted rows"),
    "backwards": (first(deleted="5-3"), "wrong about its deleted rows"),
    "overlap": (first(deleted="1-3,3"), "wrong about its deleted rows"),
    "words": (first(deleted="all"), "wrong about its deleted rows"),
    "long": (first(deleted="9" * 5000), "wrong about its deleted rows"),
    "list": (first(deleted=[0]), "wrong about its segments"),
    "count": (top(rows=19), "wrong about its rows"),
    "heads": (top(heads={"A1": [0, 4]}), "wrong about its heads"),
    "dimensions": (top(dimensions=2**60, heads={"A1": [0, 2**60]}), "wrong about its heads"),
    "dtype": (top(dtype="int8"), "wrong about its dtype"),
    "flip": (top(flip=False), "differ in flip"),
    "types": (top(generation="x", dropped=None), "wrong about its generation, dropped"),
    "dropped": (top(dropped=["../crops"]), "wrong about its dropped segments"),
    "dropped and there": (top(dropped=["segment-000001"]), "wrong about its dropped segments"),
    "number": (top(generation=-1), "wrong about its generation"),
    "many": (
        top(segments=[None] * 100_001),
        "wrong about its segments, of which there are 100,001",
    ),
    "no list": (top(segments={}), "wrong about its segments"),
    "version": (top(format_version=2), "has format version 2, this airnet reads 1; update airnet"),
    "format": (top(format="other"), "does not describe a gallery of airnet"),
    "no object": (lambda folder: (folder / MANIFEST).write_text("[]"), "does not describe a"),
    "text": (lambda folder: (folder / MANIFEST).write_text("{"), "can't be read"),
    "gone": (lambda folder: (folder / MANIFEST).unlink(), "has no gallery.json, so it is no"),
    "segment gone": (lambda folder: (folder / "segment-000002.npy").unlink(), "does not exist"),
    "another segment": (swap, "segment-000002.npy' is another than the one that gallery.json"),
    "cut": (
        lambda folder: os.truncate(folder / "segment-000002.npy", 140),
        "can't be read as a NumPy array",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(people: Path, kind: str) -> None:
    """Each defect is named, for readers and writers, and no writer removes anything for it."""
    spoil, message = DAMAGE[kind]
    spoil(people)
    before = files_in(people)
    with pytest.raises(DataError, match=message) as error:
        open_gallery(people)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError) as error:
        compacted(people) if MANIFEST in before else read_manifest(people)
    assert "\n" not in str(error.value)
    assert files_in(people) == before


def test_more_segments_than_open_files(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mapped matrix is an open file: what to do is said before they run out."""
    monkeypatch.setattr(module, "OTHER_FILES", 10**9)
    with pytest.raises(DataError, match=r"has 3 segments, and a process .* `ulimit -n 1000000003`"):
        read_segments(people)


def test_no_gallery(tmp_path: Path) -> None:
    """What is not there says how it is made; other folders are told apart."""
    with pytest.raises(DataError, match=r"embed IMAGES -o .*people --append` makes it"):
        open_gallery(tmp_path / "people")
    with pytest.raises(DataError, match=r"has no gallery.json, so it is no gallery"):
        open_gallery(tmp_path)
    write(tmp_path / "gallery.npy", [1])
    with pytest.raises(
        DataError, match=r"is the record of the gallery '.*gallery.npy', which is one"
    ):
        open_gallery(tmp_path)
    assert len(open_gallery(tmp_path / "gallery.npy").embeddings) == 1
