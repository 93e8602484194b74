"""Zip archives: checked before anything is written, unpacked completely or not at all.

Refused: paths that lead out of the folder, links and devices, and archives that expand more than
any data set does. Hidden files and `__MACOSX` are left out.
"""

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from airnet_cli.core.files import is_web_page
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

MAX_RATIO = 200
"""Unpacked to packed size: images hardly shrink at all, tables by 20 to 50."""
RATIO_FROM_BYTES = 2**20
"""Archives that unpack to less may have any ratio."""


@contextmanager
def staged_folder(destination: Path, *, record: Path | None = None) -> Iterator[Path]:
    """Give an empty folder next to `destination` that replaces it if the block succeeds.

    After an error the temporary folder is removed and an old `destination` stays as it was.
    `record` is the file that describes the old one. It is removed together with it, so that a kill
    at any moment leaves no record next to images that it does not describe.

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
    """Remove what a killed `staged_folder` left next to `destination`."""
    for left in destination.parent.glob(f".{destination.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def extract_zip(
    archive: Path,
    folder: Path,
    *,
    keep: Callable[[PurePosixPath], bool] = lambda path: True,
    progress: Progress = silent,
) -> int:
    """Unpack the files that `keep` accepts into the existing, empty `folder`; return how many.

    Every member is checked, accepted or not.

    Raises:
        DataError: it is not a zip, is damaged, is not safe to unpack, or does not fit on the disk.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            _check_size(archive, opened, folder)
            members = [(info, _safe_path(archive, info)) for info in opened.infolist()]
            wanted = [
                (info, path)
                for info, path in members
                if not info.is_dir()
                and not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
                and keep(path)
            ]
            for done, (info, path) in enumerate(wanted):
                if done % 100 == 0:
                    progress("unpacking", done, len(wanted), "files")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                # "x": a second member of that name does not overwrite the first.
                with opened.open(info) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 2**20)
            progress("unpacking", len(wanted), len(wanted), "files")
    except DataError:
        raise
    except (NotImplementedError, RuntimeError) as error:  # encryption, an unknown compression
        raise DataError(
            f"{archive} can't be unpacked: {error}; unpack it yourself and give the folder"
        ) from error
    except OSError as error:
        raise DataError(
            f"can't unpack {archive}: {error.strerror or error}; "
            f"check the file and the space under {folder.parent}"
        ) from error
    # zipfile raises nearly anything on damaged bytes (zlib.error, struct.error, ValueError, ...).
    except Exception as error:
        raise DataError(f"{archive} {_kind_of(archive)} ({error}); download it again") from error
    return len(wanted)


def _check_size(archive: Path, opened: zipfile.ZipFile, folder: Path) -> None:
    total = sum(info.file_size for info in opened.infolist())
    if total > max(RATIO_FROM_BYTES, MAX_RATIO * archive.stat().st_size):
        raise _refused(archive, f"it unpacks to more than {MAX_RATIO} times its size")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise DataError(
            f"{archive} unpacks to {total / 2**30:.1f} GiB, and {folder.parent} has "
            f"{free / 2**30:.1f} GiB free; make room or choose another --data-root"
        )


def _safe_path(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    """The member's relative path; some Windows tools write backslashes."""
    path = PurePosixPath(info.filename.replace("\\", "/"))
    has_drive = info.filename[1:2] == ":"
    if path.is_absolute() or has_drive or ".." in path.parts or not path.parts:
        raise _refused(archive, f"{info.filename!r} leads out of the folder")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(archive, f"{info.filename!r} is a link or a device")
    return path


def _refused(archive: Path, why: str) -> DataError:
    return DataError(
        f"{archive} is not safe to unpack: {why}; get the archive from its official source, "
        "or unpack it yourself and give the folder"
    )


def _kind_of(archive: Path) -> str:
    """What a file that is not a good zip looks like."""
    with archive.open("rb") as file:
        start = file.read(512)
    if is_web_page(start):
        return "is a web page, not a zip archive"
    return "is a damaged zip archive" if start.startswith(b"PK") else "is not a zip archive"
