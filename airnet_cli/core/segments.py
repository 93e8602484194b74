"""A gallery that grows and shrinks: a folder of segments, and a manifest that says which count.

    people/gallery.json     the manifest: the segments in order, which of their rows are deleted,
                            and what all rows have in common; replaced in one rename
    people/NAME.npy .csv .json   a segment: an ordinary gallery (`gallery.py`), never changed

Only what the manifest names is there for a reader, so every change is one rename: a reader sees
what was before or what is after it. Rows are counted over the segments in order, without those that
are deleted; `read_segments` gives them as one `Gallery`, to be used like that of a file.

Who writes segments, in `embed` or in many processes, makes a gallery of them with

    publish(Path("people"), ["shard-00000-of-00012", ...])

once their files are whole in that folder, with paths of images relative to it. It writes the same
bytes for the same segments, so any number of processes may do it, at the same time too. What
changes such a folder afterwards locks it (`changing`), as two writers would lose rows. Names of
segments are never used again, so a reader can't take a new one for an old one.

Letters: N rows of the gallery, n rows of a segment.
"""

import contextlib
import dataclasses
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import (
    is_file,
    is_folder,
    lock_folder,
    read_json,
    reason_of,
    remove_parts,
    write_json,
)
from airnet_cli.core.gallery import (
    DTYPES,
    MUST_AGREE,
    Gallery,
    GalleryWriter,
    Listing,
    gallery_files,
    heads_of,
    read_gallery,
    read_record,
    read_table,
)
from airnet_cli.core.gallery import (
    FORMAT as GALLERY_FORMAT,
)
from airnet_cli.core.joined import JoinedRows
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, OutputError

FORMAT = "airnet-segments"
FORMAT_VERSION = 1

MANIFEST = "gallery.json"

MOST_SEGMENTS = 100_000
MOST_ROWS = 2**40
"""Of a segment; its files are held against it before anything is done with the number."""

SHARED = (*MUST_AGREE, "checkpoint", "run", "variant", "backbone")
"""What the manifest has of the segments' records; of the last one, where they may differ."""

TRIES = 5
"""How often a reader begins again where the gallery was changed while it was opened."""

OTHER_FILES = 100
"""What a process has open besides the segments of a gallery, at most."""

BLOCK_BYTES = 16 * 2**20
"""Of the rows that are compacted together."""

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Segment:
    """An ordinary gallery in the folder, and which of its rows do not count any more."""

    name: str
    """Of its files, without the suffix."""
    rows: int
    """n, those that are deleted included."""
    deleted: Rows
    """(R, 2) first and last + 1 of each run of deleted rows, ascending."""

    @property
    def left(self) -> int:
        """How many rows count."""
        return self.rows - int((self.deleted[:, 1] - self.deleted[:, 0]).sum())

    def kept(self) -> Rows | None:
        """The rows that count, ascending; None for all. Takes memory for n rows."""
        if not len(self.deleted):
            return None
        steps = np.zeros(self.rows + 1, np.int8)
        steps[self.deleted[:, 0]] += 1
        steps[self.deleted[:, 1]] -= 1
        return np.flatnonzero(np.cumsum(steps[:-1], dtype=np.int8) == 0)

    def without(self, gone: Mask) -> "Segment":
        """This segment without the rows that are `gone`, among those that count."""
        kept = self.kept()
        is_deleted = np.ones(self.rows, np.bool_)
        is_deleted[(np.arange(self.rows) if kept is None else kept)[~gone]] = False
        steps = np.diff(is_deleted.astype(np.int8), prepend=0, append=0)
        runs = np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)
        return dataclasses.replace(self, deleted=runs)

    def to_dict(self) -> dict[str, Any]:
        """As in the manifest (docs/formats.md)."""
        runs = ",".join(
            str(first) if stop == first + 1 else f"{first}-{stop - 1}"
            for first, stop in self.deleted.tolist()
        )
        return {"name": self.name, "rows": self.rows, "deleted": runs}


