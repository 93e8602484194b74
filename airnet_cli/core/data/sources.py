"""What a user means by some images: folders, files, text lists and CSV tables become one list.

- A folder: every image below it, by its suffix; hidden files and folders are left out.
- `.txt`: one path a line, relative to the list's folder. `.csv`: the column `path`, relative to the
  table's folder, and any further columns, which are kept as text. Both in UTF-8.
- Anything else is an image itself, whatever its suffix.

The order is that of the absolute paths as text (code points): the same on every machine for the
same tree, whatever the order of the inputs or of the file system.
"""

import csv
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.core.files import is_file
from airnet_cli.errors import DataError, quoted

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""What is an image in a folder, in small or capital letters."""

LISTED = 10
"""How many problems an error spells out."""

MOST_VISITS = 1000
"""How often links may lead to one folder."""


@dataclass(frozen=True)
class Sources:
    """Images in order, and what is known of them."""

    paths: tuple[Path, ...]
    """N different files, as seen from the current folder."""
    columns: dict[str, tuple[str, ...]]
    """N texts for each further column of the tables; empty where an image's source lacks it."""


@dataclass(frozen=True)
class _Found:
    path: Path
    place: str
    """Where it was named, for messages; empty for what a folder holds."""
    table: int | None
    """Which of the tables it is from."""
    cells: tuple[str, ...] = ()
    """Of that table's further columns."""


def list_images(inputs: Sequence[Path], *, must_exist: bool) -> Sources:
    """Gather the images of all `inputs`; one that is named twice counts once.

    Args:
        inputs: folders, images, `.txt` lists, `.csv` tables.
        must_exist: raise for files that lists and tables name and that are not there; otherwise
            whoever reads them finds out.

    Raises:
        DataError: an input is missing or broken, holds no images, or two tables describe the same
            image.
    """
    found: dict[str, _Found] = {}
    headers: list[tuple[str, ...]] = []
    for given in inputs:
        count = len(found)
        for image in _images_of(given, headers):
            key = path_key(image.path)
            earlier = found.setdefault(key, image)
            if earlier is image:
                continue
            if earlier.table is not None and image.table is not None:
                raise DataError(
                    f"{image.place}: '{image.path}' is in {earlier.place} already; list it once"
                )
            if image.table is not None:
                found[key] = image  # the one that says more
        if len(found) == count and not _holds_images(given, headers):
            raise DataError(
                f"there are no images in '{given}' ({', '.join(IMAGE_SUFFIXES)}; hidden files do "
                "not count); give another folder or list"
            )
    ordered = [found[key] for key in sorted(found)]
    if must_exist:
        _raise_for_missing([image for image in ordered if image.place])
    names = list(dict.fromkeys(name for header in headers for name in header))
    positions = [{name: header.index(name) for name in header} for header in headers]

    def cell(image: _Found, name: str) -> str:
        position = None if image.table is None else positions[image.table].get(name)
        return "" if position is None else image.cells[position]

    return Sources(
        paths=tuple(image.path for image in ordered),
        columns={name: tuple(cell(image, name) for image in ordered) for name in names},
    )


