"""Fixed parts of a list of images, which any number of processes compute, each part once.

    people/shards.json                    the plan: written once, first, by whoever comes first
    people/shard-00003-of-00012.npy …     a shard: an ordinary gallery of the images 3 x size and on
    people/gallery.json                   when all are there: the whole, as one gallery

What a shard holds follows from the plan alone, and so do its bytes, on machines of one kind. So
nobody has to hand out the work: a shard whose record is there is done, and of two processes that
compute the same one the second finds it there. The record is put there last, only where there is
none. No torch here.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airnet_cli.core.gallery import npy_bytes
from airnet_cli.core.segments import MANIFEST, publish
from airnet_cli.core.storage import DiskFolder, Folder
from airnet_cli.errors import DataError

FORMAT = "airnet-shards"
FORMAT_VERSION = 1

PLAN = "shards.json"

MOST_SHARDS = 100_000
"""As many segments as a gallery may have."""

NAMED_ONLY = ("checkpoint", "run")
"""What a record says of where the model lay, which may be elsewhere on another machine: the first
one's counts."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be embedded, how, and in which parts."""

    images: int
    images_sha256: str
    """Of their paths and columns, see `Listing`."""
    shard_size: int
    """Images of each shard but the last."""
    settings: dict[str, Any]
    """JSON values, all that the rows hang on: model, heads, batch size, threads, versions …"""
    record: dict[str, Any]
    """What the record of each shard says of how it was made."""

    @property
    def shards(self) -> int:
        """How many there are."""
        return math.ceil(self.images / self.shard_size)

    @property
    def threads(self) -> int:
        """With which each process computes."""
        return int(self.settings["threads"])

    def name(self, number: int) -> str:
        """What the files of a shard are called, without the suffix."""
        return f"shard-{number:05}-of-{self.shards:05}"

    def part(self, number: int) -> slice:
        """The images of a shard."""
        first = number * self.shard_size
        return slice(first, first + self.size(number))

    def size(self, number: int) -> int:
        """How many images a shard has."""
        return min(self.shard_size, self.images - number * self.shard_size)

    def shard_record(self, number: int) -> dict[str, Any]:
        """What the record of a shard says beside the writer's own: enough to know it again."""
        plan = json.dumps(self.to_dict(), sort_keys=True).encode()
        digest = hashlib.sha256(plan).hexdigest()
        shard = {"number": number, "shards": self.shards, "plan_sha256": digest}
        return {**self.record, "shard": shard}

    def to_dict(self) -> dict[str, Any]:
        """The JSON file (docs/formats.md)."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "shard_size": self.shard_size,
            "shards": self.shards,
            "settings": self.settings,
            "record": self.record,
        }


@dataclass(frozen=True)
class Shard:
    """One that is there."""

    rows: int
    skipped: int
    """Images that could not be read, and have no row."""


def settle(folder: Folder, plan: Plan) -> Plan:
    """Put `plan` into `folder`, or find it there; the one that counts.

    It may have another number of threads than asked for, and name the model in another way.

    Raises:
        DataError: there is a plan of other images or settings, or one that can't be read.
    """
    # As JSON has it, so that both are alike.
    plan = replace(plan, settings=_plain(plan.settings), record=_plain(plan.record))
    if plan.shards > MOST_SHARDS:
        raise DataError(
            f"{plan.images:,} images in shards of {plan.shard_size:,} are {plan.shards:,} shards; "
            f"at most {MOST_SHARDS:,} are one gallery: give a larger --shard-size"
        )
    text = json.dumps(plan.to_dict(), indent=2, ensure_ascii=False) + "\n"
    if folder.create(PLAN, text.encode()):
        return plan
    there = _read(folder)
    named = {key: there.record[key] for key in NAMED_ONLY if key in there.record}
    asked = replace(
        plan,
        settings={**plan.settings, "threads": there.threads},
        record={**plan.record, **named},
    )
    for what, theirs, ours in _differences(there, asked):
        raise DataError(
            f"'{folder}' was begun with other {what}: its {PLAN} has {_short(theirs)}, this "
            f"command {_short(ours)}; repeat the command as it was, or choose another folder with "
            "-o"
        )
    return there


def planned_threads(folder: Folder) -> int | None:
    """The number of threads that each process computes with; None where there is no plan yet.

    Raises:
        DataError: the plan can't be read.
    """
    return None if folder.read(PLAN) is None else _read(folder).threads


def find_shard(folder: Folder, plan: Plan, number: int) -> Shard | None:
    """The shard, where it is there and whole; None where it is still to be computed.

    Raises:
        DataError: it is of another plan, or damaged.
    """
    name = plan.name(number)
    content = folder.read(f"{name}.json")
    if content is None:
        return None
    again = f"remove {name}.json there and start again, to have it computed anew"
    record = _parse(content)
    if record is None:
        raise DataError(f"shard '{folder}/{name}.json' is damaged; {again}")
    if record.get("shard") != plan.shard_record(number)["shard"]:
        raise DataError(
            f"shard '{folder}/{name}.json' is not of the plan in {PLAN}; choose another folder, "
            f"or {again}"
        )
    rows, skipped = record.get("rows"), record.get("skipped")
    if type(rows) is not int or rows < 0 or not isinstance(skipped, list):
        raise DataError(f"shard '{folder}/{name}.json' lacks or garbles rows or skipped; {again}")
    dimensions, dtype = plan.settings["dimensions"], plan.settings["dtype"]
    if folder.size(f"{name}.npy") != npy_bytes(rows, dimensions, dtype):
        raise DataError(f"shard '{folder}/{name}.npy' is missing or cut off; {again}")
    if folder.size(f"{name}.csv") is None:
        raise DataError(f"shard '{folder}/{name}.csv' is missing; {again}")
    return Shard(rows=rows, skipped=len(skipped))


def put_shard(folder: Folder, name: str, made: Path) -> bool:
    """Put the three files of a shard from the folder `made` there; False where it is there.

    Raises:
        DataError: another process put other bytes there.
        OutputError: it can't be written.
    """
    record = (made / f"{name}.json").read_bytes()
    theirs = folder.read(f"{name}.json")
    if theirs is None:
        for suffix in (".npy", ".csv"):
            folder.put(f"{name}{suffix}", made / f"{name}{suffix}")
        if folder.create(f"{name}.json", record):
            return True
        theirs = folder.read(f"{name}.json")
    if theirs != record:
        raise DataError(
            f"shard {name} was computed twice and came out differently: the machines are not of "
            f"one kind, or images were changed meanwhile; remove {name}.json in '{folder}' and "
            "start again on one kind of machine"
        )
    return False


def missing_shards(folder: Folder, plan: Plan) -> list[int]:
    """The shards that have no record yet."""
    there = folder.names()
    return [n for n in range(plan.shards) if f"{plan.name(n)}.json" not in there]


def publish_whole(folder: Folder, plan: Plan, shards: Sequence[Shard]) -> None:
    """Make one gallery of all shards, which are there; whoever does so writes the same bytes.

    Shards without a row, of which no image could be read, are no part of it.

    Raises:
        DataError: there is no row at all, or the folder is another gallery already.
    """
    names = [plan.name(number) for number, shard in enumerate(shards) if shard.rows]
    if not names:
        raise DataError(f"none of {plan.images:,} images could be read; look at the .json files")
    if isinstance(folder, DiskFolder):
        publish(folder.path, names)
        return
    with tempfile.TemporaryDirectory(prefix="airnet-") as here:
        # A manifest is made of records alone; that the other two files are there was seen.
        for name in names:
            (Path(here) / f"{name}.json").write_bytes(folder.read(f"{name}.json") or b"")
            for suffix in (".npy", ".csv"):
                (Path(here) / f"{name}{suffix}").touch()
        publish(Path(here), names)
        manifest = (Path(here) / MANIFEST).read_bytes()
    if not folder.create(MANIFEST, manifest) and folder.read(MANIFEST) != manifest:
        raise DataError(f"'{folder}' is another gallery already; choose another folder with -o")


def _read(folder: Folder) -> Plan:
    content = folder.read(PLAN)
    record = None if content is None else _parse(content)
    if record is None or record.get("format") != FORMAT:
        raise DataError(f"'{folder}/{PLAN}' is no plan of airnet; choose another folder with -o")
    if record.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"'{folder}/{PLAN}' has format version {str(record.get('format_version'))[:20]}, this "
            f"airnet reads {FORMAT_VERSION}; update airnet"
        )
    kinds = {
        "images": int,
        "images_sha256": str,
        "shard_size": int,
        "settings": dict,
        "record": dict,
    }
    values: dict[str, Any] = {key: record.get(key) for key in kinds}
    wrong = [key for key, kind in kinds.items() if type(values[key]) is not kind]
    if not wrong and (record["shard_size"] < 1 or record["images"] < 1):
        wrong = ["images", "shard_size"]
    if not wrong and type(record["settings"].get("threads")) is not int:
        wrong = ["settings"]
    if wrong:
        raise DataError(
            f"'{folder}/{PLAN}' lacks or garbles {', '.join(wrong)}; choose another folder with -o"
        )
    return Plan(**values)


def _differences(there: Plan, asked: Plan) -> list[tuple[str, Any, Any]]:
    """What differs between two plans: causes before what follows from them."""
    ways = {**there.settings, **asked.settings}
    pairs = [(key, there.settings.get(key), asked.settings.get(key)) for key in ways]
    pairs += [
        ("images per shard", there.shard_size, asked.shard_size),
        ("number of images", there.images, asked.images),
        ("images", there.images_sha256, asked.images_sha256),
        ("records", there.record, asked.record),
    ]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text[:200]
