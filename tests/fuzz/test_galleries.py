"""Galleries, features and calibrations of strangers: what was written, or one line."""

import copy
import csv
import hashlib
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core.arrays import map_array
from airnet_cli.core.files import sealed
from airnet_cli.core.gallery import Gallery, GalleryWriter, Listing, read_gallery
from airnet_cli.core.retrieval.calibration import (
    Calibration,
    OperatingPoint,
    ScoreCalibration,
    read_calibration,
    write_calibration,
)
from airnet_cli.core.retrieval.features import read_features
from airnet_cli.core.retrieval.search import search
from airnet_cli.workflows.match import match

ROWS, DIMENSIONS = 7, 6
EMBEDDINGS = np.random.default_rng(3).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
LISTING = Listing(
    tuple(f"crops/{number}.jpg" for number in range(ROWS)),
    {"person_id": tuple("1122334"), "note": ('a, "b"', *"bcdefg")},
)
RECORD = {
    "fingerprint": "ab" * 32,
    "checkpoint": "runs/x/model.safetensors",
    "heads": {"A1": [0, 4], "I": [4, 6]},
    "normalize_heads": False,
    "flip": False,
}


def written(path: Path, dtype: Any = "float32") -> dict[str, bytes]:
    """Write a gallery; its files by suffix."""
    with GalleryWriter(
        path, LISTING, dimensions=DIMENSIONS, dtype=dtype, settings={}, resume=False
    ) as writer:
        writer.append(range(ROWS), EMBEDDINGS)
        writer.finish(RECORD)
    return {s: path.with_suffix(s).read_bytes() for s in (".npy", ".csv", ".json")}


def check(found: Gallery, expected: np.ndarray) -> None:
    assert np.array_equal(found.embeddings, expected)
    assert found.columns == {"path": LISTING.paths, **LISTING.columns}
    assert found.heads == {"A1": slice(0, 4), "I": slice(4, 6)}
    assert (found.fingerprint, found.flip, found.normalize_heads) == ("ab" * 32, False, False)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_spoilt_galleries(tmp_path: Path, survive, damage, dtype: str) -> None:
    """A byte changed in any of the three files is noticed; what is read is what was written."""
    path = tmp_path / "g.npy"
    files = written(path, dtype)
    expected = EMBEDDINGS.astype(dtype)

    def attempt(chance: random.Random) -> None:
        spoilt = chance.choice(list(files))
        for suffix, content in files.items():
            here = damage(content, chance) if suffix == spoilt else content
            path.with_suffix(suffix).write_bytes(here)
        check(read_gallery(path), expected)

    survive(f"galleries, {dtype}", attempt)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def with_header(header: str, content: bytes = EMBEDDINGS.tobytes(), version: int = 1) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + content


def shaped(shape: object, descr: object = "<f4", order: object = False) -> bytes:
    return with_header(repr({"descr": descr, "fortran_order": order, "shape": shape}))


WIDE = [(7, 6), (6, 7), (42,), (7, 3), (14, 3), (7, -6), (-7, -6), (2**62, 2**62), (True, 42)]
WIDE += [(7.0, 6), (10**400, 0), (0, 10**18), (7, 6, 1), (), 42, None, (0, 6), (10**9, 10**9)]
TYPES = ["<f4", ">f4", "<f2", "<f8", "|O", "|V4", "<U1", "<M8[s]", "<c8", [("a", "<f4")], 3, None]
TYPES += ["f" * 5000, "(2,3)<f4", "<f4,<f4", "O" * 9, "", {}, ("<f4", (2,)), "|b1", "<i4"]
MADE_UP = {
    "nested": with_header("{'descr': " + "(" * 3000 + ")" * 3000 + "}"),
    "deep": with_header("-" * 9000),
    "open": with_header("{'descr': '<f4', 'shape': (7, 6"),
    "python 2": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (7L, 6L), }"),
    "unhashable": with_header("{[]: 1}"),
    "escape": with_header(r"{'descr': '\d'}"),
    "indent": with_header("  {\n 1\n2"),
    "huge header": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{}",
    "version": b"\x93NUMPY\x09\0" + struct.pack("<I", 10) + b"{}",
    "objects": saved(np.array([[{}] * DIMENSIONS] * ROWS, dtype=object)),
    "fortran": saved(np.asfortranarray(EMBEDDINGS)),
    "nan": saved(np.where(EMBEDDINGS > 1, np.nan, EMBEDDINGS)),
    "zero": saved(np.zeros_like(EMBEDDINGS)),
    "infinity": saved(np.where(EMBEDDINGS > 1, np.inf, EMBEDDINGS)),
    "large": saved(np.full_like(EMBEDDINGS, 3e38)),
    "float64": saved(EMBEDDINGS.astype(np.float64) * 1e300),
    "longer": saved(EMBEDDINGS) + bytes(24),
    "good": saved(EMBEDDINGS),
    "half": saved(EMBEDDINGS.astype(np.float16)),
    "empty": b"",
    "html": b"<html>404</html>",
}


