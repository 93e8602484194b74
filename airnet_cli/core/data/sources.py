"""What a user means by some images: folders, files, text lists and CSV tables become one list.

- A folder: every image below it, by its suffix; hidden files and folders are left out.
- `.txt`: one path a line, relative to the list's folder. `.csv`: the column `path`, relative to the
  table's folder, and any further columns, which are kept as text. Both in UTF-8.
- Anything else is an image itself, whatever its suffix.

The order is that of the absolute paths as text (code points): the same on every machine for the
same tree, whatever the order of the inputs or of the file system.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.core.data.tables import read_table
from airnet_cli.core.files import is_file
from airnet_cli.errors import DataError, listed, one_line, quoted

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""What is an image in a folder, in small or capital letters."""


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
    place: str = ""
    """Where it was named, for messages; empty for images of a folder."""
    cells: dict[str, str] | None = None
    """Of further columns, if a table named it."""


def list_images(inputs: Sequence[Path], *, must_exist: bool) -> Sources:
    """Gather the images of all `inputs`; one that is named twice counts once.

    Args:
        inputs: folders, images, `.txt` lists, `.csv` tables.
        must_exist: raise for files that lists and tables name and that do not exist; otherwise
            whoever reads them finds out.

    Raises:
        DataError: an input is missing or broken, has no images, or two tables describe the same
            image.
    """
    found: dict[str, _Found] = {}
    names: dict[str, None] = {}
    for given in inputs:
        is_empty = True
        for image in _images_of(given):
            is_empty = False
            key = path_key(image.path)
            names |= dict.fromkeys(image.cells or ())
            earlier = found.setdefault(key, image)
            if earlier is image or image.cells is None:
                continue
            if earlier.cells is not None:
                raise DataError(
                    f"{image.place}: '{image.path}' is in {earlier.place} already; list it once"
                )
            found[key] = image  # the one that says more
        if is_empty:
            raise DataError(
                f"there are no images in '{given}' ({', '.join(IMAGE_SUFFIXES)}; hidden files do "
                "not count); give another folder or list"
            )
    ordered = [found[key] for key in sorted(found)]
    if must_exist:
        _raise_for_missing([image for image in ordered if image.place])
    return Sources(
        paths=tuple(image.path for image in ordered),
        columns={
            name: tuple((image.cells or {}).get(name, "") for image in ordered) for name in names
        },
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


def _images_of(given: Path) -> Iterator[_Found]:
    if given.is_dir():
        yield from map(_Found, walk_images(_without_detour(given)))
    elif not given.exists():
        raise DataError(
            f"'{given}' does not exist; give folders, images, a .txt list or a .csv table"
        )
    elif given.suffix.lower() == ".txt":
        yield from _read_list(given)
    elif given.suffix.lower() == ".csv":
        yield from _read_paths(given)
    else:
        yield _Found(_without_detour(given), "the command")


def walk_images(folder: Path) -> Iterator[Path]:
    """Every visible image below `folder`. Links are followed, and each folder is read once.

    Raises:
        DataError: a folder can't be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(
            f"folder '{error.filename}' can't be read: {error.strerror}; give another folder, or "
            "make it readable"
        )

    seen: set[tuple[int, int]] = set()
    for current, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(current)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that the same one of two links to a folder is followed on every machine.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(current, name)


def _read_list(file: Path) -> Iterator[_Found]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"list '{file}' can't be read ({one_line(error)}); write it as UTF-8 text, one path "
            "a line"
        ) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{file}, line {number}"
            yield _Found(_listed_path(file, line.strip(), place), place)


def _read_paths(file: Path) -> Iterator[_Found]:
    """Read the images of a table, with all of its columns."""
    table = read_table(file, required=["path"])
    problems = list(table.problems)
    problems += [f"line {row.line}: no path" for row in table.rows if not row.cells["path"]]
    if problems:
        raise DataError(
            f"{file} has {len(problems):,} bad {'row' if len(problems) == 1 else 'rows'}: "
            f"{listed(problems, separator='; ')} - correct or remove them"
        )
    for row in table.rows:
        place = f"{file}, line {row.line}"
        path = _listed_path(file, row.cells.pop("path"), place)
        yield _Found(path, place, row.cells)


def _listed_path(file: Path, text: str, place: str) -> Path:
    """A path that a list or table names."""
    if "\0" in text:
        raise DataError(f"{place}: {quoted(text)} is not a file's path; write the list again")
    return _without_detour(file.parent / text)


def _raise_for_missing(images: Sequence[_Found]) -> None:
    missing = [
        f"{image.place}: {quoted(image.path)}" for image in images if not is_file(image.path)
    ]
    if missing:
        raise DataError(
            f"{len(missing):,} of the images that are listed are not files: "
            f"{listed(missing, separator='; ')}; paths are relative to the folder of the list or "
            "table"
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
        raise DataError(f"the name of {str(path)!a} is not valid UTF-8; rename the image") from None
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
