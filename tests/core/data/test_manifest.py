"""The manifest: what is written comes back, and nothing else is taken for one."""

import json
import shutil
from pathlib import Path

import pytest

from airnet_cli.core.data.manifest import (
    SplitCounts,
    load_prepared,
    manifest_path,
    read_manifest,
    write_manifest,
)
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

RECORDS = [
    ImageRecord("b/zoë.png", 7, 2, "gallery"),
    ImageRecord("b/junk.png", -1, 2, "gallery"),
    ImageRecord("b/nobody.png", 0, 3, "gallery"),
    ImageRecord("q/7.png", 7, 1, "query"),
    ImageRecord("a/0.png", 0, 1, "train"),
    ImageRecord("a/1.png", 1, 1, "train"),
    ImageRecord("a/1 again.png", 1, 4, "train"),
]


def write(data_root: Path, root: Path, records: list[ImageRecord] = RECORDS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = manifest_path(data_root, "few")
    write_manifest(path, name="few", root=root, records=records, split_rule="by hand")
    return path


def test_round_trip(tmp_path: Path) -> None:
    """All fields come back; records are sorted by split and path, whatever order they came in."""
    path = write(tmp_path / "data", tmp_path / "images")
    manifest = read_manifest(path)
    assert (manifest.name, manifest.split_rule) == ("few", "by hand")
    assert manifest.root == tmp_path / "images"
    assert [(record.split, record.path) for record in manifest.records] == [
        ("train", "a/0.png"),
        ("train", "a/1 again.png"),
        ("train", "a/1.png"),
        ("query", "q/7.png"),
        ("gallery", "b/junk.png"),
        ("gallery", "b/nobody.png"),
        ("gallery", "b/zoë.png"),
    ]
    assert set(manifest.records) == set(RECORDS)
    assert manifest.split("query") == (RECORDS[3],)
    # Zero is a person in train and nobody in the gallery; junk is nobody.
    assert manifest.counts == {
        "train": SplitCounts(images=3, ids=2, cameras=2),
        "query": SplitCounts(images=1, ids=1, cameras=1),
        "gallery": SplitCounts(images=3, ids=1, cameras=2, distractors=1, junk=1),
    }
    assert load_prepared(tmp_path / "data", "few") == manifest


def test_names_of_ids_that_were_made_up(tmp_path: Path) -> None:
    """They come back as they were; without any the header has no place for them."""
    names = {"person_names": {1: "zoë", 7: "0"}, "camera_names": {2: "north"}}
    path = manifest_path(tmp_path, "few")
    written = write_manifest(
        path, name="few", root=tmp_path, records=RECORDS, split_rule="by hand", **names
    )
    found = read_manifest(path)
    assert found == written
    assert (found.person_names, found.camera_names) == tuple(names.values())
    plain = write(tmp_path, tmp_path / "images").read_text()
    assert "_names" not in plain
    assert read_manifest(path).person_names == {}


def test_same_images_same_bytes(tmp_path: Path) -> None:
    """The order in which a folder was listed does not show (field notes, defect 9)."""
    first = write(tmp_path / "one", tmp_path / "images").read_bytes()
    second = write(tmp_path / "two", tmp_path / "images", RECORDS[::-1]).read_bytes()
    assert first == second


def test_moved_tree_still_works(tmp_path: Path) -> None:
    """Data root and images may move together."""
    write(tmp_path / "here" / "data", tmp_path / "here" / "images")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert load_prepared(tmp_path / "there" / "data", "few").root == tmp_path / "there" / "images"


def test_is_ascii_json_lines(tmp_path: Path) -> None:
    """Any tool can read it: a header and one object per line, ASCII only."""
    lines = write(tmp_path, tmp_path / "few" / "images").read_bytes().decode("ascii").splitlines()
    header, *records = (json.loads(line) for line in lines)
    assert (header["format"], header["version"], header["root"]) == ("airnet-manifest", 1, "images")
    assert header["lines"] == len(records) == len(RECORDS)
    assert records[-1] == {
        "path": "b/zoë.png",
        "person_id": 7,
        "camera_id": 2,
        "split": "gallery",
    }


def test_refuses_a_path_twice_in_a_split(tmp_path: Path) -> None:
    """The same image twice in one split would count twice; nothing is written."""
    with pytest.raises(DataError, match=r"q/7\.png is listed twice in the split query"):
        write(tmp_path, tmp_path, [*RECORDS, ImageRecord("q/7.png", 8, 2, "query")])
    assert list(tmp_path.rglob("*.jsonl*")) == []


def header_with(**changes: object) -> object:
    def change(content: bytes) -> bytes:
        first, _, body = content.partition(b"\n")
        header = json.loads(first) | changes
        return json.dumps(header).encode() + b"\n" + body

    return change


def body_with(old: bytes, new: bytes) -> object:
    def change(content: bytes) -> bytes:
        first, _, body = content.partition(b"\n")
        assert old in body
        return first + b"\n" + body.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda content: b"", "not an airnet-manifest header", id="empty"),
        pytest.param(lambda content: b"\xff\n", "not an airnet-manifest header", id="not text"),
        pytest.param(lambda content: content[:-20], "cut off or was edited", id="cut in a line"),
        pytest.param(lambda content: content[: content.rindex(b"\n", 0, -1) + 1],
                     "promises 7 images, and there are 6 whole lines", id="cut between lines"),
        pytest.param(header_with(version=2), "version 2, this airnet reads version 1", id="newer"),
        pytest.param(header_with(root=None), "without a valid 'root'", id="no root"),
        pytest.param(body_with(b'"split": "query"', b'"split": "test"'), "split 'test'",
                     id="unknown split"),
        pytest.param(body_with(b"q/7.png", b"../7.png"), "leads out of the root", id="leaves root"),
        pytest.param(body_with(b"a/1 again.png", b"a/0.png"), "listed twice", id="twice"),
        pytest.param(body_with(b'"camera_id": 4', b'"camera_id": "4"'), "is not an integer",
                     id="text camera"),
        pytest.param(body_with(b'"camera_id"', b'"cam"'), "can't be used", id="other key"),
    ],
)  # fmt: skip
def test_refuses_what_is_not_whole(tmp_path: Path, change, message: str) -> None:
    """Each kind of damage has its one line, with the path."""
    path = write(tmp_path, tmp_path / "images")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_manifests_with_hashes(tmp_path: Path) -> None:
    """Earlier versions wrote some; they are ignored, so an edited manifest can be used too."""
    path = write(tmp_path, tmp_path / "images")
    before = read_manifest(path)
    change = header_with(sha256="0" * 64, header_sha256="1" * 64)
    path.write_bytes(change(path.read_bytes()))
    assert read_manifest(path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", r"no data set 'other' under .* \(prepared there: few\); run: .* csv TABLE"),
        ("market1501", r"run: airnet prepare-data market1501 SOURCE --data-root"),
        ("demo", r"run: airnet prepare-data demo --data-root"),
        ("../few", r"can't be the name of a data set"),
        ("x" * 300, r"'x+\.\.\.' can't be the name of a data set"),
    ],
)
def test_not_prepared(tmp_path: Path, name: str, message: str) -> None:
    """The error says what is there and how to get what is not."""
    write(tmp_path, tmp_path / "images")
    with pytest.raises(DataError, match=message):
        load_prepared(tmp_path, name)


def test_images_gone(tmp_path: Path) -> None:
    """A manifest without its images is refused before anything is opened."""
    write(tmp_path, tmp_path / "images")
    (tmp_path / "images").rmdir()
    with pytest.raises(DataError, match="the images of 'few' are gone"):
        load_prepared(tmp_path, "few")
