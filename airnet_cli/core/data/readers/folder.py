"""The user's own images: a folder for each person, or names with the ids.

A pattern such as `{person_id}_c{camera_id}_*` describes a file's whole name without its ending; `*`
is any characters and `?` is one. With a `/` in it, it describes the path below the folder
(`{person_id}/cam{camera_id}/*`).
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airnet_cli.core.data.records import NamedImage
from airnet_cli.core.data.sources import IMAGE_SUFFIXES, walk_images
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, UsageError

FIELDS = ("person_id", "camera_id")


@dataclass(frozen=True, slots=True)
class Reading:
    """The images of a folder."""

    images: list[NamedImage]
    """Sorted by path. `split_people` numbers people and cameras."""
    strange: list[str]
    """Paths of images without labels: in no folder, or with another name."""


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern that was understood; see `parse_pattern`."""

    text: str
    expression: re.Pattern[str]
    """With a group for each field that the pattern has."""
    of_path: bool
    """Whether it describes the whole relative path, not the file's name alone."""
    with_ending: bool
    """Whether it has the file's ending."""

    def match(self, path: PurePosixPath) -> dict[str, str] | None:
        """Read the fields from a path relative to the folder; None if it does not fit."""
        text = path.as_posix() if self.of_path else path.name
        if not self.with_ending:
            text = text[: len(text) - len(path.suffix)]
        match = self.expression.fullmatch(text)
        return None if match is None else match.groupdict()


def parse_pattern(text: str) -> NamePattern:
    """Understand a pattern such as `{person_id}_c{camera_id}_*`.

    Raises:
        UsageError: it has no field, an unknown one, one twice, or two with nothing between them.

    >>> parse_pattern("{person_id}_*").match(PurePosixPath("a/7_c1.jpg"))
    {'person_id': '7'}
    """
    expression = before = ""
    fields: list[str] = []
    for part in filter(None, re.split(r"(\{[^{}]*\}|[*?])", text)):
        if part == "*":
            expression += "[^/]*?"
        elif part == "?":
            expression += "[^/]"
        elif part[0] == "{" and part[-1] == "}":
            _check_field(text, part, before, fields)
            fields.append(part[1:-1])
            expression += f"(?P<{part[1:-1]}>[^/]+?)"
        elif "{" in part or "}" in part:
            raise _error(text, "has a brace without its partner")
        else:
            expression += re.escape(part)
        before = part
    if not fields:
        raise _error(text, "has no {person_id} and no {camera_id}")
    return NamePattern(
        text=text,
        expression=re.compile(expression),
        of_path="/" in text,
        with_ending=PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES,
    )


def read(root: Path, pattern: NamePattern | None, *, progress: Progress = silent) -> Reading:
    """Find all images below `root`; hidden files and folders are left out.

    Args:
        root: the folder.
        pattern: where the ids are. Without it, or if it has no `{person_id}`, the first folder is
            the person; without `{camera_id}` cameras are not known.
        progress: told how many images were found.

    Raises:
        DataError: `root` is not a folder or has no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder of the images")
    images: list[NamedImage] = []
    strange: list[str] = []
    # Sorted: the order of a folder differs between machines.
    for path in sorted(path.relative_to(root).as_posix() for path in walk_images(root)):
        found = _parse(PurePosixPath(path), pattern)
        if found is None:
            strange.append(path)
        else:
            images.append(found)
    progress("reading names", len(images), None, "images")
    if not images and not strange:
        raise DataError(
            f"there are no images below {root} ({', '.join(IMAGE_SUFFIXES)}; hidden files do not "
            "count); give another folder"
        )
    return Reading(images=images, strange=strange)


def _parse(path: PurePosixPath, pattern: NamePattern | None) -> NamedImage | None:
    """Read the labels of an image; None if its path has none."""
    fields = {} if pattern is None else pattern.match(path)
    if fields is None or ("person_id" not in fields and len(path.parts) < 2):
        return None
    return NamedImage(
        path.as_posix(), fields.get("person_id", path.parts[0]), fields.get("camera_id")
    )


def _check_field(text: str, part: str, before: str, fields: list[str]) -> None:
    field = part[1:-1]
    if field not in FIELDS:
        raise _error(text, f"has {part}, and there are {{person_id}} and {{camera_id}} only")
    if field in fields:
        raise _error(text, f"has {part} twice")
    if before.endswith(("}", "*")):
        raise _error(
            text, f"does not say where {part} begins: put a character between it and {before}"
        )


def _error(text: str, why: str) -> UsageError:
    return UsageError(
        f"--pattern {text!r} {why}; a pattern is like '{{person_id}}_c{{camera_id}}_*'"
    )
