"""Manifests of strangers: what was written, or a line; also where the checksums fit."""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airnet_cli.core.data import manifest as module
from airnet_cli.core.data.manifest import load_prepared, read_manifest, write_manifest
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

RECORDS = [
    *(ImageRecord(f"a/{n}.png", n % 3, n % 2 + 1, "train") for n in range(6)),
    *(ImageRecord(f"q/{n}.png", n + 1, 1, "query") for n in range(3)),
    *(ImageRecord(f"g/{n}.png", n - 1, 2, "gallery") for n in range(6)),
]
ODD: list[Any] = [
    None,
    True,
    "",
    "0",
    -1,
    -2,
    0,
    1.0,
    10**18,
    10**400,
    float("nan"),
    [],
    {},
    "a\0b",
]
ODD += ["../a", "/etc/passwd", "a/./b", "a//b", ".", "x" * 300, "x" * 5000, "\ud800", "\udcff"]
ODD += ["train", "query", "gallery", "test", 7, [[]], {"path": 1}, "a/0.png", "q/1.png", "C:\\a"]


def set_of(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    path = folder / "set" / "manifest.jsonl"
    names = {"person_names": {1: "eve"}, "camera_names": {1: "door"}}
    write_manifest(
        path, name="set", root=folder / "images", records=RECORDS, split_rule="by hand", **names
    )
    return path


def odd_manifest(content: bytes, chance: random.Random) -> bytes:
    """Other values and lines, with checksums and mostly counts that fit them."""
    header, *records = (json.loads(line) for line in content.splitlines())
    train = header["counts"]["train"]
    for _ in range(chance.choice((1, 1, 2, 3))):
        where = chance.choice((header, train, *records, *records))
        at = chance.randrange(len(records))
        match chance.randrange(8):
            case 0:
                where.pop(chance.choice([*where, "x"]), None)
            case 1:
                where[chance.choice(("x", "path", "version"))] = chance.choice(ODD)
            case 2:
                records.insert(at, records[chance.randrange(len(records))])
            case 3:
                del records[at]
            case 4:
                chance.shuffle(records)
            case 5:
                records[at] = chance.choice(ODD)
            case _:
                where[chance.choice([*where, "x"])] = chance.choice(ODD)
        records = records or [{}]
        if not all(isinstance(record, dict) for record in records):
            break
    body = "".join(json.dumps(record) + "\n" for record in records).encode()
    header |= {"lines": len(records)} if chance.random() < 0.8 else {}
    header |= {"sha256": hashlib.sha256(body).hexdigest()} if chance.random() < 0.95 else {}
    header.pop("header_sha256", None)
    return json.dumps(header).encode() + b"\n" + body


def check_sound(path: Path, folder: Path) -> None:
    """What the manifest says, looked at in the slowest way."""
    manifest = load_prepared(folder, "set")
    header, *records = (json.loads(line) for line in path.read_bytes().splitlines())
    assert [vars_of(record) for record in manifest.records] == records
    for record in manifest.records:
        file = manifest.root / record.path
        assert file.resolve().is_relative_to(manifest.root)
        assert file != manifest.root
        assert type(record.person_id) is type(record.camera_id) is int
        assert -1 <= record.person_id < 2**63 > record.camera_id >= 0
        assert record.person_id > {"train": -1, "query": 0, "gallery": -2}[record.split]
    places = [(record.split, record.path) for record in manifest.records]
    assert len(set(places)) == len(places)
    for split, count in Counter(split for split, _ in places).items():
        assert header["counts"][split]["images"] == count == len(manifest.split(split))
        assert [r.path for r in manifest.split(split)] == sorted(p for s, p in places if s == split)


def vars_of(record: ImageRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in ("path", "person_id", "camera_id", "split")}


@pytest.mark.parametrize("kind", ["values", "bytes"])
def test_odd_manifests(tmp_path: Path, survive, damage, kind: str) -> None:
    """Broken bytes: the set as it was written, or a line. Other values: a set that is sound."""
    path = set_of(tmp_path)
    good = path.read_bytes()
    meant = read_manifest(path)
    accepted = 0

    def attempt(chance: random.Random) -> None:
        nonlocal accepted
        if kind == "values":
            path.write_bytes(odd_manifest(good, chance))
            check_sound(path, tmp_path)
        else:
            path.write_bytes(damage(good, chance))
            assert load_prepared(tmp_path, "set") == meant
        accepted += 1

    survive(f"manifests, {kind}", attempt)
    assert accepted > (20 if kind == "values" else 0)


def nasty(first: dict[str, Any], body: bytes) -> bytes:
    header = {
        **{"format": "airnet-manifest", "version": 1, "name": "set", "split_rule": "", "root": "."},
        **{"counts": {}, "lines": 1, "sha256": hashlib.sha256(body).hexdigest()},
    }
    return json.dumps(header | first).encode() + b"\n" + body


NASTY = {
    "deep-header": b'{"a": ' * 100_000,
    "deep-line": nasty({}, b"[" * 60_000),
    "long-line": nasty({}, b'{"path": "' + b"a" * 100_000 + b'"}'),
    "digits": nasty({}, b'{"path": ' + b"9" * 50_000 + b"}"),
    "long-root": nasty({"root": "x" * 5000}, b""),
    "nul-root": nasty({"root": "a\0b"}, b""),
    "no-name": nasty({"root": "\ud800"}, b""),
    "ids": nasty({"person_names": {"9" * 5000: "a"}}, b""),
    "utf-16": nasty({}, b"").decode().encode("utf-16"),
    "nothing": b"",
    "line": b"\n",
}


@pytest.mark.parametrize("content", NASTY.values(), ids=NASTY)
def test_nasty_manifests(tmp_path: Path, survive, content: bytes) -> None:
    """Depth, length and names that no file can have."""
    path = set_of(tmp_path)
    path.write_bytes(content)
    assert survive("nasty", lambda _: load_prepared(tmp_path, "set"), cases=1) == (0, 1)


def test_a_huge_manifest(tmp_path: Path) -> None:
    """Its size is looked at before its lines are."""
    path = set_of(tmp_path)
    with path.open("r+b") as file:
        file.truncate(module.LARGEST + 1)  # a hole: it takes no room
    with pytest.raises(DataError, match="more than 256 MiB"):
        load_prepared(tmp_path, "set")
