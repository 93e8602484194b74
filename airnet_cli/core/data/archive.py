"""Zip archives from strangers: checked before anything is written, unpacked whole or not at all.

Refused: absolute paths, `..`, links and devices, two members of one name, encryption, methods of
packing that take much memory, and sizes that no set of images has (zip bombs, millions of members).
Hidden files and `__MACOSX` are left out.
"""

import io
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

MAX_BYTES = 64 * 2**30
"""Unpacked size of all members: MSMT17, the largest set in use, has about 3 GiB."""
MAX_MEMBERS = 1_000_000
"""Market-1501 with all its distractors has half of that; a million take a gigabyte of memory."""
MAX_LIST_BYTES = 256 * 2**20
"""Size of the list of members at the end of a zip, which is read whole."""
MAX_RATIO = 200
"""Unpacked to packed size of a member: images hardly shrink at all, tables by 20 to 50."""
RATIO_FROM_BYTES = 2**20
"""Members smaller than this may have any ratio, as long as all together keep to it."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
"""How members may be packed. LZMA is let out: a member can ask for 4 GB to unpack it."""


@contextmanager
def staged_folder(destination: Path, *, record: Path | None = None) -> Iterator[Path]:
    """Give an empty folder beside `destination` that takes its place when the block ends well.

    After an error the temporary folder is removed and an old `destination` stays as it was.
    `record` is the file that says what the old one holds: it goes when that goes, so that whenever
    this process is killed, no record is beside images that it does not mean.

    Raises:
        DataError: the folder can't be made or put in place.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
        # mkdtemp makes a private folder; images are as readable as their data root.
        stage.chmod(0o755)
    except OSError as error:
        raise DataError(
            f"can't write under {destination.parent}: {error.strerror or error}; "
            "make it writable or choose another --data-root"
        ) from error
    old = stage.with_name(f"{stage.name}.old")
    try:
        yield stage
        try:
            if destination.exists():
                destination.rename(old)
            if record is not None:
                record.unlink(missing_ok=True)
            stage.rename(destination)
        except OSError as error:
            raise DataError(
                f"can't put the new images at {destination}: {error.strerror or error}; "
                "close what uses that folder and try again"
            ) from error
    finally:
        if old.exists() and not destination.exists():
            old.rename(destination)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(stage, ignore_errors=True)


def remove_stages(destination: Path) -> None:
    """Remove what `staged_folder` left beside `destination` when it was killed."""
    for left in destination.parent.glob(f".{destination.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def extract_zip(
    archive: Path,
    folder: Path,
    *,
    keep: Callable[[PurePosixPath], bool] = lambda path: True,
    progress: Progress = silent,
) -> int:
    """Unpack the files that `keep` wants into the existing, empty `folder`; return how many.

    Every member is checked, wanted or not.

    Raises:
        DataError: it is not a zip, is damaged, is not safe to unpack, or does not fit on the disk.
    """
    try:
        with _Reader(io.FileIO(archive)) as file, _Zip(file) as opened:
            members = _checked_members(archive, opened, keep)
            total = sum(info.file_size for info, _ in members)
            free = shutil.disk_usage(folder).free
            if total > free:
                raise DataError(
                    f"{archive} unpacks to {_gib(total)}, and {folder.parent} has "
                    f"{_gib(free)} free; make room or choose another --data-root"
                )
            for done, (info, path) in enumerate(members):
                if done % 100 == 0:
                    progress("unpacking", done, len(members), "files")
                _extract_member(opened, info, folder / path)
            progress("unpacking", len(members), len(members), "files")
    except DataError:
        raise
    except _TooManyError as error:
        raise _refused(archive, str(error)) from None
    except (NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive} can't be unpacked: {error}; unpack it yourself and give the folder"
        ) from error
    except OSError as error:
        raise DataError(
            f"can't unpack {archive}: {error.strerror or error}; "
            f"check the file and the space under {folder.parent}"
        ) from error
    # zipfile raises nearly anything on broken bytes (zlib.error, struct.error, ValueError, ...).
    except Exception as error:
        raise DataError(f"{archive} {_what_else(archive)} ({error}); download it again") from error
    return len(members)


