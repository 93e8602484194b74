"""Data sets with a folder for each split and labels in the file names: one recipe for all of them.

A `SplitFolders` says how such a data set looks (`market1501`, `cuhk03`). Labels come from the file
name alone: a folder called `run12_c3` above it must not change them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, listed

FOLDERS: Mapping[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFolders:
    """How a data set of this kind looks."""

    title: str
    """Its name in messages."""
    name: re.Pattern[str]
    """Of a whole file name, with the groups `person` and `camera`."""
    example: str
    """Which names are right, for messages."""
    suffixes: tuple[str, ...]
    """Of images, in small letters; other files are ignored."""
    has_junk: bool
    """Whether the gallery may have junk (-1) and distractors (0)."""
    split_rule: str
    """Where the split comes from, in one line."""
    published: Mapping[Split, SplitCounts]

    def read(self, root: Path, *, progress: Progress = silent) -> list[ImageRecord]:
        """Read the labels of all images under `root`, sorted by name in each split.

        Hidden files and files with another suffix are ignored; a missing folder gives no records.

        Raises:
            DataError: file names that do not fit; the first ten are listed.
        """
        records: list[ImageRecord] = []
        strange: list[str] = []
        for split, folder in FOLDERS.items():
            for name in visible_files(root / folder, self.suffixes):
                record = self._parse(name, split)
                if record is None:
                    strange.append(f"{folder}/{name}")
                else:
                    records.append(record)
            progress("reading names", len(records), None, "images")
        if strange:
            raise DataError(
                f"{len(strange):,} file names under {root} are not those of {self.title}: "
                f"{listed(strange)}; a name is like {self.example}; "
                "take these files out or unpack the official archive again"
            )
        return records

    def differences(self, root: Path, counts: Mapping[Split, SplitCounts]) -> list[str]:
        """Name what is missing or extra against the published counts; empty for the full set.

        A folder that does not exist has one line instead of one for each count.
        """
        found: list[str] = []
        for split in SPLITS:
            if (root / FOLDERS[split]).is_dir():
                found += count_differences(FOLDERS[split], counts[split], self.published[split])
            else:
                found.append(f"{FOLDERS[split]}: the folder is missing")
        return found

    def _parse(self, name: str, split: Split) -> ImageRecord | None:
        match = self.name.fullmatch(name)
        if match is None:
            return None
        person_id = int(match["person"])
        if person_id in (JUNK, DISTRACTOR) and not (self.has_junk and split == "gallery"):
            return None
        return ImageRecord(f"{FOLDERS[split]}/{name}", person_id, int(match["camera"]), split)


def has_splits(folder: Path) -> bool:
    """Whether a folder has the splits of such a data set; `query` alone is too common a name."""
    return (folder / FOLDERS["train"]).is_dir() or (folder / FOLDERS["gallery"]).is_dir()


def with_folders(source: Path) -> list[Path]:
    """`source` and the folders in it, sorted: where users point to is often one level too high."""
    return [source, *sorted(path for path in source.iterdir() if path.is_dir())]


def only_copy(
    source: Path, found: Sequence[Path], *, title: str, parts: Iterable[str]
) -> Path | None:
    """The one folder of `found`; None if there is none.

    Args:
        source: what the user gave.
        found: folders at or below `source` that look like the data set.
        title: of the data set, for messages.
        parts: names of the folders inside such a folder.

    Raises:
        DataError: there is more than one, or `source` is one of the parts.
    """
    if len(found) > 1:
        names = ", ".join(path.relative_to(source).as_posix() for path in found)
        raise DataError(f"{source} has more than one copy of {title} ({names}); give one of them")
    if not found and source.name in parts:
        raise DataError(
            f"{source} is only a part of {title}; give the folder above it: {source.parent}"
        )
    return found[0] if found else None


def visible_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files that are not hidden, sorted: the order of a folder differs by machine."""
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.suffix.lower() in suffixes and path.is_file()
    )


def count_differences(part: str, ours: SplitCounts, published: SplitCounts) -> list[str]:
    """Name what is missing or extra in one part against its published counts, a line each."""
    found: list[str] = []
    for what, have, want in (
        ("images", ours.images, published.images),
        ("identities", ours.ids, published.ids),
        ("cameras", ours.cameras, published.cameras),
        ("distractors", ours.distractors, published.distractors),
        ("junk images", ours.junk, published.junk),
    ):
        if have != want:
            difference = f"{want - have:,} missing" if have < want else f"{have - want:,} extra"
            found.append(f"{part}: {have:,} of {want:,} {what} ({difference})")
    return found
