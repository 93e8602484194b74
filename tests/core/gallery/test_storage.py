"""Folders on disk and in object storage: files are created once; objects are listed and fetched."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from airnet_cli.core.gallery.storage import DiskFolder, Folder, fetched, folder_at, list_objects
from airnet_cli.errors import DataError


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's storage in memory, emptied."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture(params=["disk", "disk without links", "objects"])
def folder(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bucket: object,
    monkeypatch: pytest.MonkeyPatch,
) -> Folder:
    if request.param == "disk without links":

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    return folder_at("memory://bucket/people/" if request.param == "objects" else tmp_path / "a")


def test_a_file_is_created_once(folder: Folder) -> None:
    """The second writer gets False, and changes nothing; files are put and removed."""
    assert folder.names() == frozenset()
    with pytest.raises(FileNotFoundError):
        folder.read("000001.json")
    assert folder.create("000001.json", b"first")
    assert not folder.create("000001.json", b"second")
    assert folder.read("000001.json") == b"first"
    with folder.staging() as place:
        (place / "rows.npy").write_bytes(b"rows")
        folder.put(place / "rows.npy")
    assert folder.names() == {"000001.json", "rows.npy"}
    assert folder.read("rows.npy") == b"rows"
    folder.remove("rows.npy")
    folder.remove("rows.npy")
    assert folder.names() == {"000001.json"}


def test_a_bug_is_not_an_error_of_access(
    bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the storage refuses is a DataError; anything else keeps its traceback."""
    for error, expected in ((PermissionError("no"), DataError), (TypeError("bug"), TypeError)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(type(bucket), "find", fail)
        with pytest.raises(expected):
            list_objects(["memory://bucket/crops"])


def test_objects_are_listed(bucket: fsspec.AbstractFileSystem) -> None:
    """Images below a prefix, by suffix and in order; lists; an object itself; each once."""
    for name in ("b/2.JPG", "b/1.png", "b/.hidden/3.png", "b/notes.md", "b/a/4.webp", "c/5.tif"):
        bucket.pipe_file(f"/bucket/{name}", b"x")
    bucket.pipe_file("/bucket/list.txt", b"\xef\xbb\xbfb/1.png\r\n\nmemory://bucket/c/5.tif\n")
    below = [f"memory://bucket/b/{name}" for name in ("1.png", "2.JPG", "a/4.webp")]
    assert list_objects(["memory://bucket/b/"]) == tuple(below)
    assert list_objects(["memory://bucket/b/notes.md"]) == ("memory://bucket/b/notes.md",)
    listed = ("memory://bucket/b/1.png", "memory://bucket/c/5.tif")
    assert list_objects(["memory://bucket/list.txt"]) == listed
    assert list_objects(["memory://bucket/b", "memory://bucket/list.txt"]) == (*below, listed[1])


@pytest.mark.parametrize("name", ["../../escape.png", "/etc/passwd", "a\nb.png", "..", "no.sh;rm"])
def test_objects_are_fetched(bucket: fsspec.AbstractFileSystem, name: str) -> None:
    """In order, into files with names of ours; a missing object is no file; then they are gone."""
    bucket.store[f"/bucket/{name}"] = fsspec.implementations.memory.MemoryFile(data=b"pixels")
    with fetched([f"memory://bucket/{name}", "memory://bucket/missing.png"]) as paths:
        assert [path.exists() for path in paths] == [paths[0].exists(), False]
        assert paths[0].name in ("000000", "000000.png")
        assert paths[1].name == "000001.png"
    assert not paths[0].parent.exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/none", "there are no images at 'memory://bucket/none'"),
        ("memory://bucket/none.txt", "'memory://bucket/none.txt' can't be used"),
        ("memory://bucket/latin.txt", "is not UTF-8 text"),
        ("nonsense://bucket", "fsspec doesn't know the place"),
        ("file:///crops", "is on a disk; give its path"),
    ],
)
def test_what_can_not_be_listed(bucket: fsspec.AbstractFileSystem, url: str, message: str) -> None:
    """One line with the URL in it."""
    bucket.pipe_file("/bucket/latin.txt", b"\xff")
    with pytest.raises(DataError, match=message) as raised:
        list_objects([url])
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to install it."""
    fsspec.filesystem("memory").clear_instance_cache()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(DataError, match=r"that is not installed; pip install 'airnet"):
        list_objects(["s3://bucket/crops"])


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    """One line about it."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't be read: Not a directory"):
        DiskFolder(tmp_path / "file").names()