@dataclass(frozen=True, eq=False)
class Manifest:
    """Which rows a folder of segments has."""

    shared: dict[str, Any]
    """What all rows have in common: the keys `SHARED` of the segments' records."""
    segments: tuple[Segment, ...] = ()
    generation: int = 0
    """How often the gallery was written; compacted segments are named by it."""
    appended: int = 0
    """How many segments were appended; they are named by it."""
    dropped: tuple[str, ...] = ()
    """Segments that the last change took away: their files may still be there."""

    @property
    def rows(self) -> int:
        """N."""
        return sum(segment.left for segment in self.segments)

    @property
    def heads(self) -> dict[str, slice]:
        """Each head's part of an embedding."""
        heads = heads_of(self.shared)
        assert heads is not None, "checked when it was read"
        return heads

    def without(self, gone: Mask) -> "Manifest":
        """The gallery without the rows that are `gone` (N,); segments without rows are dropped."""
        segments, begin = [], 0
        for segment in self.segments:
            part = gone[begin : begin + segment.left]
            begin += segment.left
            segments.append(segment.without(part) if part.any() else segment)
        return self._next(tuple(segment for segment in segments if segment.left))

    def with_segment(self, name: str, record: dict[str, Any], gone: Mask) -> "Manifest":
        """The gallery without rows that are `gone` (N,), and with those of a segment after them."""
        left = self.without(gone)
        return dataclasses.replace(
            left,
            shared=_shared(record),
            segments=(*left.segments, _segment(name, record)),
            appended=self.appended + 1,
        )

    def compacted(self, name: str, record: dict[str, Any]) -> "Manifest":
        """The gallery with all rows in one segment."""
        return self._next((_segment(name, record),))

    def _next(self, segments: tuple[Segment, ...]) -> "Manifest":
        names = {segment.name for segment in segments}
        dropped = [segment.name for segment in self.segments if segment.name not in names]
        return dataclasses.replace(
            self, segments=segments, generation=self.generation + 1, dropped=tuple(dropped)
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON file (docs/formats.md)."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "generation": self.generation,
            "appended": self.appended,
            "rows": self.rows,
            **self.shared,
            "segments": [segment.to_dict() for segment in self.segments],
            "dropped": list(self.dropped),
        }


def open_gallery(path: Path) -> Gallery:
    """The gallery `path`: a .npy file, or a folder of segments.

    Raises:
        DataError: it is missing or broken.
    """
    if is_folder(path):
        return read_segments(path)
    if not path.suffix and not path.exists():
        raise DataError(
            f"gallery '{path}' does not exist; `airnet embed IMAGES -o {path} --append` makes it"
        )
    return read_gallery(path)


def is_segmented(folder: Path) -> bool:
    """Whether `folder` is a folder of segments, be it a broken one."""
    try:
        record = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def read_segments(folder: Path) -> Gallery:
    """Read and check a folder of segments; the matrices stay on disk.

    It may be changed meanwhile: then it is read again.

    Raises:
        DataError: the manifest or a segment is missing or broken, or they do not belong together.
    """
    for _ in range(TRIES - 1):
        manifest = read_manifest(folder)
        try:
            return _open(folder, manifest)
        except DataError:
            if read_manifest(folder).generation == manifest.generation:
                raise
    return _open(folder, read_manifest(folder))


