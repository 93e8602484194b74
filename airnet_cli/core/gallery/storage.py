"""Folders of files, on disk or in object storage (fsspec, `s3://…`), and images from there.

Both can create a file that doesn't exist yet, completely or not at all. That is all the agreement
that many writers need. The packages for object storage are in `airnet[s3]`.
"""

import contextlib
import os
import posixpath
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from airnet_cli.core.data.sources import IMAGE_SUFFIXES
from airnet_cli.errors import DataError, OutputError

TRANSFERS = 16
"""Images that are fetched at the same time."""


def is_url(place: object) -> bool:
    """Whether a place is in object storage: `s3://bucket/prefix`.

    >>> is_url("s3://bucket/crops"), is_url("crops")
    (True, False)
    """
    return isinstance(place, str) and "://" in place


class DiskFolder:
    """A flat folder of files, on this machine or on a disk that machines share.

    It doesn't need to exist before the first file. All methods raise:
        DataError, OutputError: the place can't be read or written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> frozenset[str]:
        """The names of all files."""
        try:
            return frozenset(os.listdir(self.path))  # noqa: PTH208  names, not paths
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise DataError(f"folder '{self.path}' can't be read: {error.strerror}") from None

    def read(self, name: str) -> bytes:
        """The bytes of a small file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"'{self.path / name}' can't be read: {error.strerror}") from None

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder in which files are written before they are `put`: the folder itself."""
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            yield self.path

    def put(self, file: Path) -> None:
        """Bring a file from `staging` into the folder under its name; it is there already."""

    def create(self, name: str, content: bytes) -> bool:
        """Create a file, completely or not at all; False if it exists.

        A finished temporary file gets its name by a hard link.
        """
        file = self.path / name
        temporary = self.path / f".{name}.{secrets.token_hex(4)}.part"
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                _write(temporary, content)
                return _link(temporary, file, content)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def remove(self, name: str) -> None:
        """Remove a file, unless it doesn't exist or is in use (Windows)."""
        with contextlib.suppress(OSError):
            (self.path / name).unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"can't write '{self.path}': {error.strerror or error}; make room, or choose "
                "another place"
            ) from error


