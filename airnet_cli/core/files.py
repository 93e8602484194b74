"""Writing files so that a killed process leaves the old file or the new one, never a half.

And holding a folder, so that two processes do not write into it at once.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to it when the block ends well, removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner only
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Hold `folder` while the block runs; gives False where another holder has it.

    It leaves no file behind, and the system frees what a process held when it ends, however it
    ends. Windows, and file systems that know no locks, keep nobody out: True is given there.
    """
    if sys.platform == "win32":  # no lock on a folder
        yield True
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # removed by its last holder
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another folder may have the name by now: this one was removed by its last holder.
            is_held = folder.exists() and folder.stat().st_ino == os.fstat(handle).st_ino
        except BlockingIOError:
            is_held = False
        except OSError:
            is_held = True
        try:
            yield is_held
        finally:
            # Not by closing alone: a process that was forked meanwhile has the handle too.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