class _TooManyError(Exception):
    """More members than any set of images has; the message says how many."""


class _Reader(io.BufferedReader):
    """Reads an archive; not all of it at once, however long it says that its list is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LIST_BYTES:
            raise _TooManyError(f"its list of members has {size / 2**20:,.0f} MiB")
        return super().read(size)


class _Members(list[zipfile.ZipInfo]):
    """A list of members that does not outgrow memory."""

    def append(self, member: zipfile.ZipInfo, /) -> None:
        if len(self) == MAX_MEMBERS:
            raise _TooManyError(f"it has more than {MAX_MEMBERS:,} members")
        super().append(member)


class _Zip(zipfile.ZipFile):
    """A zip whose list of members is bounded while it is read, not afterwards."""

    @property
    def filelist(self) -> list[zipfile.ZipInfo]:
        """What zipfile appends each member to."""
        return self._members

    @filelist.setter
    def filelist(self, members: list[zipfile.ZipInfo]) -> None:
        self._members = _Members(members)


def _checked_members(
    archive: Path, opened: zipfile.ZipFile, keep: Callable[[PurePosixPath], bool]
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Check all members; give the wanted files with their safe relative paths."""
    wanted: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    seen: set[str] = set()
    total = 0
    archive_size = archive.stat().st_size
    for info in opened.infolist():
        path = _safe_path(archive, info)
        # Names that differ in case or accents' spelling only are one file on other systems.
        key = unicodedata.normalize("NFC", str(path)).casefold()
        if not info.is_dir():
            if key in seen:
                raise _refused(archive, f"it has {info.filename!r} twice")
            seen.add(key)
        total += info.file_size
        if total > MAX_BYTES:
            raise _refused(archive, f"it unpacks to more than {_gib(MAX_BYTES)}")
        if info.file_size > RATIO_FROM_BYTES and info.file_size > MAX_RATIO * max(
            info.compress_size, 1
        ):
            raise _refused(
                archive,
                f"{info.filename!r} grows from {info.compress_size:,} bytes to {info.file_size:,}",
            )
        if total > RATIO_FROM_BYTES and total > MAX_RATIO * archive_size:
            raise _refused(archive, f"it grows from {archive_size:,} bytes to {total:,} and more")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if not info.is_dir() and not hidden and keep(path):
            wanted.append((info, path))
    return wanted


def _safe_path(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    """Give the member's relative path; some Windows tools write backslashes."""
    name = info.filename.replace("\\", "/")
    path = PurePosixPath(name)
    drive = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or drive or ".." in path.parts or not path.parts or "\0" in name:
        raise _refused(archive, f"{info.filename!r} leads out of the folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(archive, f"{info.filename!r} is a link or a device")
    if info.flag_bits & 1:
        raise _refused(archive, f"{info.filename!r} is encrypted")
    if info.compress_type not in METHODS:
        raise _refused(archive, f"{info.filename!r} is packed by method {info.compress_type}")
    return path


def _extract_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Write one file; the header's size is not taken on trust."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # "x": a file that is already there is never written through.
    with opened.open(info) as source, target.open("xb") as file:
        left = info.file_size
        while chunk := source.read(min(2**20, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise zipfile.BadZipFile(f"{info.filename!r} is longer than it says")
            file.write(chunk)


def _refused(archive: Path, why: str) -> DataError:
    """Build the error for an archive that is not safe."""
    return DataError(
        f"{archive} is not safe to unpack: {why}; get the archive from its official source, "
        "or unpack it yourself and give the folder"
    )


def _what_else(archive: Path) -> str:
    """Say what a file that is no good zip looks like: a saved web page is the usual case."""
    try:
        with archive.open("rb") as file:
            head = file.read(512).lstrip().lower()
    except OSError:
        return "can't be read"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not a zip archive"
    if head.startswith(b"pk"):
        return "is a damaged zip archive"
    return "is not a zip archive"


def _gib(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 2**30:.1f} GiB"