def read_columns(folder: Path, manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The table of a gallery whose folder is held: N texts for `path` and for each other column.

    Raises:
        DataError: a segment is missing or broken.
    """
    tables = []
    for segment in manifest.segments:
        file = _file(folder, segment.name)
        record, _ = read_record(file)
        _check_segment(file, segment, record, manifest.shared)
        tables.append(read_table(file.with_suffix(".csv"), record))
    return _columns(folder, manifest, tables)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        DataError: it is missing or broken.
    """
    file = folder / MANIFEST
    try:
        record = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"'{folder}' has no {MANIFEST}, so it is no gallery; give a .npy file, or a folder "
            "that `airnet embed IMAGES -o FOLDER --append` made"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' can't be read: {' '.join(str(error).split())}") from None
    if isinstance(record, dict) and record.get("format") == GALLERY_FORMAT:
        raise DataError(
            f"'{file}' is the record of the gallery '{file.with_suffix('.npy')}', which is one "
            "file; give that, or another folder"
        )
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"'{file}' does not describe a gallery of airnet; give another folder")
    if record.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"'{file}' has format version {str(record.get('format_version'))[:20]}, this airnet "
            f"reads {FORMAT_VERSION}; update airnet"
        )
    try:
        return _parse(record)
    except ValueError as error:
        raise DataError(
            f"'{file}' is wrong about its {error}; get it again from where it came, or embed the "
            "images into another folder"
        ) from None


def publish(folder: Path, names: Sequence[str]) -> Manifest:
    """Make a gallery of the finished segments `names` in `folder`, in this order.

    The same segments give the same bytes; where they are the gallery already, nothing is done.

    Raises:
        DataError: a segment is missing, unfinished or of another model or setting than the first;
            the folder is another gallery already.
        OutputError: the manifest can't be written.
    """
    if not names or len(set(names)) < len(names) or not all(map(_is_name, names)):
        raise ValueError(f"segments have different names of letters, digits, - and _, not {names}")
    if any(OWN.match(f"{name}.") for name in names):
        raise ValueError(f"segment-... and compacted-... are names of later segments, not {names}")
    segments: list[Segment] = []
    shared: dict[str, Any] = {}
    for name in names:
        file = _file(folder, name)
        record, _ = read_record(file)
        missing = [each for each in (file, file.with_suffix(".csv")) if not is_file(each)]
        if missing:
            raise DataError(f"segment '{file}' is not whole; write it again with `airnet embed`")
        if segments:
            _check_alike(file, record, shared, f"segment '{names[0]}'")
        shared = _shared(record)
        segments.append(_segment(name, record))
    manifest = Manifest(shared=shared, segments=tuple(segments), generation=1)
    if (folder / MANIFEST).exists():
        there = read_manifest(folder)
        if there.to_dict() != manifest.to_dict():
            raise DataError(
                f"'{folder}' is a gallery already, of {len(there.segments):,} segments that are "
                "not these; choose another folder"
            )
        return there
    _write(folder, manifest)
    return manifest


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Manifest | None]:
    """Lock `folder` while its gallery is changed; gives its manifest, None where it has none yet.

    What killed jobs left behind is removed, but for an append that can be gone on with.

    Raises:
        DataError: another process has locked it, or the manifest is broken.
    """
    with lock_folder(folder) as is_ours:
        if not is_ours:
            raise DataError(
                f"gallery '{folder}' is being written by another process; wait for it, or choose "
                "another place"
            )
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
        _remove_leftovers(folder, manifest)
        *files, journal = gallery_files(next_segment(folder, manifest))
        stranger = next((file for file in files if is_file(file)), None)
        if stranger is not None and not is_file(journal):
            raise DataError(
                f"'{stranger}' has the name of the next segment, and no {MANIFEST} names it; move "
                "it away"
            )
        yield manifest


def next_segment(folder: Path, manifest: Manifest | None) -> Path:
    """The .npy file of the segment that is appended next: the same until it is published."""
    number = 1 + (0 if manifest is None else manifest.appended)
    return _file(folder, f"segment-{number:06}")


def append_segment(
    folder: Path, manifest: Manifest | None, record: dict[str, Any], gone: Mask
) -> Manifest:
    """Publish the next segment, whose files are in place; `gone` (N,) are the rows it replaces.

    The folder is held.

    Raises:
        DataError: too many rows are deleted to be named.
        OutputError: the manifest can't be written.
    """
    name = next_segment(folder, manifest).stem
    before = Manifest(shared=_shared(record)) if manifest is None else manifest
    after = before.with_segment(name, record, gone)
    _write(folder, after)
    return after


