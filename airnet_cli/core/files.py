"""Reading and writing files: replace them whole, lock them, map matrices.

A file is written under a temporary name, `.NAME.xxxxxxxx.part`, and renamed. A killed process
leaves the old file or the new one; the next process that locks the place removes the rest.
"""

import contextlib
import csv
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt

from airnet_cli.errors import OutputError

PART = ".part"
"""The end of temporary names."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`; renamed to it if the block succeeds, removed otherwise.

    Raises:
        OutputError: the system refused to create, write or rename a file, in the block too.
    """
    temporary = _temporary(path)
    try:
        with _reporting(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not tempfile: its files are private, and only `os.umask` tells what to change them to.
            temporary.open("xb").close()
            yield temporary
            _sync(temporary)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Like `replacing`, for files of one folder that belong together and must keep their names.

    They are written into a temporary folder next to them and renamed in the order of `paths`. A
    kill between two renames leaves a mixture, which the reader has to detect.

    Raises:
        OutputError: the system refused.
    """
    folder = _temporary(paths[-1])
    try:
        with _reporting(paths[-1]):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            written = tuple(folder / path.name for path in paths)
            yield written
            for file in written:
                _sync(file)
            for file, path in zip(written, paths, strict=True):
                file.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def create(path: Path, content: bytes) -> bool:
    """Write a file that does not exist yet, completely or not at all; False if it exists.

    Of several processes that try at once, also on several machines, only one gets True. On a file
    system without hard links the last one wins, so they should write the same.

    Raises:
        OutputError: the system refused.
    """
    if path.exists():
        return False
    temporary = _temporary(path)
    try:
        with _reporting(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            _sync(temporary)
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
            except OSError:
                temporary.replace(path)
            return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turn an error of the system into an `OutputError` about `path`."""
    try:
        yield
    except FileExistsError as error:
        raise OutputError(
            f"can't write '{path}': '{path.parent}' is a file, not a folder; choose another place"
        ) from error
    except OSError as error:
        raise OutputError(
            f"can't write '{path}': {error.strerror or error}; choose another place"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8.

    Bytes of file names that are not UTF-8 are written as in JSON and Python: `\\udcff`.

    Raises:
        OutputError: the system refused.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON.

    Raises:
        OutputError: the system refused.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows of a CSV table into a file that was opened with `newline=""`.

    Cells with a carriage return are quoted, since readers end the row there. Python's writer does
    not do that if rows end with a line feed alone.
    """
    plain = csv.writer(file, lineterminator="\n")
    with_quotes = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        has_return = any(isinstance(cell, str | Path) and "\r" in str(cell) for cell in row)
        (with_quotes if has_return else plain).writerow(row)


def map_array(path: Path, *, mode: Literal["r", "c"] = "r") -> npt.NDArray[Any]:
    """The array of a `.npy` file, mapped into memory: read-only, or with private changes ("c").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a complete `.npy` file of plain values; the message says why.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)  # np.load would also open a .npz
    try:
        array: np.memmap[Any, Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, OSError):
        raise
    except Exception as error:  # Python's parser, on a damaged header
        raise ValueError(f"its header is damaged: {error or type(error).__name__}") from None
    if path.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"its size does not fit its shape {array.shape} of {array.dtype}")
    return array


def is_file(path: Path) -> bool:
    """Whether `path` is a file; False, not an OSError, for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False, not an OSError, for a name that no folder can have."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises


def is_web_page(start: bytes) -> bool:
    """Whether a file begins like HTML: a login page, saved in place of an archive, is common."""
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html"))


def reason_of(error: OSError | OutputError) -> str:
    """What the system said, without the path.

    >>> reason_of(PermissionError(13, "Permission denied", "a/b"))
    'Permission denied'
    """
    said = error.__cause__ if isinstance(error, OutputError) else error
    return str(getattr(said, "strerror", None) or said)


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove the temporary files that killed writers of `name` left in a locked `folder`."""
    for left in folder.glob(f".{name}.????????{PART}"):
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def lock_folder(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Lock `folder` by a file `.lock` in it while the block runs; False if it is locked already.

    A missing folder is created. When the process ends, however it ends, its locks are free.

    Raises:
        OutputError: the file system can't lock, or the file can't be created.
    """
    return _lock(folder / ".lock", folder)


def lock_output(path: Path) -> contextlib.AbstractContextManager[bool]:
    """Like `lock_folder`, for one file of a folder: by a file `.NAME.lock` next to it."""
    return _lock(path.with_name(f".{path.name}.lock"), path)


@contextlib.contextmanager
def _lock(file: Path, place: Path) -> Iterator[bool]:
    from filelock import FileLock, Timeout  # takes a tenth of a second, and few commands lock

    with _reporting(place):
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OutputError(
            f"can't lock '{place}': {error.strerror or error}",
            "Without a lock, two commands could overwrite each other's files.",
            "Write to a local disk, and copy the result.",
        ) from error
    try:
        yield True
    finally:
        # While it is locked: a process that has just opened this file finds that it was removed.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it can't be read.
        ValueError: it is not JSON in UTF-8.
    """
    return json.loads(path.read_bytes())
