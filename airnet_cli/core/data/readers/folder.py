"""One's own images: a folder for each person, or names that say who it is and which camera.

A pattern like `{person_id}_c{camera_id}_*` says where the ids stand in a file's name: the whole of
it without its ending, `*` for any characters and `?` for one. With a `/` in it, it is held against
the path below the folder (`{person_id}/cam{camera_id}/*`). Without `{person_id}` the first folder
is the person. Ids may be any text; `split_people` numbers them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airnet_cli.core.data.sources import IMAGE_SUFFIXES, walk_images
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, UsageError

PERSON, CAMERA = "person_id", "camera_id"


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image, and what its path says of it."""

    path: str
    """Relative to the folder, with forward slashes."""
    person: str
    camera: str | None
    """None where the pattern says nothing of cameras."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in a folder."""

    images: list[FoundImage]
    """Sorted by path."""
    strange: list[str]
    """Paths of images of which nothing is known: in no folder, or of another name."""


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern of file names that was understood; see `parse_pattern`."""

    text: str
    expression: re.Pattern[str]
    of_path: bool
    """Whether it is held against the whole relative path, not the file's name alone."""
    with_ending: bool
    """Whether it has the file's ending."""

    def match(self, path: PurePosixPath) -> re.Match[str] | None:
        """Hold it against a path relative to the folder."""
        text = path.as_posix() if self.of_path else path.name
        if not self.with_ending:
            text = text[: len(text) - len(path.suffix)]
        return self.expression.fullmatch(text)


def parse_pattern(text: str) -> NamePattern:
    """Understand a pattern such as `{person_id}_c{camera_id}_*`.

    Raises:
        UsageError: it has no field, an unknown one, one twice, or two that nothing parts.
    """
    expression: list[str] = [""]
    fields: list[str] = []
    advice = "a pattern is like '{person_id}_c{camera_id}_*'"
    parts = [part for part in re.split(r"(\{[^{}]*\}|[*?])", text) if part]
    for before, part in zip([None, *parts], parts, strict=False):
        if part == "*":
            expression.append("[^/]*?")
        elif part == "?":
            expression[-1] += "[^/]"
        elif part[0] == "{" and part[-1] == "}":
            field = part[1:-1]
            if field not in (PERSON, CAMERA):
                raise UsageError(
                    f"--pattern {text!r} has {part}, and there are {{{PERSON}}} and {{{CAMERA}}} "
                    f"only; {advice}"
                )
            if field in fields:
                raise UsageError(f"--pattern {text!r} has {part} twice; {advice}")
            if before is not None and before[-1] in "}*":
                raise UsageError(
                    f"--pattern {text!r} does not say where {part} begins: put a character "
                    f"between it and {before}; {advice}"
                )
            fields.append(field)
            expression.append(f"(?P<{field}>[^/]+?)")
        elif "{" in part or "}" in part:
            raise UsageError(f"--pattern {text!r} has a brace without its partner; {advice}")
        else:
            expression[-1] += re.escape(part)
    if not fields:
        raise UsageError(f"--pattern {text!r} has no {{{PERSON}}} and no {{{CAMERA}}}; {advice}")
    return NamePattern(
        text=text,
        expression=re.compile(_without_second_thoughts(expression)),
        of_path="/" in text,
        with_ending=PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES,
    )


def _without_second_thoughts(parts: Sequence[str]) -> str:
    """The expression of parts that each begin with a `*` or a field, but for the first.

    Where one ends as early as it can, the next takes what is left as well as it would later, since
    both go as far as the next slash. So nothing need be tried twice but the end, which an atomic
    group says: a name of 255 letters against twenty `*` would take years.
    """
    inner = "".join(f"(?>{part})" for part in parts[:-1])
    return inner + parts[-1]


def read(root: Path, pattern: NamePattern | None, *, progress: Progress = silent) -> Reading:
    """Find all images below `root`; hidden files and folders are left out.

    Args:
        root: the folder.
        pattern: where the ids stand; None: the first folder is the person, cameras are not known.
        progress: told how many images were found.

    Raises:
        DataError: `root` is no folder or has no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the images")
    images: list[FoundImage] = []
    strange: list[str] = []
    for path in _image_paths(root):
        found = _parse(path, pattern)
        if found is None:
            strange.append(path.as_posix())
        else:
            images.append(found)
    progress("reading names", len(images), None, "images")
    if not images and not strange:
        raise DataError(
            f"there are no images below {root} ({', '.join(IMAGE_SUFFIXES)}; hidden files do not "
            "count); give another folder"
        )
    return Reading(images=images, strange=strange)


def _parse(path: PurePosixPath, pattern: NamePattern | None) -> FoundImage | None:
    """Read what a path says; None if it says nothing."""
    match = None if pattern is None else pattern.match(path)
    if pattern is not None and match is None:
        return None
    fields = {} if match is None else match.groupdict()
    person = fields.get(PERSON)
    if person is None:
        if len(path.parts) < 2:
            return None
        person = path.parts[0]
    return FoundImage(path=path.as_posix(), person=person, camera=fields.get(CAMERA))


def _image_paths(root: Path) -> list[PurePosixPath]:
    """List all visible images, sorted by path: the order of a folder differs between machines."""
    found = [PurePosixPath(path.relative_to(root).as_posix()) for path in walk_images(root)]
    return sorted(found, key=lambda path: path.as_posix())
