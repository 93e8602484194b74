"""A gallery that grows and shrinks: a folder of parts, each written once.

    000001.json                 the record of a part: what made its rows, and the names of its files
    000001-4f0c61aa.npy, .csv   the rows of the part and their table, as in `files.py`
    000002.json                 a record may have no rows, and only hide rows of earlier parts

A part counts from the moment its record exists. The record is created exclusively, and no record
is ever changed or removed. Of two writers of one number only one creates the record, and the other
one's files are named by nobody. So adding, replacing, deleting and compacting are one record each,
and a reader sees the gallery before or after a change.

A writer takes the next number after those that it read. If another writer took it first, it reads
the records again. A job of many processes has a fixed number of parts, and each part has the
number of its record: to resume a job is to compute the missing parts.

Files that no record names, or whose rows are all hidden, are removed by the next writer. A reader
that finds a file missing reads the records again.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from airnet_cli.core.gallery.files import MUST_AGREE, check_record
from airnet_cli.core.gallery.rows import Rows
from airnet_cli.core.gallery.storage import Folder
from airnet_cli.errors import DataError

FORMAT = "airnet-gallery-part"

ALL = "all"
"""Of `hides`: all rows of a part, or all rows of all earlier parts."""

RECORD = re.compile(r"([0-9]{6,})\.json")
OWN_FILE = re.compile(r"\.?([0-9]{6,})(-[0-9a-f]{8}\.(npy|csv)|\.json\.[0-9a-f]{8}\.part)")
OLD_FILES = ("gallery.json", "shards.json")
"""What earlier versions of airnet kept in a folder."""

OF_ONE_PART = ("format", "format_version", "rows", "files", "skipped", "hides", "job")

TRIES = 10
PAUSE_SECONDS = 0.05
"""How often the records are read again, and how long to wait, if another process changes them."""

SHOWN = 10
"""Missing parts that an error lists."""


@dataclass(frozen=True)
class Job:
    """A list of images that is computed in parts, by one process or many."""

    parts: int
    size: int
    """Images of each part but the last."""
    listing: str
    """Digest of the images and their columns."""

    def images(self, number: int) -> slice:
        """The images of part `number`, from 1."""
        return slice((number - 1) * self.size, number * self.size)

    def count(self, number: int, images: int) -> int:
        """How many images part `number` has, of `images` in total."""
        return len(range(images)[self.images(number)])

    def missing(self, folder: Folder) -> list[int]:
        """The parts that have no record yet."""
        names = folder.names()
        return [n for n in range(1, self.parts + 1) if record_name(n) not in names]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The records of a folder at one moment, from the last compaction on."""

    folder: Folder
    names: frozenset[str]
    records: dict[int, dict[str, Any]]
    """By number, ascending."""
    missing: tuple[int, ...]
    """Parts of a job that nobody has computed yet."""

    @property
    def last(self) -> int:
        """The highest number; 0 in an empty folder."""
        return max(self.records, default=0)

    @cached_property
    def kept(self) -> dict[int, Rows]:
        """The rows that count, of each part that has some."""
        masks = {n: np.ones(r["rows"], np.bool_) for n, r in self.records.items() if r["rows"]}
        for record in self.records.values():
            if record["hides"] == ALL:
                continue  # the parts before it were not read
            for name, rows in record["hides"].items():
                if int(name) in masks:
                    masks[int(name)][slice(None) if rows == ALL else rows] = False
        return {number: np.flatnonzero(mask) for number, mask in masks.items() if mask.any()}

    @property
    def shared(self) -> dict[str, Any]:
        """What the newest record says about the model; empty in an empty folder."""
        newest = self.records.get(self.last, {})
        return {key: value for key, value in newest.items() if key not in OF_ONE_PART}


def record_name(number: int) -> str:
    """The file name of a part's record.

    >>> record_name(12)
    '000012.json'
    """
    return f"{number:06}.json"


def read_snapshot(folder: Folder) -> Snapshot:
    """Read the records of a folder.

    Raises:
        DataError: one is damaged or missing, or the folder can't be read.
    """
    gaps = [0]
    for _ in range(TRIES):
        names = folder.names()
        numbers = sorted(int(found[1]) for name in names if (found := RECORD.fullmatch(name)))
        records: dict[int, dict[str, Any]] = {}
        for number in reversed(numbers):
            records[number] = _read_record(folder, number)
            if records[number]["hides"] == ALL:
                break
        records = dict(sorted(records.items()))
        first = next(iter(records), 1)
        is_compacted = bool(records) and records[first]["hides"] == ALL
        jobs = {(j["parts"], j["listing"]) for r in records.values() if (j := r.get("job"))}
        if len(jobs) > 1:
            raise DataError(
                f"gallery '{folder}' has parts of two jobs, which were started at the same time; "
                "embed the images again into another folder"
            )
        parts = max((parts for parts, _ in jobs), default=0)
        expected = range(first if is_compacted else 1, max([parts, *records]) + 1)
        absent = [number for number in expected if number not in records]
        gaps = [number for number in absent if number > parts]
        if not gaps:
            return Snapshot(folder, names, records, tuple(absent))
        time.sleep(PAUSE_SECONDS)  # a listing that is older than one of its records
    raise DataError(
        f"gallery '{folder}' lacks the record {record_name(gaps[0])}; copy the folder again"
    )


