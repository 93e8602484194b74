"""Where shards are written and images come from: a folder, or object storage by fsspec (s3://…).

A folder that several machines share does as well as a bucket. Both can put a file there that is not
there yet, whole or not at all: that is all the agreement that many processes need. Of object
storage, `fsspec` does the talking (`airnet[s3]`); names of objects are strangers' and never become
names of files here.
"""

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from airnet_cli.core.data.sources import IMAGE_SUFFIXES
from airnet_cli.core.files import create, reason_of
from airnet_cli.errors import AirnetError, DataError, OutputError

TRANSFERS = 16
"""How many images are fetched at once."""


def is_url(place: object) -> bool:
    """Whether a place is in object storage: `s3://bucket/prefix`.

    >>> is_url("s3://bucket/crops"), is_url("crops")
    (True, False)
    """
    return isinstance(place, str) and "://" in place


class Folder(Protocol):
    """A flat folder of files, here or in object storage.

    All methods raise:
        DataError, OutputError: the place can't be read or written.
    """

    def names(self) -> frozenset[str]:
        """The files that are there; none where there is no folder yet."""

    def read(self, name: str) -> bytes | None:
        """What a small file holds, its first 64 MiB; None where it is not there."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""

    def put(self, name: str, file: Path) -> None:
        """Put `file`, which is used up, there in one step, in the place of an older one."""

    def create(self, name: str, content: bytes) -> bool:
        """Put a file there in one step; False, and nothing done, where there is one already."""


def open_folder(place: Path | str) -> Folder:
    """The folder at a path or URL, which need not be there yet.

    Raises:
        DataError: a URL that needs a package that is not here, or that no package knows.
    """
    return ObjectFolder(place) if isinstance(place, str) and is_url(place) else DiskFolder(place)


class DiskFolder:
    """See `Folder`: one of this machine, or that machines share."""

    def __init__(self, path: Path | str) -> None:
        """Nothing is made yet."""
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> frozenset[str]:
        """See `Folder`."""
        try:
            return frozenset(os.listdir(self.path))  # noqa: PTH208  names, not paths
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise DataError(f"folder '{self.path}' can't be read: {reason_of(error)}") from None

    def read(self, name: str) -> bytes | None:
        """See `Folder`."""
        try:
            with (self.path / name).open("rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(
                f"'{self.path / name}' can't be read: {reason_of(error)}; choose another folder"
            ) from None

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"'{self.path / name}' can't be read: {reason_of(error)}") from None

    def put(self, name: str, file: Path) -> None:
        """See `Folder`; `file` is on the same disk."""
        try:
            file.replace(self.path / name)
        except OSError as error:
            raise OutputError(f"can't write '{self.path / name}': {reason_of(error)}") from error

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`."""
        return create(self.path / name, content)