def made_up(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return chance.choice(list(MADE_UP.values()))
    order = chance.choice((False, False, False, True, "x", None))
    return shaped(chance.choice(WIDE), chance.choice(TYPES), order)


CELLS = [
    "",
    "a",
    "1",
    "-1",
    '"',
    "\0",
    "\x1b[2J",
    "\ufeff",
    "ü",
    "<script>",
    "9" * 40,
    "x" * 200_000,
]
CELLS += ["../../etc/passwd", "/dev/zero", "a\nb", "a\rb", " 1 ", "1e5", "\U0001f600", "a" * 5000]
LISTS = [*LISTING.paths, *CELLS]


def odd_table(chance: random.Random, header: list[str]) -> bytes:
    """A table that may have other columns, more or fewer rows, and anything in them."""
    names = list(header)
    if chance.random() < 0.3:
        names = chance.choices([*header, *CELLS[:8], "person_id", "path"], k=chance.randrange(5))
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=chance.choice(("\n", "\r\n", "\r")))
    writer.writerow(names)
    for row in range(ROWS + chance.choice((0, 0, 0, 0, 1, -1, -ROWS))):
        width = len(names) + chance.choice((0,) * 30 + (1, -1))
        cells = [str(row + 1)] * max(0, width)
        if cells and chance.random() < 0.2:
            cells[chance.randrange(len(cells))] = chance.choice(LISTS)
        writer.writerow(cells)
    start = chance.choice((b"",) * 9 + (b"\xef\xbb\xbf", b"\n", b"\xff\xfe"))
    return start + file.getvalue().encode()


JUNK: list[Any] = [None, True, -1, 0, 7, 2**70, 1.5, float("nan"), float("inf"), "", "x", "\ud800"]
JUNK += ["a\0b", "x" * 5000, "/dev/zero", [], [0], [0, 6], [[0, 6]], {}, {"A1": [0, 6]}]
JUNK += [{"A1": [0, 9]}, {"A1": [4, 6], "I": [0, 4]}, {"A1": [0, 4], "I": [3, 6]}, {"A1": "06"}]
JUNK += [{"A1": [0, 6, 1]}, {"A1": [0.0, 6.0]}, {"A1": [False, 6]}, {"": [0, 6]}, {"A1": [6, 0]}]
JUNK += [{"A1": [0, 10**30]}, {"A1": [-6, 6]}, {"A1": [0, 0], "I": [0, 6]}, {"a\nb\x1b": [0, 6]}]


def test_made_up_galleries(tmp_path: Path, survive) -> None:
    """With the right hashes of whatever is in them: rows in step with the table, heads that fill
    them, and a search that finds finite scores; or one line.
    """
    path = tmp_path / "g.npy"
    good = json.loads(written(path)[".json"])
    files = {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".npy", ".csv")}

    def attempt(chance: random.Random) -> None:
        record = copy.deepcopy(good)
        table, array = files[".csv"], files[".npy"]
        for change in chance.choices(("table", "array", "record"), k=chance.choice((1, 1, 2))):
            match change:
                case "table":
                    table = odd_table(chance, ["path", "person_id", "note"])
                case "array":
                    array = made_up(chance)
                case "record":
                    record[chance.choice(list(record))] = chance.choice(JUNK)
        path.write_bytes(array)
        path.with_suffix(".csv").write_bytes(table)
        if record["csv_sha256"] == good["csv_sha256"]:
            record["csv_sha256"] = hashlib.sha256(table).hexdigest()
        if record["npy_sha256"] == good["npy_sha256"]:
            record["npy_sha256"] = hashlib.sha256(array).hexdigest()
        if record.pop("sha256") == good["sha256"] and chance.random() < 0.8:
            record = sealed(record)
        elif chance.random() < 0.5:  # as galleries of before are
            record.pop("npy_sha256")
        path.with_suffix(".json").write_text(json.dumps(record))
        gallery = read_gallery(path)
        rows, width = gallery.embeddings.shape
        assert rows == ROWS
        assert all(len(cells) == rows for cells in gallery.columns.values())
        parts = list(gallery.heads.values())
        assert [parts[0].start, parts[-1].stop] == [0, width]
        for row in range(rows):
            gallery.image_path(row)
        for where in (parts, parts[:1]):
            found = search(
                queries=np.ones((1, width)), gallery_embeddings=gallery.embeddings, k=3, parts=where
            )
            assert np.isfinite(found.scores).all()

    accepted, _ = survive("made-up galleries", attempt)
    assert accepted > 5