def _read_record(folder: Folder, number: int) -> dict[str, Any]:
    name = f"{folder}/{record_name(number)}"
    try:
        record = json.loads(folder.read(record_name(number)))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"'{name}' can't be read: {error}; copy the folder again") from None
    return check_record(record, name=name, format_name=FORMAT)


def check_exists(snapshot: Snapshot, path: Path | str) -> None:
    """Refuse a folder without records.

    Raises:
        DataError: it is not a gallery, or one of an earlier version.
    """
    if snapshot.records:
        return
    if snapshot.names & {*OLD_FILES}:
        raise DataError(
            f"'{path}' is a gallery of an earlier version of airnet, which kept segments or "
            "shards; embed its images again into a new folder with `airnet embed`"
        )
    raise DataError(
        f"'{path}' has no parts (000001.json), so it is not a gallery; create one with "
        f"`airnet embed IMAGES -o {path} --append`"
    )


def check_complete(snapshot: Snapshot) -> None:
    """Refuse a gallery that lacks parts of its job.

    Raises:
        DataError: which parts are missing.
    """
    missing = snapshot.missing
    if missing:
        listed = ", ".join(map(str, missing[:SHOWN]))
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"gallery '{snapshot.folder}' is incomplete: {len(missing):,} parts are missing "
            f"({listed}{more}); compute them with the `airnet embed --shard-size` command that "
            "started it, or search the rest with `airnet match --allow-partial`"
        )


def check_agreement(record: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Refuse rows that were made in another way than those of the gallery `name`.

    Raises:
        DataError: what differs.
    """
    for key in MUST_AGREE:
        if record.get(key) != other.get(key):
            what = "model" if key == "fingerprint" else key
            raise DataError(
                f"'{name}' has rows of another {what} ({_short(other.get(key))}, not "
                f"{_short(record.get(key))}), so they can't be compared; embed in the same way, or "
                "choose another place with -o"
            )


def check_job(folder: Folder, job: Job, record: Mapping[str, Any]) -> None:
    """Refuse a folder that has another gallery or another job than `job`.

    Args:
        folder: that the job writes into.
        job: what is to be computed.
        record: what makes the rows, with the keys `MUST_AGREE`.

    Raises:
        DataError: what differs.
    """
    names = folder.names()
    numbers = sorted(int(found[1]) for name in names if (found := RECORD.fullmatch(name)))
    if not numbers:
        if names & {*OLD_FILES}:
            check_exists(Snapshot(folder, names, {}, ()), str(folder))
        return
    first = _read_record(folder, numbers[0])
    check_agreement(record, first, str(folder))
    other = first.get("job")
    if other is None:
        raise DataError(
            f"'{folder}' is a gallery already; add to it with --append, or choose another folder "
            "with -o"
        )
    for what, ours in asdict(job).items():
        if other[what] != ours:
            raise DataError(
                f"'{folder}' was started with other images or parts ({what}: "
                f"{_short(other[what])}, not {_short(ours)}); repeat the command as it was, leave "
                "--resume out, or choose another place with -o"
            )


def publish(
    folder: Folder,
    number: int,
    make: Callable[[Path, Path], dict[str, Any]],
    *,
    hides: dict[str, Any] | str,
) -> bool:
    """Write a part and create its record; False if that number is taken.

    Args:
        folder: of the gallery.
        number: of the part.
        make: writes the .npy and the .csv file and returns the record, with `rows`. Files of a
            part without rows are removed.
        hides: the rows of earlier parts that don't count any more.

    Raises:
        DataError, OutputError: a file can't be written.
    """
    name = f"{number:06}-{secrets.token_hex(4)}"
    with folder.staging() as place:
        files = [place / f"{name}{suffix}" for suffix in (".npy", ".csv")]
        try:
            made = make(*files)
            named = {file.suffix[1:]: file.name for file in files} if made["rows"] else None
            described = {"format": FORMAT, "format_version": 1, "files": named, "hides": hides}
            text = json.dumps({**made, **described}, ensure_ascii=False) + "\n"
            for file in files if named else ():
                folder.put(file)
            is_ours = folder.create(record_name(number), text.encode())
        except BaseException:
            # If the record exists, it may be ours: the next writer finds out.
            if record_name(number) not in folder.names():
                _remove(folder, files)
            raise
        if not is_ours or not named:
            _remove(folder, files)
    return is_ours


def _remove(folder: Folder, files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
        folder.remove(file.name)


def clean(folder: Folder) -> None:
    """Remove files that no reader needs: those of killed writers, and of parts that are hidden."""
    snapshot = read_snapshot(folder)
    used = {f for n in snapshot.kept for f in snapshot.records[n]["files"].values()}
    for name in snapshot.names - used:
        found = OWN_FILE.fullmatch(name)
        # Without a record, somebody may be writing the part.
        if found and record_name(int(found[1])) in snapshot.names:
            folder.remove(name)


def digest(columns: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of paths and further columns: whether two jobs are about the same images."""
    hashed = hashlib.sha256(json.dumps(list(columns)).encode())
    for row in zip(*columns.values(), strict=True):
        hashed.update(json.dumps(row).encode())
    return hashed.hexdigest()


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text[:100]