def _write(file: Path, content: bytes) -> None:
    """Create a file and write it to the disk."""
    with file.open("xb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _link(temporary: Path, file: Path, content: bytes) -> bool:
    """Give a finished temporary file its name; False if that exists."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        return False
    except FileNotFoundError:  # somebody created `file`, and removed our temporary one
        return False
    except OSError:  # a file system without hard links (exFAT), where a kill may cut the file off
        try:
            _write(file, content)
        except FileExistsError:
            return False
        except OSError:
            file.unlink(missing_ok=True)
            raise
    return True


class ObjectFolder:
    """Like `DiskFolder`, for a prefix of a bucket."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet."""
        self.url = url.rstrip("/")
        self._system, self._root = _system_of(self.url)

    def __str__(self) -> str:
        return self.url

    def names(self) -> frozenset[str]:
        """See `DiskFolder`."""
        with _access(self.url):
            try:
                found = self._system.ls(self._root, detail=False)
            except FileNotFoundError:  # no object has this prefix yet
                return frozenset()
        return frozenset(posixpath.basename(name) for name in found)

    def read(self, name: str) -> bytes:
        """See `DiskFolder`."""
        with _access(self.url), contextlib.suppress(FileNotFoundError):
            content: bytes = self._system.cat_file(f"{self._root}/{name}")
            return content
        raise FileNotFoundError(f"{self.url}/{name}")

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """See `DiskFolder`: a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="airnet-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def put(self, file: Path) -> None:
        """See `DiskFolder`."""
        with _access(self.url):
            self._system.put_file(str(file), f"{self._root}/{file.name}")

    def create(self, name: str, content: bytes) -> bool:
        """See `DiskFolder`: S3 itself decides who was first (If-None-Match: *)."""
        with _access(self.url):
            try:
                self._system.pipe_file(f"{self._root}/{name}", content, mode="create")
            except OSError:
                # Servers say in several ways that it exists, and s3fs knows only one of them.
                if not self._system.exists(f"{self._root}/{name}"):
                    raise
                return False
        return True

    def remove(self, name: str) -> None:
        """See `DiskFolder`."""
        with _access(self.url), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(f"{self._root}/{name}")


Folder = DiskFolder | ObjectFolder


def folder_at(place: Path | str) -> Folder:
    """The folder at a path or URL.

    Raises:
        DataError: a package that the URL needs is missing, or the protocol is unknown.
    """
    return ObjectFolder(place) if isinstance(place, str) and is_url(place) else DiskFolder(place)


def list_objects(urls: Sequence[str]) -> tuple[str, ...]:
    """The URLs of all images at `urls`, each once, in the order of their text.

    Args:
        urls: prefixes (every visible image below), objects, and `.txt` lists: a URL in each line,
            or a name relative to the list's own prefix.

    Raises:
        DataError: there are no images at one of them, or it can't be read.
    """
    found: set[str] = set()
    for url in urls:
        images = _listed(url) if url.lower().endswith(".txt") else _below(url)
        if not images:
            raise DataError(
                f"there are no images at '{url}' ({', '.join(IMAGE_SUFFIXES)}; hidden ones do not "
                "count); check the names of bucket and prefix"
            )
        found.update(images)
    return tuple(sorted(found))


@contextlib.contextmanager
def fetched(urls: Sequence[str]) -> Iterator[tuple[Path, ...]]:
    """Fetch objects into a temporary folder, which is removed after the block.

    Their files have numbers as names, and the suffix of each. An object that doesn't exist becomes
    a file that doesn't exist.

    Raises:
        DataError: one can't be read for another reason, or the disk is full.
    """

    def fetch(url: str, path: Path) -> None:
        system, place = _system_of(url)
        with _access(url):
            try:
                system.get_file(place, str(path))
            except FileNotFoundError:
                path.unlink(missing_ok=True)

    with tempfile.TemporaryDirectory(prefix="airnet-", ignore_cleanup_errors=True) as folder:
        paths = tuple(Path(folder) / f"{i:06}{_suffix(url)}" for i, url in enumerate(urls))
        with ThreadPoolExecutor(TRANSFERS) as pool:
            waiting = [pool.submit(fetch, url, path) for url, path in zip(urls, paths, strict=True)]
            try:
                for each in waiting:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        yield paths


def _suffix(url: str) -> str:
    """The end of a URL, if it is the suffix of an image."""
    suffix = PurePosixPath(url).suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""


def _below(url: str) -> list[str]:
    system, root = _system_of(url)
    with _access(url):
        names: list[str] = system.find(root)
    if names != [root]:  # else it is the object itself, whatever its suffix
        inner = [(name, name.removeprefix(root).strip("/")) for name in names]
        names = [name for name, below in inner if _is_image(below)]
    protocol = url.partition("://")[0]
    return [f"{protocol}://{name.lstrip('/')}" for name in names]


def _is_image(name: str) -> bool:
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden


def _listed(url: str) -> list[str]:
    system, place = _system_of(url)
    with _access(url):
        content: bytes = system.cat_file(place)
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"list '{url}' is not UTF-8 text; write a URL in each line") from None
    above = url.rpartition("/")[0]
    return [line if is_url(line) else f"{above}/{line}" for line in lines if line]


def _system_of(url: str) -> tuple[Any, str]:
    """The client of fsspec for `url`, and its name for that place."""
    import fsspec  # a dependency of torch; the packages for each protocol are in the extra

    protocol = url.partition("://")[0]
    if protocol in ("file", "local"):
        raise DataError(f"'{url}' is on a disk; give its path")
    try:
        # Listings are not kept: others write there.
        system, place = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = "pip install 'airnet[s3]'" if protocol == "s3" else f"fsspec says: {error}"
        raise DataError(f"'{url}' needs a package that is not installed; {extra}") from None
    except ValueError as error:
        raise DataError(
            f"fsspec doesn't know the place '{url}' ({_one_line(error)}); write s3://BUCKET/PREFIX"
        ) from None
    return system, str(place).rstrip("/")


@contextlib.contextmanager
def _access(url: str) -> Iterator[None]:
    """Turn errors of access to object storage into one line.

    Raises:
        DataError: the storage refused or didn't answer.
    """
    try:
        yield
    except _access_errors() as error:
        raise DataError(
            f"'{url}' can't be used: {_one_line(error) or type(error).__name__}; check the name of "
            "the bucket, the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE), the server "
            "(AWS_ENDPOINT_URL), and the space on this disk"
        ) from None


def _access_errors() -> tuple[type[Exception], ...]:
    """OSError, and the errors of botocore (S3) that s3fs lets through."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, *((botocore.BotoCoreError, botocore.ClientError) if botocore else ()))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
