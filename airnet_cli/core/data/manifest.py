"""The prepared data set on disk: `DATA_ROOT/NAME/manifest.jsonl`.

The first line is the header (format, version, name, split rule, counts, root, number of lines),
then one line per image: path relative to the root, person id, camera id, split. The root is stored
relative to the manifest's folder, so a data root that moves together with its images still works.
Lines are sorted by split and path: the same images give the same file, byte for byte. Junk images
are listed too; evaluation leaves them out. Where ids were made up for people and cameras that had
other names, the header has the names.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.files import is_folder, reason_of, replacing
from airnet_cli.errors import DataError, OutputError, quoted

FILE_NAME = "manifest.jsonl"
FORMAT = "airnet-manifest"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """How much of what one split holds."""

    images: int
    """All files, distractors and junk included."""
    ids: int
    """Identities; distractors and junk are nobody."""
    cameras: int
    distractors: int = 0
    """Gallery images with person id 0."""
    junk: int = 0
    """Gallery images with person id -1."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared data set as it was read from (or written to) its manifest."""

    name: str
    root: Path
    """Absolute folder of the images."""
    records: tuple[ImageRecord, ...]
    """Sorted by split (train, query, gallery), then path."""
    split_rule: str
    """Where the split comes from, in one line."""
    counts: Mapping[Split, SplitCounts]
    person_names: Mapping[int, str] = field(default_factory=dict)
    """What the images' maker calls each person id; empty where that is the id itself."""
    camera_names: Mapping[int, str] = field(default_factory=dict)
    """The same for camera ids."""

    def split(self, split: Split) -> tuple[ImageRecord, ...]:
        """Return the records of one split, sorted by path."""
        return tuple(record for record in self.records if record.split == split)


def manifest_path(data_root: Path, name: str) -> Path:
    """Say where the manifest of data set `name` lies.

    Raises:
        DataError: `name` can't be the name of a folder under the data root.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise DataError(
            f"{quoted(name)} can't be the name of a data set; use letters, digits, '.', '_' and "
            "'-', at most a hundred"
        )
    return data_root / name / FILE_NAME


def load_prepared(data_root: Path, name: str) -> Manifest:
    """Read the data set `name` that was prepared under `data_root`.

    Raises:
        DataError: it was never prepared there, its manifest is broken, or its images are gone.
    """
    path = manifest_path(data_root, name)
    if not path.is_file():
        prepared = prepared_names(data_root)
        there = (
            f"prepared there: {', '.join(prepared)}" if prepared else "nothing is prepared there"
        )
        raise DataError(
            f"no data set {name!r} under {data_root} ({there}); "
            f"run: {prepare_command(name)} --data-root {data_root}"
        )
    manifest = read_manifest(path)
    if not is_folder(manifest.root):
        raise DataError(
            f"the images of {name!r} are gone: {path} points to {manifest.root}, which is not a "
            f"folder; put them back or run: {prepare_command(name)} --data-root {data_root}"
        )
    return manifest


def prepared_names(data_root: Path) -> list[str]:
    """List the data sets that are prepared under `data_root`, sorted."""
    return sorted(path.parent.name for path in data_root.glob(f"*/{FILE_NAME}"))


def prepare_command(name: str) -> str:
    """Spell the command that prepares a data set of this name."""
    match name:
        case "demo":
            return "airnet prepare-data demo"
        case "market1501" | "cuhk03-labeled" | "cuhk03-detected" | "msmt17":
            return f"airnet prepare-data {name} SOURCE"
        case _:
            return f"airnet prepare-data csv TABLE --name {name}"


def count_splits(records: Iterable[ImageRecord]) -> dict[Split, SplitCounts]:
    """Count images, identities, cameras, distractors and junk of each split.

    Person id 0 is an identity like any other in training, and nobody in the gallery.
    """
    of_split: dict[Split, list[ImageRecord]] = {split: [] for split in SPLITS}
    for record in records:
        of_split[record.split].append(record)
    return {split: _count(of_split[split], split) for split in SPLITS}


def _count(records: list[ImageRecord], split: Split) -> SplitCounts:
    images = Counter(record.person_id for record in records)
    nobody = {JUNK, DISTRACTOR} if split == "gallery" else {JUNK}
    return SplitCounts(
        images=len(records),
        ids=len(images.keys() - nobody),
        cameras=len({record.camera_id for record in records}),
        distractors=images[DISTRACTOR] if split == "gallery" else 0,
        junk=images[JUNK],
    )


def write_manifest(
    path: Path,
    *,
    name: str,
    root: Path,
    records: Iterable[ImageRecord],
    split_rule: str,
    person_names: Mapping[int, str] | None = None,
    camera_names: Mapping[int, str] | None = None,
) -> Manifest:
    """Write a manifest whole or not at all, and return what `read_manifest` would return.

    Raises:
        DataError: an image is listed twice in one split, or the file can't be written.
    """
    try:
        ordered = _in_order(records)
    except ValueError as error:
        raise DataError(f"{error}; list it once") from None
    counts = count_splits(ordered)
    names = {"person_names": person_names or {}, "camera_names": camera_names or {}}
    body = "".join(_dump(asdict(record)) for record in ordered).encode()
    try:
        header: dict[str, object] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": name,
            "split_rule": split_rule,
            "root": _relative_root(root.resolve(), path.parent.resolve()),
            "counts": {split: asdict(count) for split, count in counts.items()},
            "lines": len(ordered),
            **{key: value for key, value in names.items() if value},
        }
        with replacing(path) as temporary:
            temporary.write_bytes(_dump(header).encode() + body)
    except (OSError, OutputError) as error:
        raise DataError(
            f"can't write {path}: {reason_of(error)}; make it writable or choose another "
            "--data-root"
        ) from error
    return Manifest(
        name=name,
        root=root.resolve(),
        records=ordered,
        split_rule=split_rule,
        counts=counts,
        **names,
    )


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and check that it is complete.

    Header keys that this version does not know, such as hashes of earlier versions, are ignored.

    Raises:
        DataError: it is missing, cut off, of a newer version, or not a manifest.
    """
    try:
        first, *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"can't read the manifest {path}: {error.strerror or error}; run airnet prepare-data"
        ) from error
    except ValueError:  # not even one whole line
        first, lines, rest = b"", [], b""
    header = _read_header(path, first)
    if rest or len(lines) != header["lines"]:
        raise DataError(
            f"{path} is cut off or was edited: its header promises {header['lines']:,} images, "
            f"and there are {len(lines):,} whole lines; run airnet prepare-data again"
        )
    try:
        records = _in_order(_record(**json.loads(line)) for line in lines)
        person_names, camera_names = (
            {int(number): str(name) for number, name in header.get(key, {}).items()}
            for key in ("person_names", "camera_names")
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has a line that can't be used ({str(error)[:200]}); "
            "run airnet prepare-data again"
        ) from error
    return Manifest(
        name=header["name"],
        root=Path(os.path.normpath(path.parent.resolve() / header["root"])),
        records=records,
        split_rule=header["split_rule"],
        counts=count_splits(records),
        person_names=person_names,
        camera_names=camera_names,
    )


