"""The gallery on disk: embeddings that outlive the process that computed them. Three files, one
stem:

    gallery.npy     (N, D) float32 or float16, C order, plain NumPy: any tool can map it into memory
    gallery.csv     a header and N rows: `path` (relative to this folder, with forward slashes),
                    then any columns that were known, such as person_id and camera_id
    gallery.json    what made them: the model's fingerprint, head slices, preprocessing, what was
                    left out. Written last: where it is, the gallery is whole

`GalleryWriter` streams: rows go into a memory map under a temporary name, and a job that was
stopped, or killed, goes on where it was. No torch here.
"""

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import (
    is_file,
    map_array,
    read_json,
    reason_of,
    replacing,
    write_json,
    write_rows,
)
from airnet_cli.core.joined import JoinedRows
from airnet_cli.errors import DataError, OutputError

if TYPE_CHECKING:
    from airnet_cli.core.milvus import MilvusPlace

FORMAT = "airnet-gallery"
FORMAT_VERSION = 1

DTypeName = Literal["float32", "float16"]
DTYPES: dict[str, npt.DTypeLike] = {"float32": np.float32, "float16": np.float16}

AGAIN = "write it again with `airnet embed`"

MUST_AGREE = (
    "fingerprint",
    "heads",
    "dimensions",
    "flip",
    "normalize_heads",
    "preprocessing",
    "precision",
    "dtype",
)
"""What rows that are compared with one query have in common; causes before what follows."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """A gallery as read from disk; the embeddings stay there until they are used.

    One file, or a folder of segments (`segments.py`); or rows of a collection in Milvus, which are
    in memory.
    """

    path: "Path | MilvusPlace"
    """Of the .npy file or the folder of segments, or where the collection is."""
    embeddings: npt.NDArray[np.floating[Any]] | JoinedRows
    """(N, D) float32 or float16, mapped into memory, read-only."""
    columns: dict[str, tuple[str, ...]]
    """The table: N texts for `path` and for each further column."""
    heads: dict[str, slice]
    """Each head's part of an embedding."""
    record: dict[str, Any]
    """The JSON file."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the checkpoint that made the embeddings."""
        return str(self.record["fingerprint"])

    @property
    def normalize_heads(self) -> bool:
        """Whether each head's part was given length 1."""
        return bool(self.record["normalize_heads"])

    @property
    def flip(self) -> bool:
        """Whether image and mirror image were averaged."""
        return bool(self.record["flip"])

    def image_path(self, row: int) -> Path:
        """Where the image of `row` lies, as seen from the current folder.

        Of one in object storage it is no file's: `image_name` has its URL.
        """
        return Path(self.image_name(row))

    def image_name(self, row: int) -> str:
        """As `image_path`, or the URL of an image in object storage."""
        image = self.columns["path"][row]
        if "://" in image or not isinstance(self.path, Path):
            return image
        folder = self.path if "segments" in self.record else self.path.parent
        return os.path.normpath(folder / image)


def read_gallery(path: Path) -> Gallery:
    """Read and check a gallery; `path` is that of the .npy file.

    Raises:
        DataError: a file of the three is missing or broken, or they do not belong together.
    """
    if path.suffix != ".npy":
        raise DataError(f"'{path}' is not the .npy file of a gallery; give that")
    if not is_file(path):
        raise DataError(
            f"gallery '{path}' does not exist; `airnet embed IMAGES -o {path}` makes it"
        )
    record, heads = read_record(path)
    embeddings = _map(path, record)
    columns = read_table(path.with_suffix(".csv"), record)
    return Gallery(path=path, embeddings=embeddings, columns=columns, heads=heads, record=record)


