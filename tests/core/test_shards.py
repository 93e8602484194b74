"""The plan of shards: each image in one of them, one plan for all, each shard there once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core.gallery import GalleryWriter, Listing, npy_bytes
from airnet_cli.core.shards import (
    Plan,
    find_shard,
    missing_shards,
    planned_threads,
    put_shard,
    settle,
)
from airnet_cli.core.storage import DiskFolder
from airnet_cli.errors import DataError

PLAN = Plan(
    images=11,
    images_sha256="a" * 64,
    shard_size=4,
    settings={"model": "b" * 64, "threads": 1, "dimensions": 3, "dtype": "float32"},
    record={
        "fingerprint": "b" * 64,
        "checkpoint": "runs/a/model.safetensors",
        "run": "a",
        "heads": {"A1": [0, 3]},
        "normalize_heads": False,
        "flip": False,
    },
)


def make_shard(folder: Path, number: int, *, value: float = 1.0, plan: Plan = PLAN) -> Path:
    """The files of a shard, in a folder of their own."""
    place = folder / f"made-{number}-{value}"
    paths = tuple(f"{i}.png" for i in range(*plan.part(number).indices(plan.images)))
    with GalleryWriter(
        place / f"{plan.name(number)}.npy",
        Listing(paths, {}),
        dimensions=3,
        dtype="float32",
        settings={},
        resume=False,
    ) as writer:
        writer.append(range(len(paths)), np.full((len(paths), 3), value, np.float32))
        writer.finish(plan.shard_record(number))
    return place


@pytest.mark.parametrize(("images", "size"), [(1, 1), (11, 4), (12, 4), (3, 10), (100, 1)])
def test_each_image_is_in_one_shard(images: int, size: int) -> None:
    """The parts follow each other, and are all of them."""
    plan = replace(PLAN, images=images, shard_size=size)
    parts = [list(range(images))[plan.part(number)] for number in range(plan.shards)]
    assert [image for part in parts for image in part] == list(range(images))
    assert [plan.size(number) for number in range(plan.shards)] == [len(part) for part in parts]
    assert {len(part) for part in parts[:-1]} <= {size}
    assert parts[-1]
    assert PLAN.name(2) == "shard-00002-of-00003"


def test_the_first_plan_counts(tmp_path: Path) -> None:
    """Threads, and what the model's file is called, are those of whoever came first."""
    folder = DiskFolder(tmp_path / "people")
    assert planned_threads(folder) is None
    assert settle(folder, PLAN) == PLAN
    before = folder.read("shards.json")
    elsewhere = {"checkpoint": "/mnt/a.safetensors", "run": None}
    other = replace(
        PLAN,
        settings={**PLAN.settings, "threads": 8},
        record={**PLAN.record, **elsewhere},
    )
    assert settle(folder, other) == PLAN
    assert planned_threads(folder) == 1
    assert folder.read("shards.json") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {**PLAN.settings, "model": "c" * 64}}, "other model: its shards.json has bb"),
        ({"settings": {**PLAN.settings, "dtype": "float16"}}, "other dtype"),
        ({"settings": {**PLAN.settings, "flip": True}}, "other flip: its shards.json has null"),
        ({"shard_size": 5}, "other images per shard: its shards.json has 4, this command 5"),
        ({"images": 12}, "other number of images"),
        ({"images_sha256": "d" * 64}, "other images: its shards.json has aaaaaaaaaaaa, this"),
        ({"record": {**PLAN.record, "flip": True}}, "other records"),
    ],
)
def test_another_plan_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One line that says what differs."""
    folder = DiskFolder(tmp_path)
    settle(folder, PLAN)
    with pytest.raises(DataError, match=message) as raised:
        settle(folder, replace(PLAN, **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no plan of airnet"),
        (b"[]", "is no plan of airnet"),
        (b'{"format": "airnet-gallery"}', "is no plan of airnet"),
        (b'{"format": "airnet-shards", "format_version": 2}', "format version 2"),
        (b'{"format": "airnet-shards", "format_version": 1}', "lacks or garbles"),
    ],
)
def test_a_broken_plan_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Nothing is computed by a plan that nobody can read."""
    (tmp_path / "shards.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        settle(DiskFolder(tmp_path), PLAN)


@pytest.mark.parametrize("values", [{"shard_size": 0}, {"images": "11"}, {"settings": {}}])
def test_a_made_up_plan_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    """One line names what is wrong."""
    (tmp_path / "shards.json").write_text(json.dumps(PLAN.to_dict() | values))
    with pytest.raises(DataError, match="lacks or garbles"):
        settle(DiskFolder(tmp_path), PLAN)


def test_too_many_shards_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(DataError, match="are 200,000 shards; at most 100,000"):
        settle(DiskFolder(tmp_path), replace(PLAN, images=200_000, shard_size=1))
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_put_there_once(tmp_path: Path) -> None:
    """The second process finds it, and its own files go nowhere."""
    folder = DiskFolder(tmp_path / "people")
    settle(folder, PLAN)
    first, second = make_shard(tmp_path / "a", 2), make_shard(tmp_path / "b", 2)
    assert missing_shards(folder, PLAN) == [0, 1, 2]
    assert find_shard(folder, PLAN, 2) is None
    assert put_shard(folder, PLAN.name(2), first)
    assert not put_shard(folder, PLAN.name(2), second)
    shard = find_shard(folder, PLAN, 2)
    assert shard is not None
    assert (shard.rows, shard.skipped) == (3, 0)
    assert missing_shards(folder, PLAN) == [0, 1]


def test_a_lost_race_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process puts its record there between our look and our own: theirs counts."""
    folder = DiskFolder(tmp_path / "people")
    settle(folder, PLAN)
    theirs, ours = make_shard(tmp_path / "a", 0), make_shard(tmp_path / "b", 0)
    put = DiskFolder.put

    def put_after_another(self: DiskFolder, name: str, file: Path) -> None:
        put(self, name, file)
        if name.endswith(".csv"):
            monkeypatch.setattr(DiskFolder, "put", put)
            put_shard(self, PLAN.name(0), theirs)

    monkeypatch.setattr(DiskFolder, "put", put_after_another)
    assert not put_shard(folder, PLAN.name(0), ours)


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".json", lambda content: content[:-20], "is damaged"),
        (".json", lambda content: content.replace(b'"rows": 4', b'"rows": 5'), "or cut off"),
        (".json", lambda _: b"[]", "is damaged"),
        (".npy", lambda content: content[:-1], "is missing or cut off"),
        (".npy", None, "is missing or cut off"),
        (".csv", None, "is missing"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, suffix: str, damage: Any, message: str) -> None:
    """One line that says what to remove, so that it is computed anew."""
    folder = DiskFolder(tmp_path / "people")
    settle(folder, PLAN)
    put_shard(folder, PLAN.name(1), make_shard(tmp_path, 1))
    file = folder.path / f"{PLAN.name(1)}{suffix}"
    content = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(content))
    with pytest.raises(DataError, match=message) as raised:
        find_shard(folder, PLAN, 1)
    assert "remove shard-00001-of-00003.json there and start again" in str(raised.value)


def test_a_shard_of_another_plan_is_refused(tmp_path: Path) -> None:
    """Also one whose name is the same."""
    other = replace(PLAN, images_sha256="e" * 64)
    folder = DiskFolder(tmp_path / "people")
    settle(folder, PLAN)
    put_shard(folder, PLAN.name(1), make_shard(tmp_path, 1, plan=other))
    with pytest.raises(DataError, match=r"is not of the plan in shards\.json"):
        find_shard(folder, PLAN, 1)


@pytest.mark.parametrize(("rows", "dtype"), [(0, "float32"), (1, "float16"), (1234, "float32")])
def test_the_size_of_a_matrix(tmp_path: Path, rows: int, dtype: str) -> None:
    """It is that of the file that NumPy writes."""
    np.save(tmp_path / "a.npy", np.zeros((rows, 7), dtype))
    assert (tmp_path / "a.npy").stat().st_size == npy_bytes(rows, 7, dtype)
