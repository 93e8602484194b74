"""Market-1501 (Zheng et al. 2015): the official folder becomes image records.

A file is called `PPPP_cCsS_FFFFFF_BB.jpg`: person, camera (1-6), sequence, frame, box. Person `-1`
is junk (a bad detection), `0000` a distractor (nobody who is searched for); both are found in the
gallery only. Some files of the official release end in `.jpg.jpg`, a `Thumbs.db` lies in each
folder, and archives made on a Mac add `._*.jpg`. Labels come from the file name alone: a folder
called `run12_c3` above it must not change them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.problems import folder_differences, listed
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

FOLDERS: Mapping[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}

SPLIT_RULE = "Market-1501 official: bounding_box_train, query, bounding_box_test"

PUBLISHED: Mapping[Split, SplitCounts] = {
    "train": SplitCounts(images=12_936, ids=751, cameras=6),
    "query": SplitCounts(images=3_368, ids=750, cameras=6),
    "gallery": SplitCounts(images=19_732, ids=750, cameras=6, distractors=2_798, junk=3_819),
}
"""Of the release v15.09.15; its readme.txt has the numbers of images and identities."""

# [0-9], not \d: that would take the digits of all scripts.
_NAME = re.compile(r"(-1|[0-9]{4})_c([1-6])s([0-9])_([0-9]{6})_([0-9]{2})\.jpg(\.jpg)?")


def find_root(source: Path) -> Path:
    """Find the folder that holds `bounding_box_train` and its siblings: `source` or one inside it.

    Raises:
        DataError: there is none, or more than one.
    """
    if not source.is_dir():
        raise DataError(
            f"{source} is not a folder; give the Market-1501-v15.09.15 folder or its zip"
        )
    if _looks_right(source):
        return source
    inside = sorted(path for path in source.iterdir() if path.is_dir() and _looks_right(path))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(path.name for path in inside)
        raise DataError(
            f"{source} holds more than one copy of Market-1501 ({names}); give one of them"
        )
    if source.name in FOLDERS.values():
        raise DataError(
            f"{source} is only a part of Market-1501; give the folder above it: {source.parent}"
        )
    raise DataError(
        f"{source} is not Market-1501: it has no folder {' or '.join(FOLDERS.values())}; "
        "give the Market-1501-v15.09.15 folder or its zip"
    )


def read(root: Path, *, progress: Progress = silent) -> list[ImageRecord]:
    """Read the labels of all images under `root`, which comes from `find_root`.

    Files that are hidden or no `.jpg` are not images; a missing folder gives no records.

    Raises:
        DataError: names that say nothing, junk or distractors outside of the gallery; listed.
    """
    records: list[ImageRecord] = []
    strange: list[str] = []
    for split in SPLITS:
        folder = root / FOLDERS[split]
        names = _image_names(folder) if folder.is_dir() else []
        for name in names:
            record = _parse(name, split)
            if record is None:
                strange.append(f"{folder.name}/{name}")
            else:
                records.append(record)
        progress("reading names", len(records), None, "images")
    if strange:
        raise DataError(
            f"{len(strange):,} file names under {root} are not Market-1501's: "
            f"{listed(strange)}; "
            "a name is like 0002_c1s1_000451_03.jpg, -1 and 0000 only in bounding_box_test; "
            "take these files out or unpack the official archive again"
        )
    return records


def differences(root: Path, counts: Mapping[Split, SplitCounts]) -> list[str]:
    """Name what is missing or extra against the published counts; empty for the full set."""
    return folder_differences(root, FOLDERS, counts=counts, published=PUBLISHED)


def _looks_right(folder: Path) -> bool:
    """Tell whether a folder is the data set's: `query` alone is too common a name to go by."""
    return (folder / FOLDERS["train"]).is_dir() or (folder / FOLDERS["gallery"]).is_dir()


def _image_names(folder: Path) -> Sequence[str]:
    """List the visible .jpg files, sorted: the order of a folder differs between machines."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.suffix.lower() == ".jpg" and path.is_file()
    )


def _parse(name: str, split: Split) -> ImageRecord | None:
    """Read the labels from a file name; None if it is not one of this split's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    person_id = int(match[1])
    if person_id in (JUNK, DISTRACTOR) and split != "gallery":
        return None
    return ImageRecord(
        path=f"{FOLDERS[split]}/{name}", person_id=person_id, camera_id=int(match[2]), split=split
    )
