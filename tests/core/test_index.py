"""Indexes on disk: what is written, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from airnet_cli.core import index as index_module
from airnet_cli.core.gallery import Gallery, index_files, read_gallery
from airnet_cli.core.index import has_index, make_int8_index, read_int8_index
from airnet_cli.core.retrieval.quantized import quantize
from airnet_cli.errors import DataError, OutputError


@pytest.fixture
def gallery(tmp_path: Path, write_gallery) -> Gallery:
    """With an int8 index."""
    gallery = write_gallery(tmp_path / "g.npy")
    make_int8_index(gallery)
    return gallery


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_read_is_what_was_made(tmp_path, write_gallery, dtype):
    """In many pieces: int8 rows and sizes as of all rows at once, in plain NumPy files."""
    gallery = write_gallery(tmp_path / "g.npy", dtype=dtype)
    calls = []
    record = make_int8_index(gallery, progress=lambda *call: calls.append(call))
    read = read_int8_index(gallery)
    values, sizes = quantize(
        np.asarray(gallery.embeddings, np.float32), tuple(gallery.heads.values())
    )
    np.testing.assert_array_equal(read.values, values)
    np.testing.assert_array_equal(read.sizes, sizes)
    np.testing.assert_array_equal(np.load(tmp_path / "g.i8.npy"), values)
    np.testing.assert_array_equal(np.load(tmp_path / "g.i8.scales.npy"), sizes)
    assert json.loads((tmp_path / "g.i8.json").read_text()) == record
    assert names(tmp_path) == [
        "g.csv", "g.i8.json", "g.i8.npy", "g.i8.scales.npy", "g.json", "g.npy"
    ]  # fmt: skip
    assert calls[0] == ("indexing", 0, 600, "rows")
    assert calls[-1] == ("indexing", 600, 600, "rows")


def test_a_new_gallery_has_no_old_index(gallery, write_gallery):
    """Whoever replaces a gallery removes its indexes first."""
    folder = gallery.path.parent
    for file in index_files(gallery.path):
        file.touch()
    write_gallery(gallery.path, seed=1)
    assert names(folder) == ["g.csv", "g.json", "g.npy"]
    assert not has_index(read_gallery(gallery.path), "int8")


def reseal(path: Path, **changes) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | changes))


def save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


SPOILT = {
    "rows are gone": (lambda p: p.with_suffix(".i8.npy").unlink(), "can't be read"),
    "cut off": (
        lambda p: p.with_suffix(".i8.npy").write_bytes(p.with_suffix(".i8.npy").read_bytes()[:-9]),
        "can't be read",
    ),
    "no record": (lambda p: p.with_suffix(".i8.json").unlink(), "has no int8 index"),
    "no JSON": (lambda p: p.with_suffix(".i8.json").write_text("{"), "can't be read"),
    "a gallery's record": (
        lambda p: shutil.copy(p.with_suffix(".json"), p.with_suffix(".i8.json")),
        "does not describe",
    ),
    "of the future": (
        lambda p: reseal(p.with_suffix(".i8.json"), format_version=9), "update airnet"
    ),
    "other heads": (
        lambda p: reseal(p.with_suffix(".i8.json"), heads={"A1": [0, 24]}), "other heads"
    ),
    "fewer rows": (
        lambda p: save(p.with_suffix(".i8.npy"), np.zeros((599, 24), np.int8)), "of the shape"
    ),
    "other numbers": (
        lambda p: save(p.with_suffix(".i8.npy"), np.zeros((600, 24), np.uint8)), "holds uint8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_what_does_not_fit_is_refused(gallery, kind):
    """In one line that says what to do."""
    spoil, told = SPOILT[kind]
    spoil(gallery.path)
    with pytest.raises(DataError, match=told) as error:
        read_int8_index(gallery)
    assert "airnet index" in str(error.value) or "update airnet" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_index_of_another_gallery_is_refused(gallery, write_gallery):
    """Though it has as many rows of the same width and all its hashes are right."""
    other = write_gallery(gallery.path.with_name("other.npy"), seed=5)
    make_int8_index(other)
    for mine, theirs in zip(
        index_files(gallery.path)[:3], index_files(other.path)[:3], strict=True
    ):
        shutil.copy(theirs, mine)
    with pytest.raises(DataError, match="is of another gallery"):
        read_int8_index(gallery)


@pytest.mark.parametrize(
    ("column", "value"), [(0, np.nan), (1, -1), (0, 7), (4, 9), (2, np.inf)], ids=str
)
def test_scales_of_strangers_are_numbers(gallery, column, value):
    """With all the right hashes, what can be no scale, length or error is refused."""
    file = index_files(gallery.path)[2]
    sizes = np.load(file)
    sizes[3, column] = value
    save(file, sizes)
    record = index_files(gallery.path)[0]
    reseal(record, scales_sha256=index_module.file_digest(file))
    with pytest.raises(DataError, match="that no row has"):
        read_int8_index(gallery)


def test_a_failure_leaves_no_index(gallery, monkeypatch):
    """What was there is gone rather than half new."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module, "quantize", refuse)
    with pytest.raises(OutputError, match="No space left"):
        make_int8_index(gallery)
    assert not has_index(gallery, "int8")
    assert not [name for name in names(gallery.path.parent) if name.endswith(".part")]