def read_record(path: Path) -> tuple[dict[str, Any], dict[str, slice]]:
    """The record beside the gallery `path` (its .npy file), and its heads.

    Raises:
        DataError: it is missing or broken.
    """
    side = path.with_suffix(".json")
    try:
        record = read_json(side)
    except FileNotFoundError:
        raise DataError(
            f"gallery '{path}' has no {side.name} beside it, which is written last: it is not "
            "whole, or not from airnet; finish it with `airnet embed --resume`, or write it again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"'{side}' can't be read: {_one_line(error)}; {AGAIN}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"'{side}' does not describe a gallery of airnet; {AGAIN}")
    if record.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"'{side}' has format version {record.get('format_version')}, this airnet reads "
            f"{FORMAT_VERSION}; update airnet, or write the gallery again"
        )
    kinds = {
        "rows": int,
        "dimensions": int,
        "dtype": str,
        "fingerprint": str,
        "heads": dict,
        "normalize_heads": bool,
        "flip": bool,
    }
    # `type`, since True is an integer to isinstance.
    wrong = [key for key, kind in kinds.items() if type(record.get(key)) is not kind]
    if wrong or record["dtype"] not in DTYPES:
        raise DataError(f"'{side}' lacks or garbles {', '.join(wrong) or 'dtype'}; {AGAIN}")
    heads = heads_of(record)
    if heads is None:
        raise DataError(
            f"'{side}' has heads that do not fill {record['dimensions']} dimensions; {AGAIN}"
        )
    return record, heads


def heads_of(record: Mapping[str, Any]) -> dict[str, slice] | None:
    """The heads that a record names; None where they do not fill its `dimensions`, in order."""
    heads: dict[str, slice] = {}
    end = 0
    for name, part in record["heads"].items():
        is_pair = isinstance(part, list) and [type(each) for each in part] == [int, int]
        if not is_pair or part[0] != end or part[1] <= end:
            return None
        heads[name] = slice(*part)
        end = part[1]
    return heads if heads and end == record["dimensions"] else None


def _map(path: Path, record: Mapping[str, Any]) -> npt.NDArray[np.floating[Any]]:
    try:
        embeddings = map_array(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"gallery '{path}' can't be read as a NumPy array ({_one_line(error)}); {AGAIN}"
        ) from None
    shape = (record["rows"], record["dimensions"])
    if embeddings.shape != shape or embeddings.dtype != DTYPES[record["dtype"]]:
        raise DataError(
            f"gallery '{path}' holds {embeddings.dtype} of the shape {embeddings.shape}; its .json "
            f"says {record['dtype']} of {shape}: they are of different galleries; {AGAIN}"
        )
    if not embeddings.flags.c_contiguous:
        raise DataError(f"gallery '{path}' is in Fortran order; save it in C order, row after row")
    return embeddings