def relative_to_folder(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """`paths` as seen from `folder`, with forward slashes: so that both can be moved together."""
    known: dict[Path, str] = {}

    def relative(path: Path) -> str:
        parent = path.parent
        if parent not in known:
            known[parent] = _relative(parent, folder)
        return f"{known[parent]}{path.name}"

    return tuple(relative(path) for path in paths)


def _images_of(given: Path, headers: list[tuple[str, ...]]) -> Iterator[_Found]:
    if given.is_dir():
        yield from (_Found(path, "", None) for path in walk_images(_without_detour(given)))
    elif not given.exists():
        raise DataError(
            f"'{given}' does not exist; give folders, images, a .txt list or a .csv table"
        )
    elif given.suffix.lower() in (".txt", ".csv") and not given.is_file():
        raise DataError(f"'{given}' is a pipe or device; write the list into a file")
    elif given.suffix.lower() == ".txt":
        yield from _read_list(given)
    elif given.suffix.lower() == ".csv":
        yield from _read_table(given, headers)
    else:
        yield _Found(_without_detour(given), "the command", None)


def _holds_images(given: Path, headers: list[tuple[str, ...]]) -> bool:
    """Whether there is any image in `given`, which brought no new one."""
    return next(_images_of(given, list(headers)), None) is not None


def walk_images(folder: Path) -> Iterator[Path]:
    """Every visible image below `folder`, links followed, no folder on its own path entered.

    Raises:
        DataError: a folder can't be read, or links lead to one again and again.
    """
    visits: Counter[tuple[int, int]] = Counter()
    # Not recursive: folders may be nested more deeply than Python's calls.
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        current, above = waiting.pop()
        try:
            status = current.stat()
            this = (status.st_dev, status.st_ino)
            if this in above:
                continue  # a link to a folder that it lies in
            visits[this] += 1
            if visits[this] > MOST_VISITS:
                raise DataError(
                    f"links below '{folder}' lead to the folder '{current}' more than "
                    f"{MOST_VISITS:,} times; remove them"
                )
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        waiting.append((current / entry.name, above | {this}))
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        yield current / entry.name
        except OSError as error:
            raise DataError(f"folder '{current}' can't be read: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: whoever reads it as an image finds out
        return False


def _read_list(file: Path) -> Iterator[_Found]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{file}, line {number}"
                    yield _Found(_listed_path(file, line.strip(), place), place, None)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"list '{file}' can't be read ({_one_line(error)}); write it as UTF-8 text, one path "
            "a line"
        ) from None


def _listed_path(file: Path, text: str, place: str) -> Path:
    """A path that a list or table names."""
    if "\0" in text:
        raise DataError(f"{place}: {quoted(text)} is no file's path; write the list again")
    return _without_detour(file.parent / text)


def _read_table(file: Path, headers: list[tuple[str, ...]]) -> Iterator[_Found]:
    table = len(headers)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if header.count("path") != 1 or len(set(header)) != len(header) or "" in header:
                raise DataError(
                    f"'{file}' must name its columns in the first line, each once, path among "
                    f"them; found: {', '.join(header)[:200] or 'nothing'}"
                )
            position = header.index("path")
            headers.append(tuple(name for name in header if name != "path"))
            line = reader.line_num + 1
            for row in reader:
                place, line = f"{file}, line {line}", reader.line_num + 1
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header) or not row[position].strip():
                    raise DataError(
                        f"{place}: {len(row)} cells, path {quoted(''.join(row[position:][:1]))}; "
                        f"it must have the {len(header)} of the first line, and a path"
                    )
                cells = (*row[:position], *row[position + 1 :])
                path = _listed_path(file, row[position].strip(), place)
                yield _Found(path, place, table, cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"table '{file}' can't be read ({_one_line(error)}); write it as UTF-8 text with commas"
        ) from None


def _raise_for_missing(images: Sequence[_Found]) -> None:
    missing = [image for image in images if not is_file(image.path)]
    if missing:
        listed = "; ".join(f"{image.place}: {quoted(image.path)}" for image in missing[:LISTED])
        more = f" and {len(missing) - LISTED:,} more" if len(missing) > LISTED else ""
        raise DataError(
            f"{len(missing):,} of the images that are listed are no files: {listed}{more}; paths "
            "are relative to the folder of the list or table"
        )


def _without_detour(path: Path) -> Path:
    """`path` without "a/..", which is no detour where a is a link: the file system is asked."""
    pairs = itertools.pairwise(path.parts)
    if all(part != ".." or before == ".." for before, part in pairs):
        return path
    # Not resolve(), which raises RuntimeError for links in a circle.
    return Path(os.path.relpath(Path(os.path.realpath(path.parent)) / path.name))


def path_key(path: Path) -> str:
    """What tells files apart, and orders them; links are not resolved."""
    key = Path(os.path.abspath(path)).as_posix()  # noqa: PTH100  absolute() keeps "a/../b"
    try:
        key.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {str(path)!a} is not valid UTF-8; rename it") from None
    return key


def _relative(folder: Path, start: Path) -> str:
    """`folder` as seen from `start`, ending with a slash where it is not empty."""
    try:
        way = os.path.relpath(folder, start)
        if ".." in folder.parts or way.startswith(".."):  # from where a link points to, not from it
            way = os.path.relpath(os.path.realpath(folder), os.path.realpath(start))
    except ValueError:  # two drives on Windows
        way = os.path.realpath(folder)
    text = Path(way).as_posix()
    return "" if text == "." else text if text.endswith("/") else f"{text}/"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