def test_made_up_features(tmp_path: Path, survive, damage) -> None:
    """Finite rows, one for each line of the table, or one line."""
    path = tmp_path / "Q.npy"

    def attempt(chance: random.Random) -> None:
        array = made_up(chance) if chance.random() < 0.5 else saved(EMBEDDINGS)
        table = odd_table(chance, chance.choice((["person_id", "camera_id"],) * 3 + (["path"],)))
        if chance.random() < 0.3:
            array, table = damage(array, chance), table
        path.write_bytes(array)
        path.with_suffix(".csv").write_bytes(table)
        features = read_features(path)
        count = len(features.embeddings)
        assert features.embeddings.isfinite().all()
        assert features.embeddings.shape[1] in (DIMENSIONS, 3, 7)
        assert count == len(features.person_ids) == len(features.camera_ids)
        assert features.paths is None or len(features.paths) == count

    accepted, _ = survive("features", attempt)
    assert accepted > 5


def test_spoilt_arrays(tmp_path: Path, survive, damage) -> None:
    """Of a changed header nothing is taken that would shift the rows, and nothing is unpickled."""
    path = tmp_path / "x.npy"

    def attempt(chance: random.Random) -> None:
        content = saved(EMBEDDINGS)
        spoilt = damage(content[:128], chance)
        path.write_bytes(spoilt + content[128:])
        try:
            array = map_array(path, mode="r")
        except (ValueError, OSError):
            return
        assert array.nbytes <= path.stat().st_size
        assert not array.dtype.hasobject

    survive("arrays", attempt)


SCORES = ScoreCalibration(
    same_person_pairs=10,
    different_person_pairs=1000,
    equal_error_rate=0.25,
    equal_error_threshold=0.5,
    points=(OperatingPoint(1e-3, 0.75, 0.0009, 0.5), OperatingPoint(1e-2, 0.625, 0.009, 0.75)),
)
CALIBRATION = Calibration(
    fingerprint="ab" * 32,
    data="tiny",
    camera_filter=True,
    precision="fp32",
    normalize_heads=False,
    flip=False,
    whole=SCORES,
    heads={"A1": SCORES},
)


def replaced(value: Any, chance: random.Random) -> Any:
    """`value` with something else somewhere in it."""
    if chance.random() < 0.3 or not value or not isinstance(value, dict | list):
        return chance.choice(JUNK)
    if isinstance(value, list):
        place = chance.randrange(len(value))
        return [*value[:place], replaced(value[place], chance), *value[place + 1 :]]
    key = chance.choice(list(value))
    return {**value, key: replaced(value[key], chance)}


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_calibrations(tmp_path: Path, survive, damage, kind: str) -> None:
    """Changed bytes are noticed; made-up values are rates and cosines, or one line."""
    path = tmp_path / "calibration.json"
    write_calibration(path, CALIBRATION)
    content = path.read_bytes()

    def attempt(chance: random.Random) -> None:
        if kind == "bytes":
            path.write_bytes(damage(content, chance))
            assert read_calibration(path) == CALIBRATION
            return
        record = json.loads(content)
        del record["sha256"]
        record = replaced(record, chance)
        is_record = isinstance(record, dict) and chance.random() < 0.8
        path.write_text(json.dumps(sealed(record) if is_record else record))
        read = read_calibration(path)
        assert read is not None
        for scores in (read.whole, *read.heads.values()):
            assert scores.same_person_pairs > 0
            assert all(0 <= point.far <= 1 for point in scores.points)
            assert all(-1 <= point.threshold < 1.0001 for point in scores.points)

    survive(f"calibrations, {kind}", attempt)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_match_of_made_up_galleries(tmp_path: Path, survive, monkeypatch) -> None:
    """The whole command on features: ranked rows with finite scores, or one line, and no file
    beside those of the gallery.
    """
    monkeypatch.chdir(tmp_path)
    path, queries = Path("g.npy"), Path("q.npy")
    good = json.loads(written(path)[".json"])
    array = path.read_bytes()
    (tmp_path / "runs").mkdir()
    before = {*names_in(tmp_path), "q.npy"}

    def attempt(chance: random.Random) -> None:
        path.write_bytes(array)
        record = {key: value for key, value in good.items() if key not in ("sha256", "npy_sha256")}
        if chance.random() < 0.7:
            record[chance.choice(["checkpoint", "run", "fingerprint", "skipped", "versions"])] = (
                chance.choice(JUNK)
            )
        path.with_suffix(".json").write_text(json.dumps(record))
        content = made_up(chance)
        queries.write_bytes(content)
        try:
            found = match(
                queries=[queries],
                gallery=path,
                k=3,
                threshold=0.5,
                far=None,
                heads=None,
                where=[],
                rerank=False,
                checkpoint=None,
                runs_root=Path("runs"),
                table=None,
                picture=None,
                page=None,
                device="cpu",
                batch_size=1,
                workers=0,
            )
        finally:
            assert names_in(tmp_path) <= before
        json.dumps(found.to_dict())
        assert all(-1 <= each.score <= 1 for query in found.queries for each in query.matches)

    accepted, _ = survive("matches", attempt)
    assert accepted > 5
