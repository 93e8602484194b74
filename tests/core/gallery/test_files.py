"""A gallery in one file: opened without reading it, and checked for what belongs together."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from airnet_cli.core.gallery import Gallery, open_gallery, read_gallery
from airnet_cli.core.gallery import table as table_module
from airnet_cli.core.gallery.files import write_gallery
from airnet_cli.core.gallery.folder import append
from airnet_cli.core.gallery.rows import JoinedRows
from airnet_cli.core.retrieval.conditions import allowed_rows, parse_condition
from airnet_cli.errors import DataError

CELLS = [
    "plain",
    "",
    "a,b",
    'say "hi"',
    "two\nlines",
    "carriage\rreturn",
    "Köln 🙂",
    '"',
    "x" * 200,
]
RECORD = {
    "fingerprint": "ab" * 32,
    "heads": {"A1": [0, 4]},
    "dimensions": 4,
    "dtype": "float32",
    "flip": False,
    "normalize_heads": False,
    "skipped": [],
}


def source(cells: list[str], first: int = 0) -> Gallery:
    rows = np.arange(4 * len(cells), dtype=np.float32).reshape(-1, 4) + first
    paths = [f"{first + number}.png" for number in range(len(cells))]
    return Gallery(Path("x"), rows, {"path": paths, "note": cells}, {}, {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_gallery(tmp_path / "gallery.npy", source(CELLS), RECORD)
    return tmp_path / "gallery.npy"


@pytest.mark.parametrize("block", [2**24, 7], ids=["one block", "many blocks"])
def test_cells_of_every_kind(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Rows are found whatever is in them, one by one and together; NumPy and csv agree."""
    monkeypatch.setattr(table_module, "SCANNED_BYTES", block)
    monkeypatch.setattr(table_module, "PARSED_ROWS", 2)
    gallery = read_gallery(path)
    column = gallery.columns["note"]
    assert list(column) == CELLS
    assert [column[row] for row in range(len(CELLS))] == CELLS
    assert (column[-1], column[2:4]) == (CELLS[-1], CELLS[2:4])
    assert (list(gallery.columns), len(column), "nothing" in gallery.columns) == (
        ["path", "note"],
        len(CELLS),
        False,
    )
    with pytest.raises(IndexError):
        column[len(CELLS)]
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        assert [row["note"] for row in csv.DictReader(file)] == CELLS
    assert np.array_equal(np.load(path), gallery.embeddings)


def test_columns_of_several_parts(tmp_path: Path) -> None:
    """A cell that a part lacks is empty; hidden rows are left out; conditions see the same."""
    append(tmp_path, source(["a", "b", "c"]), RECORD)
    other = source(["d", "e"], first=2)
    columns = {"path": other.columns["path"], "camera_id": ["1", "2"]}
    append(tmp_path, Gallery(Path("x"), other.embeddings, columns, {}, {}), RECORD)
    gallery = open_gallery(tmp_path)
    assert {name: list(cells) for name, cells in gallery.columns.items()} == {
        "path": ["0.png", "1.png", "2.png", "3.png"],
        "note": ["a", "b", "", ""],
        "camera_id": ["", "", "1", "2"],
    }
    assert gallery.columns["camera_id"][3] == "2"
    allowed = allowed_rows(gallery.columns, [parse_condition("camera_id>1")])
    assert allowed.tolist() == [False, False, False, True]


def test_joined_rows_are_those_of_one_matrix() -> None:
    """By slices, lists, masks and single rows, across the ends of parts."""
    random = np.random.default_rng(0)
    parts = [random.standard_normal((n, 3)).astype(np.float32) for n in (4, 1, 5)]
    kept = [np.array([0, 2, 3]), None, np.array([4])]
    whole = np.concatenate([p if k is None else p[k] for p, k in zip(parts, kept, strict=True)])
    joined = JoinedRows(parts, kept)
    assert (joined.shape, joined.dtype, len(joined)) == (whole.shape, whole.dtype, len(whole))
    mask = np.array([True, False, True, True, False])
    for key in (
        slice(None),
        slice(1, 4),
        slice(-2, None),
        [4, 0, 3],
        mask,
        2,
        -1,
        np.array([], int),
    ):
        assert np.array_equal(joined[key], whole[key]), key
    assert np.array_equal(np.asarray(joined, np.float64), whole.astype(np.float64))
    with pytest.raises(IndexError):
        joined[5]


def test_opening_does_not_read_the_rows(path: Path) -> None:
    """A file with NaN, which a search refuses, and cells that are not UTF-8 can be opened."""
    with path.open("r+b") as file:
        file.seek(128)
        file.write(b"\xff" * 16)
    table = path.with_suffix(".csv")
    table.write_bytes(table.read_bytes().replace(b"plain", b"p\xffain"))
    gallery = read_gallery(path)
    assert np.isnan(gallery.embeddings[0]).all()
    assert gallery.columns["note"][1] == ""
    with pytest.raises(DataError, match="can't be read as a table"):
        gallery.columns["note"][0]


def test_a_gallery_of_an_earlier_version(path: Path) -> None:
    """Its hashes are ignored."""
    side = path.with_suffix(".json")
    hashes = {"csv_sha256": "0", "npy_sha256": "0", "sha256": "0"}
    side.write_text(json.dumps(json.loads(side.read_text()) | hashes))
    assert len(read_gallery(path).embeddings) == len(CELLS)


def cut(suffix: str):
    return lambda path: path.with_suffix(suffix).write_bytes(
        path.with_suffix(suffix).read_bytes()[:-3]
    )


def changed(**changes: object):
    def change(path: Path) -> None:
        side = path.with_suffix(".json")
        side.write_text(json.dumps(json.loads(side.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist; create it with `airnet embed IMAGES -o"),
        (lambda path: path.with_suffix(".csv").unlink(), "lacks the file '.*gallery.csv'"),
        (lambda path: path.with_suffix(".json").unlink(), "finish it with `airnet embed --resume"),
        (cut(".npy"), "can't be read as a NumPy array"),
        (cut(".csv"), "gallery.csv' is cut off"),
        (cut(".json"), "gallery.json' can't be read"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "its size does not fit"),
        (lambda path: path.write_bytes(b"<html>"), "can't be read as a NumPy array"),
        (lambda path: np.save(path, np.ones((9, 3), np.float32)), r"float32 of the shape \(9, 3\)"),
        (lambda path: np.save(path, np.ones((9, 4))), "float64 of the shape"),
        (lambda path: np.save(path, np.ones((9, 4), np.float32, order="F")), "Fortran order"),
        (lambda path: path.with_suffix(".csv").write_text("path\na\n"), "has 1 rows under its"),
        (lambda path: path.with_suffix(".csv").write_text("a\n" * 10), "path first"),
        (changed(format="other"), "does not describe a gallery of airnet"),
        (changed(format_version=9), "has format version 9, this airnet reads 1"),
        (changed(rows="9"), "has no valid rows"),
        (changed(dtype="int8"), "has no valid dtype"),
        (changed(heads={"A1": [0, 3]}), "heads that do not fill 4 dimensions"),
    ],
)
def test_files_that_do_not_belong_together(path: Path, damage, message: str) -> None:
    """One line that names the file and what is wrong."""
    damage(path)
    with pytest.raises(DataError, match=message) as raised:
        read_gallery(path)
    assert "\n" not in str(raised.value)