class ObjectFolder:
    """See `Folder`: a prefix of a bucket."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet."""
        self.url = url.rstrip("/")
        self._system, self._root = _system_of(self.url)

    def __str__(self) -> str:
        return self.url

    def names(self) -> frozenset[str]:
        """See `Folder`."""
        with _asking(self.url):
            try:
                found = self._system.ls(self._root, detail=False)
            except FileNotFoundError:  # nothing has this prefix yet
                return frozenset()
        return frozenset(posixpath.basename(name) for name in found)

    def read(self, name: str) -> bytes | None:
        """See `Folder`."""
        with _asking(self.url):
            try:
                content: bytes = self._system.cat_file(self._place(name))
            except FileNotFoundError:
                return None
        return content

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        with _asking(self.url):
            try:
                return int(self._system.info(self._place(name))["size"])
            except FileNotFoundError:
                return None

    def put(self, name: str, file: Path) -> None:
        """See `Folder`."""
        with _asking(self.url):
            self._system.put_file(str(file), self._place(name))
        file.unlink()

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`: S3 itself decides who was first (If-None-Match: *)."""
        with _asking(self.url):
            try:
                self._system.pipe_file(self._place(name), content, mode="create")
            except OSError:
                # Of the ways in which servers say that it is there, s3fs knows but one.
                if not self._system.exists(self._place(name)):
                    raise
                return False
        return True

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"


def list_objects(urls: Sequence[str]) -> tuple[str, ...]:
    """The URLs of all images that are meant by `urls`, each once, in the order of their text.

    Args:
        urls: prefixes (every visible image below, by its suffix), objects, and `.txt` lists: a URL
            a line, or a name relative to the list's own prefix.

    Raises:
        DataError: there are no images at one of them, or it can't be read.
    """
    found: set[str] = set()
    for url in urls:
        images = _listed(url) if url.lower().endswith(".txt") else _below(url)
        if not images:
            raise DataError(
                f"there are no images at '{url}' ({', '.join(IMAGE_SUFFIXES)}; hidden ones do not "
                "count); look at the name of bucket and prefix"
            )
        found.update(images)
    return tuple(sorted(found))


def fetch(urls: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Bring objects into `folder`, as files with names of ours and the suffix of each.

    An object that is not there becomes a file that is not there: whoever reads it finds out.

    Raises:
        DataError: one can't be read for another reason, or the disk is full.
    """
    paths = tuple(folder / f"{i:06}{_suffix(url)}" for i, url in enumerate(urls))

    def bring(url: str, path: Path) -> None:
        system, place = _system_of(url)
        with _asking(url):
            try:
                system.get_file(place, str(path))
            except FileNotFoundError:
                path.unlink(missing_ok=True)

    with ThreadPoolExecutor(TRANSFERS) as pool:
        waiting = [pool.submit(bring, url, path) for url, path in zip(urls, paths, strict=True)]
        try:
            for each in waiting:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return paths


@contextlib.contextmanager
def fetched(urls: Sequence[str]) -> Iterator[tuple[Path, ...]]:
    """As `fetch`, into a temporary folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="airnet-", ignore_cleanup_errors=True) as folder:
        yield fetch(urls, Path(folder))


def _suffix(url: str) -> str:
    """How a URL ends, where that is the suffix of an image."""
    suffix = PurePosixPath(url).suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""


def _below(url: str) -> list[str]:
    system, root = _system_of(url)
    with _asking(url):
        names: list[str] = system.find(root)
    if names != [root]:  # or else it is the object itself, whatever its suffix
        inner = [(name, name.removeprefix(root).strip("/")) for name in names]
        names = [name for name, below in inner if _is_image(below)]
    protocol = url.partition("://")[0]
    return [f"{protocol}://{name.lstrip('/')}" for name in names]


def _is_image(name: str) -> bool:
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden


def _listed(url: str) -> list[str]:
    system, place = _system_of(url)
    with _asking(url):
        content: bytes = system.cat_file(place)
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"list '{url}' is no UTF-8 text; write one URL a line") from None
    if "\0" in "".join(lines):
        raise DataError(f"list '{url}' holds NUL, which no name has; write it again")
    above = url.rpartition("/")[0]
    return [line if is_url(line) else f"{above}/{line}" for line in lines if line]


def _system_of(url: str) -> tuple[Any, str]:
    """What speaks with the storage of `url`, and how it calls that place."""
    import fsspec  # a dependency of torch; what it needs for a protocol is in the extra

    protocol = url.partition("://")[0]
    if protocol in ("file", "local"):
        raise DataError(f"'{url}' is on a disk; give its path")
    try:
        # Listings are not kept: others write there.
        system, place = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = "pip install 'airnet[s3]'" if protocol == "s3" else f"fsspec says: {error}"
        raise DataError(f"'{url}' needs a package that is not here; {extra}") from None
    except ValueError as error:
        raise DataError(
            f"'{url}' is no place that fsspec knows ({_one_line(error)}); write s3://BUCKET/PREFIX"
        ) from None
    return system, str(place).rstrip("/")


@contextlib.contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turn whatever a client of object storage raises into one line.

    Raises:
        DataError: it raised something; there is no common parent of these errors.
    """
    try:
        yield
    except AirnetError:
        raise
    except Exception as error:
        raise DataError(
            f"'{url}' can't be used: {_one_line(error) or type(error).__name__}; look at the name "
            "of the bucket, the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE), the server "
            "(AWS_ENDPOINT_URL), and the room on this disk"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