def read_table(table: Path, record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The columns of a gallery's .csv file, in step with its record.

    Raises:
        DataError: it is missing, broken, or another than the one of the record.
    """
    try:
        content = table.read_bytes()
        lines = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        # One more than there should be: it tells of more, and takes no memory for them.
        rows = list(itertools.islice(lines, record["rows"] + 2))
    except FileNotFoundError:
        raise DataError(f"there is no {table}, the gallery's list of images; {AGAIN}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{table}' can't be read: {_one_line(error)}; {AGAIN}") from None
    if len(rows) - 1 != record["rows"]:
        more = " or more" if len(rows) - 1 > record["rows"] else ""
        raise DataError(
            f"'{table}' has {max(0, len(rows) - 1)}{more} rows under its header and the gallery "
            f"has {record['rows']}; {AGAIN}"
        )
    if not content.endswith(b"\n"):  # the last cell may have lost digits
        raise DataError(f"'{table}' is cut off, its last line has no end; {AGAIN}")
    header = rows[0]
    is_table = header[:1] == ["path"] and len(set(header)) == len(header)
    if not is_table or any(len(row) != len(header) for row in rows) or b"\0" in content:
        raise DataError(
            f"'{table}' is no table of a gallery: it must name different columns, path first, and "
            f"each line must have as many cells, without NUL; {AGAIN}"
        )
    return {name: tuple(row[i] for row in rows[1:]) for i, name in enumerate(header)}


@dataclass(frozen=True)
class Listing:
    """The images that a gallery is to hold, in order, and what is known of them."""

    paths: tuple[str, ...]
    """N different ones, as they are written into the CSV: relative to the gallery's folder."""
    columns: dict[str, tuple[str, ...]]
    """Further columns of N texts, without `path`."""

    def digest(self) -> str:
        """SHA-256 of paths and columns: whether a stopped job was about the same images."""
        digest = hashlib.sha256(json.dumps(list(self.columns)).encode())
        for row in zip(self.paths, *self.columns.values(), strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def npy_header(rows: int, dimensions: int, dtype: npt.DTypeLike) -> bytes:
    """What NumPy writes before a matrix: of the same length for any number of rows."""
    file = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (rows, dimensions),
    }
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def npy_bytes(rows: int, dimensions: int, dtype: npt.DTypeLike) -> int:
    """The size of the .npy file of a matrix."""
    header = npy_header(rows, dimensions, dtype)
    return len(header) + rows * dimensions * np.dtype(dtype).itemsize


def images_of_stopped_job(path: Path) -> int:
    """How many images a job that was to write the gallery `path` had done when it was stopped."""
    try:
        return int(json.loads(_journal_of(path).read_text(encoding="utf-8"))["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def gallery_files(path: Path) -> tuple[Path, ...]:
    """The files of a gallery `path`, and the journal of one that is being written."""
    return path, path.with_suffix(".csv"), path.with_suffix(".json"), _journal_of(path)


SYNC_SECONDS = 5.0
SYNC_BYTES = 64 * 2**20
"""How much work a kill may cost, and how much of the file is in memory at a time."""


class GalleryWriter:
    """Writes a gallery as its rows come, in order; one that was stopped can be gone on with.

    As a context manager, whatever ends the block (Ctrl-C as well) leaves what was done in
    `.NAME.npy.part` and `.NAME.part.json`, from which `resume=True` goes on; `finish` turns them
    into the gallery. Every few seconds the rows are flushed to disk and the mapping is opened
    anew, so that memory does not grow with them.
    """

    def __init__(
        self,
        path: Path,
        listing: Listing,
        *,
        dimensions: int,
        dtype: DTypeName,
        settings: Mapping[str, Any],
        resume: bool,
        folder: Path | None = None,
    ) -> None:
        """Begin, or go on with, the gallery `path` (its .npy file).

        Args:
            path: where the gallery is to be; an old one stays until `finish`.
            listing: the images, at least one.
            dimensions: D.
            dtype: of the file.
            settings: JSON values; where they differ, rows would: then a job can't be gone on with.
            resume: go on with a stopped job, if there is one.
            folder: what the listing's paths are relative to; None: the folder of `path`.

        Raises:
            DataError: no room or no permission; `resume` of a job with other images or settings,
                or of a whole gallery.
        """
        self.path = path
        self._listing = listing
        self._folder = path.parent if folder is None else folder
        self._shape = (len(listing.paths), dimensions)
        self._dtype = np.dtype(DTYPES[dtype])
        self._part = path.with_name(f".{path.name}.part")
        self._journal = _journal_of(path)
        self._record = path.with_suffix(".json")
        self._job = {  # in the order in which differences are told: causes first
            **json.loads(json.dumps(settings)),
            "dimensions": dimensions,
            "dtype": dtype,
            "images": listing.digest(),
        }
        self._state = _State()
        self._rows: npt.NDArray[Any] | None = None
        try:
            if not (resume and self._go_on()):
                self._begin()
        except (OSError, OutputError) as error:
            raise DataError(
                f"can't write the gallery '{path}': {reason_of(error)}; it takes "
                f"{self._bytes(self._shape[0]) / 2**20:,.0f} MiB: make room, or choose another "
                "place with -o"
            ) from None
        self._synced = self._state
        self._last_sync = time.monotonic()

    @property
    def done(self) -> int:
        """Images that are finished, bad ones included."""
        return self._state.done

    @property
    def rows(self) -> int:
        """Rows that are written."""
        return self._state.rows

    @property
    def skipped(self) -> tuple[dict[str, str], ...]:
        """Path and reason of each bad image so far."""
        return self._state.skipped

    def __enter__(self) -> "GalleryWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._journal.exists():
            return  # finished
        if not self.done:
            self._rows = None
            self._part.unlink(missing_ok=True)
            self._journal.unlink()
        elif self._rows is not None:
            # What ends the block is worth more than the seconds since the last sync.
            with contextlib.suppress(OSError, OutputError):
                self.sync()

    def append(
        self,
        indices: Sequence[int],
        embeddings: npt.NDArray[np.floating[Any]],
        bad: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Add the next images: rows for `indices`, none for those that are `bad` (with reasons).

        Raises:
            DataError: an embedding that the file's type can't hold, or a disk that takes no more.
        """
        with np.errstate(over="ignore"):  # what overflows is refused below
            rows = embeddings.astype(self._dtype, copy=False)  # (B, D)
        is_finite = np.isfinite(rows).all(axis=1)
        if not is_finite.all():
            index = indices[int(np.argmin(is_finite))]
            raise DataError(
                f"the embedding of '{self._listing.paths[index]}' is not finite in {self._dtype}; "
                "use --dtype float32 --precision fp32, or else the model is broken"
            )
        state = self._state
        count = len(indices) + len(bad)
        paths = self._listing.paths
        assert self._rows is not None, "nothing is added to a finished gallery"
        self._rows[state.rows : state.rows + len(rows)] = rows
        # One assignment at the end: an interrupt leaves all of the batch or nothing.
        self._state = _State(
            done=state.done + count,
            rows=state.rows + len(rows),
            skipped=state.skipped
            + tuple({"path": paths[index], "reason": reason} for index, reason in bad),
            files=self._digest_files(state.files, range(state.done, state.done + count)),
        )
        unsynced = self._bytes(self.rows - self._synced.rows)
        if unsynced >= SYNC_BYTES or time.monotonic() - self._last_sync >= SYNC_SECONDS:
            try:
                self.sync()
            except (OSError, OutputError) as error:
                raise self._cant_write(error) from None

    def sync(self) -> None:
        """Bring what was done to disk: rows first, then the journal that counts them."""
        if isinstance(self._rows, np.memmap):
            self._rows.flush()
        self._rows = np.lib.format.open_memmap(self._part, mode="r+")
        self._write_journal()
        self._synced = self._state
        self._last_sync = time.monotonic()

    def finish(
        self,
        record: Mapping[str, Any],
        *,
        published: Callable[[dict[str, Any]], None] = lambda _: None,
        may_be_empty: bool = False,
    ) -> dict[str, Any]:
        """Put the three files into their places; the complete record, as in the .json file.

        Args:
            record: what made the rows.
            published: called with the complete record when the files are in their places, and the
                job can still be gone on with if that fails.
            may_be_empty: whether a gallery without rows is one.

        Raises:
            DataError: no image could be read, unless it `may_be_empty`, or the files can't be
                written.
        """
        assert self.done == self._shape[0], "a gallery is finished when all images are done"
        if not self.rows and not may_be_empty:
            first = self.skipped[0]
            raise DataError(
                f"none of {self.done:,} images could be read; the first: '{first['path']}', "
                f"{first['reason']}"
            )
        try:
            self.sync()
            self._rows = None
            self._cut()
            self._write_journal(finished=True)
            with replacing(self.path.with_suffix(".csv")) as table:
                self._write_table(table)
                # Until the new record stands there is none: never one that vouches for other files.
                self._record.unlink(missing_ok=True)
                self._part.replace(self.path)
            complete = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "rows": self.rows,
                "dimensions": self._shape[1],
                "dtype": self._dtype.name,
                **record,
                "skipped": self.skipped,
            }
            # As JSON has it: the record is the same when it is read.
            read: dict[str, Any] = json.loads(json.dumps(complete))
            write_json(self._record, read)
            published(read)
            self._journal.unlink()
        except (OSError, OutputError) as error:
            raise self._cant_write(error) from None
        return read

    def _write_journal(self, *, finished: bool = False) -> None:
        """Write how far the job is, and whether the matrix is finished."""
        state = self._state
        journal = {
            "job": self._job,
            "done": state.done,
            "rows": state.rows,
            "skipped": state.skipped,
            "files": state.files,
            "finished": finished,
        }
        write_json(self._journal, journal)

    def _cant_write(self, error: OSError | OutputError) -> DataError:
        return DataError(
            f"can't write the gallery '{self.path}': {reason_of(error)}; "
            "its rows are kept: go on with --resume"
        )

    def _begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal.unlink(missing_ok=True)
        try:
            with self._part.open("wb") as file:
                file.write(self._header(self._shape[0]))
                file.truncate(self._bytes(self._shape[0]))
                file.flush()
                _reserve(file.fileno(), self._bytes(self._shape[0]))
        except (OSError, OutputError):
            self._part.unlink(missing_ok=True)
            raise
        self._last_sync = time.monotonic()
        self.sync()

    def _go_on(self) -> bool:
        """Take up the job of the journal; False where there is none."""
        again = "start again without --resume"
        try:
            journal = json.loads(self._journal.read_text(encoding="utf-8"))
            job = journal["job"]
            state = _State(
                journal["done"], journal["rows"], tuple(journal["skipped"]), journal["files"]
            )
        except FileNotFoundError:
            if self._record.exists():
                raise DataError(f"gallery '{self.path}' is whole; {again}") from None
            return False
        except (ValueError, KeyError, TypeError):
            raise DataError(f"'{self._journal}' can't be read; {again}") from None
        for name in self._job | job:
            if self._job.get(name) != job.get(name):
                raise DataError(
                    f"the stopped job of '{self.path}' differs in {name}: it has "
                    f"{_short(job.get(name))}, this command {_short(self._job.get(name))}; "
                    f"repeat the command as it was, or {again}"
                )
        if state.files != self._digest_files(_State().files, range(state.done)):
            raise DataError(
                f"of the {state.done:,} images that were embedded for '{self.path}', some were "
                f"changed since; {again}"
            )
        # If the matrix was finished, the job was killed while it put files in place.
        is_placed = journal.get("finished") and not self._part.exists() and is_file(self.path)
        if is_placed and self.path.stat().st_size == self._bytes(state.rows):
            self._record.unlink(missing_ok=True)
            self.path.replace(self._part)
        if not self._part.exists():
            raise DataError(f"'{self._part}' is gone; {again}")
        self._state = state
        if self._part.stat().st_size == self._bytes(self._shape[0]):
            self._rows = np.lib.format.open_memmap(self._part, mode="r+")
        elif state.done < self._shape[0]:
            raise DataError(f"'{self._part}' is cut off; {again}")
        return True

    def _digest_files(self, digest: str, indices: range) -> str:
        """A digest of sizes and times of the images `indices`, carried on from `digest`."""
        for index in indices:
            try:
                stat = (self._folder / self._listing.paths[index]).stat()
                seen = f"{digest} {stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                seen = f"{digest} missing"
            digest = hashlib.sha256(seen.encode()).hexdigest()
        return digest

    def _header(self, rows: int) -> bytes:
        return npy_header(rows, self._shape[1], self._dtype)

    def _bytes(self, rows: int) -> int:
        return npy_bytes(rows, self._shape[1], self._dtype)

    def _cut(self) -> None:
        """Leave out the room for images that could not be read."""
        with self._part.open("r+b") as file:
            file.write(self._header(self.rows))
            file.truncate(self._bytes(self.rows))
            os.fsync(file.fileno())

    def _write_table(self, table: Path) -> None:
        """Write the CSV of the images that have a row."""
        skipped = {image["path"] for image in self.skipped}
        listing = self._listing
        with table.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, [["path", *listing.columns]])
            write_rows(
                file,
                (
                    row
                    for row in zip(listing.paths, *listing.columns.values(), strict=True)
                    if row[0] not in skipped
                ),
            )


@dataclass(frozen=True)
class _State:
    """How far a job is."""

    done: int = 0
    rows: int = 0
    skipped: tuple[dict[str, str], ...] = ()
    files: str = ""
    """Digest of sizes and times of the images that are done."""


def _reserve(file: int, size: int) -> None:
    """Take `size` bytes of the disk now: a full disk met through a memory map kills a process."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # not on this disk
            raise


def _journal_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.part.json")


def _short(value: object) -> str:
    """A value for a message; of a SHA-256, its beginning."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