def _read_header(path: Path, line: bytes) -> dict[str, Any]:
    """Parse the first line and check what is used; its counts are for other programs."""
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(
            f"{path} is not a manifest: its first line is not an {FORMAT} header; "
            "run airnet prepare-data again"
        )
    version = header.get("version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has manifest version {str(version)[:20]}, "
            f"this airnet reads version {FORMAT_VERSION}; "
            "use the airnet that wrote it or run airnet prepare-data again"
        )
    for key, kind in {"name": str, "split_rule": str, "root": str, "lines": int}.items():
        if not isinstance(header.get(key), kind):
            raise DataError(
                f"{path} has a header without a valid {key!r}; run airnet prepare-data again"
            )
    return header


def _record(path: str, person_id: int, camera_id: int, split: Split) -> ImageRecord:
    """A record of checked values; ValueError for what no reader finds."""
    if not isinstance(path, str) or split not in SPLITS:
        raise ValueError(f"path {quoted(path)}, split {quoted(split)}")
    if type(person_id) is not int or type(camera_id) is not int:
        raise ValueError(f"person_id or camera_id of {quoted(path)} is not an integer")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"path {quoted(path)} leads out of the root")
    return ImageRecord(path, person_id, camera_id, split)


def _in_order(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    """Sort by split and path; ValueError if a split has an image twice."""
    by_place: dict[tuple[int, str], ImageRecord] = {}
    for record in records:
        place = (SPLITS.index(record.split), record.path)
        if by_place.setdefault(place, record) is not record:
            raise ValueError(f"{record.path} is listed twice in the split {record.split}")
    return tuple(by_place[place] for place in sorted(by_place))


def _relative_root(root: Path, folder: Path) -> str:
    """Give the root as seen from the manifest's folder; absolute between two Windows drives."""
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:
        return root.as_posix()


def _dump(value: object) -> str:
    """Give one line of JSON; ASCII only, so that any tool reads any file name."""
    return json.dumps(value, ensure_ascii=True, separators=(", ", ": ")) + "\n"
