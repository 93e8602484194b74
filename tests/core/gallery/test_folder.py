"""A folder of parts: random changes against a dictionary, kills, readers, two writers, jobs."""

import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core.gallery import Gallery, open_gallery
from airnet_cli.core.gallery.files import blocks, write_matrix, write_table
from airnet_cli.core.gallery.folder import append, compact, delete
from airnet_cli.core.gallery.parts import Job, check_job, clean, publish, read_snapshot
from airnet_cli.core.gallery.storage import DiskFolder
from airnet_cli.errors import DataError

RECORD = {
    "fingerprint": "ab" * 32,
    "heads": {"A1": [0, 1], "I": [1, 2]},
    "dimensions": 2,
    "dtype": "float32",
    "flip": False,
    "normalize_heads": False,
    "skipped": [],
}

Rows = dict[str, float]
"""What a gallery should have: a number for each image."""


def source(rows: Rows) -> Gallery:
    values = np.array([[value, 1] for value in rows.values()], np.float32).reshape(-1, 2)
    columns = {"path": list(rows), "value": [str(value) for value in rows.values()]}
    return Gallery(Path("x"), values, columns, heads={}, record={})


def rows_of(folder: Path, **options: bool) -> Rows:
    """What is in the gallery; matrix and table must agree."""
    gallery = open_gallery(folder, **options)
    rows = dict(zip(gallery.columns["path"], gallery.embeddings[:][:, 0].tolist(), strict=True))
    assert len(rows) == len(gallery.embeddings), "no image twice"
    if rows:
        assert [float(cell) for cell in gallery.columns["value"]] == list(rows.values())
    return rows


def named(images: set[str]) -> Callable[[Gallery], Any]:
    return lambda gallery: np.array([path in images for path in gallery.columns["path"]], bool)


def change(folder: Path, expected: Rows, luck: random.Random) -> Rows:
    """Change the gallery, and return what it should have then."""
    kind = luck.choice(["append", "append", "delete", "compact"])
    if kind == "append" or not (folder / "000001.json").exists():
        new = {f"{luck.randrange(12)}.png": luck.randrange(1, 999) for _ in range(4)}
        append(folder, source(new), RECORD)
        return {image: value for image, value in expected.items() if image not in new} | new
    if kind == "delete":
        gone = {f"{luck.randrange(12)}.png" for _ in range(3)}
        delete(folder, named(gone))
        return {image: value for image, value in expected.items() if image not in gone}
    compact(folder)
    return expected


def test_random_changes_are_those_of_a_dictionary(tmp_path: Path) -> None:
    """Order included: new rows come last."""
    luck, expected = random.Random(1), {}
    for _ in range(60):
        expected = change(tmp_path, expected, luck)
        assert list(rows_of(tmp_path).items()) == list(expected.items())
    compact(tmp_path)
    data = {path.name for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert len(data) == (2 if expected else 0), "old files are removed"


class Killed(BaseException):
    """The process is gone: nothing that comes later has an effect."""


@pytest.fixture
def kill_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], list[int]]]:
    """Return a function that lets file operations count, and fail from the n-th one on."""
    count, limit = [0], [None]

    def step() -> None:
        count[0] += 1
        if limit[0] is not None and count[0] >= limit[0]:
            raise Killed

    real_open = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", *a, **k: (
            step() if set(mode) & set("wxa+") else None,
            real_open(self, mode, *a, **k),
        )[1],
    )
    for name in ("link", "unlink", "mkdir", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **k: (step(), real(*a, **k))[1])

    def start(moment: int | None) -> list[int]:
        count[0], limit[0] = 0, moment
        return count

    yield start
    limit[0] = None


@pytest.mark.parametrize("kind", ["append", "delete", "compact"])
def test_killed_before_each_operation(tmp_path: Path, kill_before: Any, kind: str) -> None:
    """The gallery is that of before or after the change; the next change works and cleans up."""
    before = tmp_path / "before"
    append(before, source({"a": 1, "b": 2}), RECORD)
    append(before, source({"b": 3, "c": 4}), RECORD)
    old = rows_of(before)
    changes: dict[str, Callable[[Path], object]] = {
        "append": lambda folder: append(folder, source({"a": 5, "d": 6}), RECORD),
        "delete": lambda folder: delete(folder, named({"a", "b"})),
        "compact": compact,
    }
    shutil.copytree(before, tmp_path / "after")
    count = kill_before(None)
    changes[kind](tmp_path / "after")
    operations, new = count[0], rows_of(tmp_path / "after")
    assert operations > 2
    seen = []
    for moment in range(1, operations + 1):
        folder = tmp_path / f"killed-{moment}"
        shutil.copytree(before, folder)
        kill_before(moment)
        with pytest.raises(Killed):
            changes[kind](folder)
        kill_before(None)
        seen.append(rows_of(folder))
        assert seen[-1] in (old, new)
        append(folder, source({"e": 7}), RECORD)
        assert rows_of(folder) == seen[-1] | {"e": 7}
        compact(folder)
        data = [path for path in folder.iterdir() if path.suffix != ".json"]
        assert len(data) == 2, data
    assert old in seen


def test_readers_and_writers_meanwhile(tmp_path: Path) -> None:
    """Two writers change images of their own, one of them compacts, and readers see whole rows."""
    append(tmp_path, source({"0-0": 0, "1-0": 0}), RECORD)
    wrong: list[BaseException] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        try:
            for turn in range(1, 25):
                new = {f"{writer}-{turn % 3}": turn, f"{writer}-x": turn}
                append(tmp_path, source(new), RECORD)
                if turn % 5 == writer:
                    compact(tmp_path)
        except BaseException as error:
            wrong.append(error)

    def read() -> None:
        try:
            while not stop.is_set():
                for writer in (0, 1):
                    rows = rows_of(tmp_path)
                    own = [value for image, value in rows.items() if image[0] == str(writer)]
                    assert rows.get(f"{writer}-x", max(own)) == max(own), "half of a change"
        except BaseException as error:
            wrong.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not wrong, wrong
    expected = {"0-0": 24, "0-1": 22, "0-2": 23, "0-x": 24}
    assert rows_of(tmp_path) == expected | {f"1{key[1:]}": v for key, v in expected.items()}


