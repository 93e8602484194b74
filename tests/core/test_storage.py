"""Folders on disk and in object storage keep the same promises; names of strangers stay outside."""

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from airnet_cli.core.storage import Folder, fetch, fetched, list_objects, open_folder
from airnet_cli.errors import DataError


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's storage in memory, emptied."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture(params=["disk", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: object) -> Folder:
    place = tmp_path / "people" if request.param == "disk" else "memory://bucket/people/"
    return open_folder(place)


def test_a_file_is_created_once(folder: Folder) -> None:
    """The second one is told so, and changes nothing."""
    assert folder.names() == frozenset()
    assert folder.read("plan.json") is None
    assert folder.size("plan.json") is None
    assert folder.create("plan.json", b"first")
    assert not folder.create("plan.json", b"second")
    assert folder.read("plan.json") == b"first"
    assert folder.size("plan.json") == 5
    assert folder.names() == {"plan.json"}


def test_a_file_is_put_in_the_place_of_another(folder: Folder, tmp_path: Path) -> None:
    """It is used up, and nothing else is left."""
    for content in (b"old", b"newer"):
        (tmp_path / "made").write_bytes(content)
        if not folder.names():
            folder.create("other", b"")  # there has to be a folder
        folder.put("rows.npy", tmp_path / "made")
    assert folder.read("rows.npy") == b"newer"
    assert not (tmp_path / "made").exists()
    assert folder.names() == {"rows.npy", "other"}


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


@pytest.mark.parametrize(
    "name", ["../../escape.png", "/etc/passwd", "a\nb.png", "..", "x/.." + "/y.jpg", "no.sh;rm"]
)
def test_names_of_objects_name_no_files(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, name: str
) -> None:
    """Whatever an object is called, its file has a number and the suffix of an image."""
    bucket.store[f"/bucket/{name}"] = fsspec.implementations.memory.MemoryFile(data=b"pixels")
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    (path,) = fetch([f"memory://bucket/{name}"], inside)
    assert path.parent == inside
    assert path.name in ("000000", "000000.png", "000000.jpg")
    everything = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert everything in ([path], [])


def test_objects_are_fetched(bucket: fsspec.AbstractFileSystem) -> None:
    """In order; one that is not there is no file; all are gone after the block."""
    urls = [f"memory://bucket/{number}.png" for number in range(40)]
    for number, url in enumerate(urls):
        if number != 7:
            bucket.pipe_file(url, str(number).encode())
    with fetched(urls) as paths:
        found = [path.read_text() if path.exists() else None for path in paths]
    assert found == [None if number == 7 else str(number) for number in range(40)]
    assert not paths[0].parent.exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/none", "there are no images at 'memory://bucket/none'"),
        ("memory://bucket/none.txt", "'memory://bucket/none.txt' can't be used"),
        ("memory://bucket/latin.txt", "is no UTF-8 text"),
        ("nonsense://bucket", "is no place that fsspec knows"),
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
    with pytest.raises(DataError, match=r"needs a package that is not here; pip install 'airnet"):
        list_objects(["s3://bucket/crops"])