def delete_rows(folder: Path, manifest: Manifest, gone: Mask) -> Manifest:
    """Delete the rows that are `gone` (N,) from a gallery whose folder is held.

    Raises:
        DataError: too many rows are deleted to be named.
        OutputError: the manifest can't be written.
    """
    after = manifest.without(gone)
    _write(folder, after)
    return after


def compact(folder: Path, manifest: Manifest, *, progress: Progress = silent) -> Manifest:
    """Bring the rows that are left into one segment, in order; the folder is held.

    The old files are removed when the new ones are published. One segment without deleted rows
    stays as it is.

    Raises:
        DataError: a segment is broken, or there is no room for the new one.
        OutputError: the manifest can't be written.
    """
    if len(manifest.segments) <= 1 and not any(len(each.deleted) for each in manifest.segments):
        return manifest
    gallery = _open(folder, manifest)
    record, _ = read_record(_file(folder, manifest.segments[-1].name))
    name = f"compacted-{manifest.generation + 1:06}"
    columns = dict(gallery.columns)
    listing = Listing(columns.pop("path"), columns)
    block = max(1, BLOCK_BYTES // (gallery.embeddings.shape[1] * gallery.embeddings.dtype.itemsize))
    try:
        with GalleryWriter(
            _file(folder, name),
            listing,
            dimensions=gallery.embeddings.shape[1],
            dtype=record["dtype"],
            settings={},
            resume=False,
        ) as writer:
            for first in range(0, manifest.rows, block):
                rows = range(first, min(first + block, manifest.rows))
                writer.append(rows, gallery.embeddings[first : first + block])
                progress("compacting", writer.done, manifest.rows, "rows")
            made = {key: record[key] for key in (*SHARED, "runtime", "versions") if key in record}
            after = manifest.compacted(name, writer.finish(made))
        _write(folder, after)
    except BaseException as error:
        if read_manifest(folder).generation == manifest.generation:
            _remove(folder, name)
        cause = error.__context__
        if isinstance(error, DataError) and isinstance(cause, OSError | OutputError):
            raise DataError(
                f"gallery '{folder}' can't be compacted: {reason_of(cause)}; it is as it was: make "
                "room for its rows, once more, and try again"
            ) from None
        raise
    return after


def check_appendable(folder: Path, manifest: Manifest, record: dict[str, Any]) -> None:
    """Refuse rows that are made in another way than those of a gallery.

    Args:
        folder: where it is.
        manifest: of the gallery.
        record: what is to make the rows, with the keys `MUST_AGREE`.

    Raises:
        DataError: what differs, and what to do.
    """
    _check_alike(None, record, manifest.shared, f"gallery '{folder}'")


def image_keys(paths: Sequence[str]) -> list[str]:
    """What tells images apart, of `paths` relative to the folder.

    >>> image_keys(["../crops/1.jpg", "a/../../crops/1.jpg"])
    ['../crops/1.jpg', '../crops/1.jpg']
    """
    return [posixpath.normpath(path) for path in paths]


def _open(folder: Path, manifest: Manifest) -> Gallery:
    _check_open_files(folder, len(manifest.segments))
    opened = []
    for segment in manifest.segments:
        file = _file(folder, segment.name)
        gallery = read_gallery(file)
        _check_segment(file, segment, gallery.record, manifest.shared)
        assert isinstance(gallery.embeddings, np.ndarray)
        opened.append((gallery.embeddings, segment.kept(), gallery.columns))
    return Gallery(
        path=folder,
        embeddings=JoinedRows(
            [embeddings for embeddings, _, _ in opened],
            [kept for _, kept, _ in opened],
            dimensions=manifest.shared["dimensions"],
            dtype=DTYPES[manifest.shared["dtype"]],
        ),
        columns=_columns(folder, manifest, [columns for _, _, columns in opened]),
        heads=manifest.heads,
        record=manifest.to_dict(),
    )


def _check_open_files(folder: Path, segments: int) -> None:
    """Refuse what would run out of open files: each mapped matrix is one."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and segments + OTHER_FILES > most:
        raise DataError(
            f"gallery '{folder}' has {segments:,} segments, and a process may open {most:,} files "
            f"here; allow more with `ulimit -n {segments + OTHER_FILES}`, and join them with "
            f"`airnet gallery compact {folder}`"
        )


def _columns(
    folder: Path, manifest: Manifest, tables: Sequence[dict[str, tuple[str, ...]]]
) -> dict[str, tuple[str, ...]]:
    """The tables of all segments as one, with the columns of all; empty where one lacks it."""
    names = list(dict.fromkeys(["path", *(name for table in tables for name in table)]))
    columns: dict[str, list[str]] = {name: [] for name in names}
    for segment, table in zip(manifest.segments, tables, strict=True):
        kept = segment.kept()
        rows = None if kept is None else kept.tolist()
        for name, cells in columns.items():
            those = table.get(name)
            if those is None:
                cells += [""] * segment.left
            else:
                cells += those if rows is None else [those[row] for row in rows]
    return {name: tuple(cells) for name, cells in columns.items()}


def _check_segment(
    file: Path, segment: Segment, record: dict[str, Any], shared: dict[str, Any]
) -> None:
    """Compare a segment's record with what the manifest says of it."""
    if record["rows"] != segment.rows:
        raise DataError(
            f"segment '{file}' is another than the one that {MANIFEST} names; get the folder again "
            "from where it came, or embed the images into another one"
        )
    _check_alike(file, record, shared, MANIFEST)


def _check_alike(
    file: Path | None, record: dict[str, Any], shared: dict[str, Any], of: str
) -> None:
    different = [key for key in MUST_AGREE if record.get(key) != shared.get(key)]
    if different:
        key = different[0]
        said = "model" if key == "fingerprint" else key
        what = "this command" if file is None else f"segment '{file}'"
        raise DataError(
            f"{what} and {of} differ in {said}: {_short(record.get(key))} and "
            f"{_short(shared.get(key))}, so that their rows can't be compared; embed the images as "
            "the others were, or choose another folder"
        )


def _parse(record: dict[str, Any]) -> Manifest:
    """The manifest of a record that anyone may have changed.

    Raises:
        ValueError: it makes no sense; what is wrong.
    """
    kinds = {
        "generation": int,
        "appended": int,
        "rows": int,
        "dimensions": int,
        "dtype": str,
        "fingerprint": str,
        "heads": dict,
        "normalize_heads": bool,
        "flip": bool,
        "segments": list,
        "dropped": list,
    }
    # `type`, since True is an integer to isinstance.
    wrong = [key for key, kind in kinds.items() if type(record.get(key)) is not kind]
    if wrong:
        raise ValueError(", ".join(wrong))
    for key in ("generation", "appended"):
        if not 0 <= record[key] <= MOST_ROWS:
            raise ValueError(key)
    if record["dtype"] not in DTYPES:
        raise ValueError("dtype")
    if not 0 < record["dimensions"] <= MOST_ROWS or heads_of(record) is None:
        raise ValueError("heads")
    if len(record["segments"]) > MOST_SEGMENTS:
        raise ValueError(f"segments, of which there are {len(record['segments']):,}")
    segments = tuple(_parse_segment(value) for value in record["segments"])
    names = {segment.name for segment in segments}
    if len(names) < len(segments):
        raise ValueError("segments, one of which is named twice")
    upcoming = {"segment": record["appended"], "compacted": record["generation"]}
    for name in names:
        if OWN.match(f"{name}.") and int(name.partition("-")[2]) > upcoming[name.partition("-")[0]]:
            raise ValueError(f"segments: {name} is to come yet")  # and would be written over
    dropped = tuple(record["dropped"])
    if not all(_is_name(name) and name not in names for name in dropped):
        raise ValueError("dropped segments")
    manifest = Manifest(
        shared={key: record[key] for key in SHARED if key in record},
        segments=segments,
        generation=record["generation"],
        appended=record["appended"],
        dropped=dropped,
    )
    if manifest.rows != record["rows"]:
        raise ValueError("rows")
    return manifest


def _parse_segment(value: Any) -> Segment:
    kinds = {"name": str, "rows": int, "deleted": str}
    if not isinstance(value, dict) or any(type(value.get(k)) is not t for k, t in kinds.items()):
        raise ValueError("segments")
    if not _is_name(value["name"]) or not 0 < value["rows"] <= MOST_ROWS:
        raise ValueError("segments' names and rows")
    deleted = _parse_runs(value["deleted"])
    segment = Segment(value["name"], value["rows"], deleted)
    in_order = (deleted[:, 0] < deleted[:, 1]).all() and (deleted[1:, 0] > deleted[:-1, 1]).all()
    if not in_order or deleted[-1:, 1].max(initial=0) > segment.rows or not segment.left:
        raise ValueError("deleted rows")
    return segment


def _parse_runs(text: str) -> Rows:
    """Runs (R, 2) of a text such as `3,7-9`.

    >>> _parse_runs("3,7-9").tolist()
    [[3, 4], [7, 10]]
    """
    runs = []
    for run in text.split(",") if text else ():
        first, _, last = run.partition("-")
        if not all(re.fullmatch("[0-9]{1,15}", each) for each in (first, last or first)):
            raise ValueError("deleted rows")
        runs.append((int(first), int(last or first) + 1))
    return np.array(runs, np.int64).reshape(-1, 2)


def _shared(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in SHARED if key in record}


def _segment(name: str, record: dict[str, Any]) -> Segment:
    return Segment(name, record["rows"], np.empty((0, 2), np.int64))


def _write(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, and remove the files of the segments that it drops."""
    record = manifest.to_dict()
    if len(manifest.segments) > MOST_SEGMENTS:
        raise DataError(
            f"gallery '{folder}' has {MOST_SEGMENTS:,} segments; `airnet gallery compact {folder}` "
            "first"
        )
    write_json(folder / MANIFEST, record)
    for name in manifest.dropped:
        _remove(folder, name)


SUFFIXES = (".npy", ".csv", ".json")
"""Of a segment's files."""


def _remove(folder: Path, name: str) -> None:
    """Remove a segment's files, those of one that is being written too."""
    file = _file(folder, name)
    ended = [file.with_name(f"{name}{suffix}") for suffix in SUFFIXES]
    for each in (*ended, file.with_name(f".{name}.npy.part"), gallery_files(file)[-1]):
        with contextlib.suppress(OSError):  # open elsewhere, on Windows: the next writer's work
            each.unlink(missing_ok=True)


OWN = re.compile(r"\.{0,2}((?:segment|compacted)-[0-9]{6,})\.")


def _remove_leftovers(folder: Path, manifest: Manifest | None) -> None:
    """Remove what killed jobs left behind, but for an append that was not finished."""
    remove_parts(folder, MANIFEST)
    upcoming = next_segment(folder, manifest)
    for file in gallery_files(upcoming):
        remove_parts(folder, file.name)
    for name in manifest.dropped if manifest else ():
        _remove(folder, name)
    named = {segment.name for segment in manifest.segments} if manifest else set()
    for file in folder.iterdir():
        found = OWN.match(file.name)
        if found is None or found[1] == upcoming.stem:
            continue
        is_job = file.name.startswith(".")
        if is_job or (found[1].startswith("compacted-") and found[1] not in named):
            with contextlib.suppress(OSError):
                file.unlink()


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _is_name(name: object) -> bool:
    """Whether it can be a segment's: of files in the folder, none of which is the manifest."""
    is_plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name)
    return bool(is_plain) and name != Path(MANIFEST).stem


def _short(value: object) -> str:
    text = json.dumps(value)
    return text[1:13] if len(text) == 66 else text[:100]
