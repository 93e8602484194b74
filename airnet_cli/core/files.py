"""Writing files so that a killed process leaves the old file or the new one, never a half.

And holding a folder or an output, so that two processes do not write there at once. What a killed
process left behind under a temporary name is removed by the next one that holds the place. And
reading JSON that anyone may have written.
"""

import contextlib
import csv
import functools
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from airnet_cli.errors import OutputError

LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON text; in memory the values of a hostile one take twenty times its size."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to it when the block ends well, removed otherwise.

    Raises:
        OutputError: the system refused to make, write or rename a file, in the block too.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner only
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except FileExistsError as error:
        raise OutputError(
            f"can't write '{path}': '{path.parent}' is a file, not a folder; choose another place"
        ) from error
    except OSError as error:
        raise OutputError(
            f"can't write '{path}': {error.strerror or error}; choose another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """As `replacing`, for files of one folder that belong together and must keep their names.

    They are written into a temporary folder beside them, and put into place in the order of
    `paths` when the block ends well; a kill between two of them leaves a mixture, which their
    reader has to notice.

    Raises:
        OutputError: the system refused.
    """
    last = paths[-1]
    folder: Path | None = None
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{last.name}.", suffix=PART, dir=last.parent))
        written = tuple(folder / path.name for path in paths)
        yield written
        for file in written:
            file.chmod(0o666 & ~_umask())
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        for file, path in zip(written, paths, strict=True):
            file.replace(path)
    except FileExistsError as error:
        raise OutputError(
            f"can't write '{last}': '{last.parent}' is a file, not a folder; choose another place"
        ) from error
    except OSError as error:
        raise OutputError(
            f"can't write '{last}': {error.strerror or error}; choose another place"
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def create(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet, whole or not at all; False where there is one already.

    Of several processes that try at once, on several machines too, one alone gets True. On a file
    system without hard links the last one of those wins, so they should write the same.

    Raises:
        OutputError: the system refused.
    """
    if path.exists():
        return False
    whole = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with replacing(whole) as temporary:
            temporary.write_bytes(content)
        try:
            path.hardlink_to(whole)
        except FileExistsError:
            return False
        except OSError:
            whole.replace(path)
        return True
    except OSError as error:
        raise OutputError(f"can't write '{path}': {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            whole.unlink(missing_ok=True)


PART = ".part"
"""How temporary names end: `.NAME.xxxxxxxx.part`."""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all.

    Bytes of file names that are no UTF-8 are written as in JSON and Python: `\\udcff`.

    Raises:
        OutputError: the system refused.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises:
        OutputError: the system refused.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows of a CSV table into a file that was opened with `newline=""`.

    A carriage return needs quotes, or else it ends the row for whoever reads it; Python's writer
    does not see to that where rows end with a line feed alone.
    """
    plain = csv.writer(file, lineterminator="\n")
    with_quotes = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        has_return = any(isinstance(cell, str | Path) and "\r" in str(cell) for cell in row)
        (with_quotes if has_return else plain).writerow(row)


def is_file(path: Path) -> bool:
    """Whether there is a file; False, not an OSError, for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False, not an OSError, for a name that no folder can have."""
    try:
        return path.is_dir()
    except OSError:
        return False


def why(error: OSError | OutputError) -> str:
    """What the system said, without the path.

    >>> why(PermissionError(13, "Permission denied", "a/b"))
    'Permission denied'
    """
    said = error.__cause__ if isinstance(error, OutputError) else error
    return str(getattr(said, "strerror", None) or said)


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what writing `name` in `folder` left behind when it was killed; whose holder may."""
    for left in folder.glob(f".{name}.????????{PART}"):  # as `mkstemp` names them
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Hold `folder` while the block runs; gives False where another holder has it.

    It leaves no file behind, and the system frees what a process held when it ends, however it
    ends. Windows, and file systems that know no locks, keep nobody out: True is given there.
    """
    if sys.platform == "win32":  # no lock on a folder
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # removed by its last holder
        yield False
        return
    with _closing(handle):
        yield _lock(handle, folder) == "ours"


@contextlib.contextmanager
def holding_output(path: Path) -> Iterator[bool]:
    """As `holding`, for one output in a folder that has others: by a file `.NAME.lock` beside it.

    The file is gone when the block ends. A killed process leaves it; that keeps nobody out.

    Raises:
        OutputError: the file can't be made.
    """
    if sys.platform == "win32":
        yield True
        return
    file = path.with_name(f".{path.name}.lock")
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(
                f"can't write '{path}': {error.strerror or error}; choose another place"
            ) from error
        with _closing(handle):
            state = _lock(handle, file)
            if state == "gone":
                continue
            try:
                yield state == "ours"
            finally:
                if state == "ours":  # while it is locked: whoever has it open finds that it is gone
                    file.unlink(missing_ok=True)
            return


def _lock(handle: int, path: Path) -> Literal["ours", "taken", "gone"]:
    """Lock what was opened at `path`; gone: its last holder removed it meanwhile."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:  # a file system without locks
        return "ours"
    try:
        return "ours" if os.path.samestat(path.stat(), os.fstat(handle)) else "gone"
    except FileNotFoundError:
        return "gone"


@contextlib.contextmanager
def _closing(handle: int) -> Iterator[None]:
    """Close `handle` at the end, here and in processes that were forked meanwhile."""
    _close_in_children()
    _open.add(handle)
    try:
        yield
    finally:
        if handle in _open:
            _open.remove(handle)
            os.close(handle)


_open: set[int] = set()
"""What this process may have locked."""


@functools.cache
def _close_in_children() -> None:
    """From now on, a forked process (one that reads images) closes what this one has locked.

    Or else it would go on holding it for the seconds that it lives on when this one is killed.
    """

    def close() -> None:
        for handle in _open:
            os.close(handle)
        _open.clear()

    os.register_at_fork(after_in_child=close)


def read_json(path: Path) -> Any:
    """The value of a JSON file that anyone may have written.

    Raises:
        OSError: it can't be read.
        ValueError: as for `parse_json`, or it is not UTF-8.
    """
    with path.open("rb") as file:
        return parse_json(file.read(LARGEST_JSON + 1))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from a file that anyone may have written.

    Raises:
        ValueError: it is no JSON, too large, or nested so deeply that Python gives up.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{len(text) / 2**20:,.0f} MiB of JSON, more than any that airnet writes")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


SEAL = "sha256"
"""The key of a record's own hash."""


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with a hash of its contents as a last key, so that a changed digit is noticed."""
    return {**record, SEAL: _digest(record)}


def is_sealed(record: dict[str, Any]) -> bool:
    """Whether a record is as it was when it was `sealed`.

    >>> is_sealed(sealed({"threshold": 0.61})), is_sealed({"threshold": 0.01, "sha256": "a5c1"})
    (True, False)
    """
    return record.get(SEAL) == _digest({key: record[key] for key in record if key != SEAL})


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