JOB = Job(parts=3, size=2, listing="cd" * 32)


def compute(folder: Path, number: int, value: float, **changes: Any) -> bool:
    """Publish a part of the job, as a process that computed `value`."""
    rows = {f"{number}-{i}": value for i in range(2)}
    record = {**RECORD, "rows": 2, "job": {**asdict(JOB), "part": number}, **changes}

    def make(npy: Path, csv: Path) -> dict[str, Any]:
        made = source(rows)

        write_matrix(npy, blocks(made.embeddings), 2, "float32")
        write_table(csv, made.columns)
        return record

    return publish(DiskFolder(folder), number, make, hides={})


def test_two_writers_of_one_part(tmp_path: Path) -> None:
    """The first record counts, with its own files; those of the second one are removed."""
    assert compute(tmp_path, 1, 1.0)
    assert not compute(tmp_path, 1, 2.0)
    assert len(list(tmp_path.iterdir())) == 3
    assert rows_of(tmp_path, allow_partial=True) == {"1-0": 1.0, "1-1": 1.0}


def test_missing_parts(tmp_path: Path) -> None:
    """They are listed; with allow_partial the rest is opened; nothing can be added before."""
    assert JOB.missing(DiskFolder(tmp_path)) == [1, 2, 3]
    compute(tmp_path, 3, 3.0)
    assert JOB.missing(DiskFolder(tmp_path)) == [1, 2]
    with pytest.raises(DataError, match=r"is incomplete: 2 parts are missing \(1, 2\)"):
        open_gallery(tmp_path)
    with pytest.raises(DataError, match="is incomplete"):
        append(tmp_path, source({"a": 1}), RECORD)
    assert list(rows_of(tmp_path, allow_partial=True)) == ["3-0", "3-1"]
    compute(tmp_path, 1, 1.0)
    compute(tmp_path, 2, 2.0)
    assert list(rows_of(tmp_path).values()) == [1, 1, 2, 2, 3, 3]
    append(tmp_path, source({"a": 4, "2-1": 5}), RECORD)
    compact(tmp_path)
    assert list(rows_of(tmp_path).values()) == [1, 1, 2, 3, 3, 4, 5]
    assert not compute(tmp_path, 2, 9.0), "a late process changes nothing"
    assert JOB.missing(DiskFolder(tmp_path)) == []


def test_another_job_or_model_is_refused(tmp_path: Path) -> None:
    """By the records of the parts that exist."""
    compute(tmp_path, 2, 1.0)
    folder = DiskFolder(tmp_path)
    check_job(folder, JOB, RECORD)
    with pytest.raises(DataError, match=r"other images or parts \(size: 2, not 4\)"):
        check_job(folder, Job(3, 4, JOB.listing), RECORD)
    with pytest.raises(DataError, match="rows of another model"):
        check_job(folder, JOB, RECORD | {"fingerprint": "cd" * 32})
    compute(tmp_path, 1, 1.0, flip=True)
    compute(tmp_path, 3, 1.0)
    with pytest.raises(DataError, match="rows of another flip"):
        open_gallery(tmp_path)
    (tmp_path / "000001.json").unlink()
    compute(tmp_path, 1, 1.0, job={**asdict(JOB), "listing": "ef" * 32, "part": 1})
    with pytest.raises(DataError, match="has parts of two jobs"):
        open_gallery(tmp_path)


def test_leftovers_of_killed_writers(tmp_path: Path) -> None:
    """They are removed once the number is taken: before, somebody may be writing them."""
    append(tmp_path, source({"a": 1}), RECORD)
    left = [
        tmp_path / name
        for name in ("000001-0000abcd.npy", ".000001.json.0000abcd.part", "000002-0000abcd.npy")
    ]
    for path in left:
        path.touch()
    (tmp_path / "notes.txt").touch()
    clean(DiskFolder(tmp_path))
    assert [path.exists() for path in left] == [False, False, True]
    append(tmp_path, source({"b": 1}), RECORD)
    assert not left[2].exists()
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("name", ["gallery.json", "shards.json"])
def test_a_folder_of_an_earlier_version(tmp_path: Path, name: str) -> None:
    """The error says to embed again."""
    (tmp_path / name).write_text(json.dumps({"format": "airnet-segments"}))
    for action in (open_gallery, compact, lambda f: append(f, source({"a": 1}), RECORD)):
        with pytest.raises(DataError, match=r"earlier version of airnet.*; embed its images again"):
            action(tmp_path)


def test_a_folder_that_is_damaged(tmp_path: Path) -> None:
    """Missing records and files, and records that are not JSON, are named."""
    append(tmp_path, source({"a": 1}), RECORD)
    append(tmp_path, source({"b": 1}), RECORD)
    (matrix,) = tmp_path.glob("000002-*.npy")
    matrix.rename(tmp_path / "away")
    with pytest.raises(DataError, match=f"lacks the file '.*{matrix.name}'"):
        open_gallery(tmp_path)
    (tmp_path / "000001.json").rename(tmp_path / "away.json")
    with pytest.raises(DataError, match=r"lacks the record 000001\.json"):
        open_gallery(tmp_path)
    (tmp_path / "000001.json").write_text("{")
    with pytest.raises(DataError, match=r"000001.json' can't be read"):
        read_snapshot(DiskFolder(tmp_path))
