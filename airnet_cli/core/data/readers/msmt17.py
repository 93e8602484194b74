"""MSMT17 (Wei et al. 2018), V1 and V2: the official lists become image records.

V1 has the folders `train` and `test`, V2, whose faces are masked, `mask_train_v2` and
`mask_test_v2`. Lists beside them (`list_train.txt`, `list_val.txt`, `list_query.txt`,
`list_gallery.txt`) have lines like `0000/0000_045_12_0303morning_0006_2.jpg 0`: path in `train` or
`test`, person. The third part of the file name is the camera (1-15).

Persons of both folders are counted from 0, though they are different people: here those of `test`
are moved by `TEST_SHIFT`, so none is another's namesake and no query has the id of distractors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airnet_cli.core.data.manifest import SplitCounts, count_splits
from airnet_cli.core.data.problems import count_differences, listed
from airnet_cli.core.data.records import SPLITS, ImageRecord, Split
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

Lists = Literal["train+val", "train"]
"""Which lists train: both, as in the paper, or `list_train` alone, as in several toolkits."""

FOLDERS: Mapping[str, tuple[str, str]] = {
    "V1": ("train", "test"),
    "V2": ("mask_train_v2", "mask_test_v2"),
}
"""Of training and of test, for each version."""

LISTS: Mapping[str, tuple[int, Split]] = {
    "list_train.txt": (0, "train"),
    "list_val.txt": (0, "train"),
    "list_query.txt": (1, "query"),
    "list_gallery.txt": (1, "gallery"),
}
"""For each list: which of the two folders its paths are in, and what its images are for."""

VALIDATION = "list_val.txt"

TEST_SHIFT = 10_000
"""Added to person ids of the test folder: training ids have four digits."""

PUBLISHED: Mapping[Split, SplitCounts] = {
    "train": SplitCounts(images=32_621, ids=1_041, cameras=15),
    "query": SplitCounts(images=11_659, ids=3_060, cameras=15),
    "gallery": SplitCounts(images=82_161, ids=3_060, cameras=15),
}
"""Of both versions; `train` is `list_train` and `list_val` together."""

_PATH = re.compile(r"([0-9]{4})/([0-9]{4})_[0-9]{3}_(0[1-9]|1[0-5])_[^/]+\.jpg")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of the data set lie."""

    root: Path
    """Folder of the lists."""
    version: str
    """V1 or V2."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the lists say, held against the folders."""

    records: list[ImageRecord]
    """Images that are there; of the lists that were asked for."""
    problems: list[str]
    """What is missing, extra or contradictory, one line each; empty for the full set."""
    published: Mapping[Split, SplitCounts]
    """Published counts of the lists that were asked for: none for `list_train` alone."""


def split_rule(layout: Layout, lists: Lists) -> str:
    """Say in one line where the split comes from; scores keep it."""
    train = "list_train + list_val" if lists == "train+val" else "list_train alone"
    return (
        f"MSMT17 {layout.version} official: {train}, list_query, list_gallery; "
        f"test ids + {TEST_SHIFT}"
    )


def find_layout(source: Path) -> Layout:
    """Find the folder that holds the lists and the images: `source` or one inside it.

    Raises:
        DataError: there is none, or it is not clear which one is meant.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the MSMT17_V1 or MSMT17_V2 folder")
    if layout := _layout_of(source):
        return layout
    inside = sorted(path for path in source.iterdir() if path.is_dir())
    found = [layout for path in inside if (layout := _layout_of(path))]
    if len(found) > 1:
        names = ", ".join(layout.root.name for layout in found)
        raise DataError(f"{source} holds more than one copy of MSMT17 ({names}); give one of them")
    if found:
        return found[0]
    if any(source.name in folders for folders in FOLDERS.values()):
        raise DataError(
            f"{source} is only a part of MSMT17; give the folder above it: {source.parent}"
        )
    for folder in [source, *inside]:
        if _version_of(folder):
            raise DataError(
                f"{folder} has the images of MSMT17 but no list_train.txt and its siblings, "
                "which say who is on them; put the lists of your download into it"
            )
    raise DataError(
        f"{source} is not MSMT17: it has no lists (list_train.txt, ...) beside folders "
        f"{' and '.join(FOLDERS['V1'])}, or {' and '.join(FOLDERS['V2'])}; "
        "give the MSMT17_V1 or MSMT17_V2 folder"
    )


def read(layout: Layout, *, lists: Lists, progress: Progress = silent) -> Reading:
    """Read the lists and hold them against the images that are there.

    An image that is not there is left out; where a list and a file name differ about the person,
    the list is right. Both are problems.

    Raises:
        DataError: a list is missing, or has lines that say nothing; the first ten are shown.
    """
    folders = FOLDERS[layout.version]
    there = {folder: _images_in(layout.root / folder) for folder in folders}
    unlisted = {folder: set(paths) for folder, paths in there.items()}
    records: list[ImageRecord] = []
    problems: list[str] = []
    everything: list[ImageRecord] = []
    earlier: dict[str, str] = {}
    for name, (part, split) in LISTS.items():
        folder, shift = folders[part], part * TEST_SHIFT
        if name == VALIDATION and lists == "train" and not (layout.root / name).is_file():
            continue
        lines = _lines(layout.root / name, folder=folder, earlier=earlier)
        wrong = [line for line in lines if line.person_id != line.person_of_path]
        missing = [line for line in lines if line.path not in there[folder]]
        if wrong:
            shown = [f"line {line.number}: {line.path} {line.person_id}" for line in wrong]
            problems.append(
                f"{name}: {len(wrong):,} persons are not those of the folder or file name "
                f"({listed(shown)})"
            )
        if missing:
            problems.append(
                f"{name}: {len(missing):,} of {len(lines):,} images are not in {folder} "
                f"({listed([line.path for line in missing])})"
            )
        unlisted[folder] -= {line.path for line in lines}
        found = [
            ImageRecord(
                path=f"{folder}/{line.path}",
                person_id=line.person_id + shift,
                camera_id=line.camera_id,
                split=split,
            )
            for line in lines
            if line.path in there[folder]
        ]
        everything += found
        if not (name == VALIDATION and lists == "train"):
            records += found
        progress("reading lists", len(everything), None, "images")
    for folder, paths in unlisted.items():
        # Without list_val.txt its images are in no list, and that is what was asked for.
        if paths and not (folder == folders[0] and not (layout.root / VALIDATION).is_file()):
            problems.append(
                f"{folder}: {len(paths):,} images are in no list ({listed(sorted(paths))})"
            )
    compared = dict(PUBLISHED)
    if not (layout.root / VALIDATION).is_file():
        del compared["train"]
    problems += _differences(everything, compared)
    if lists == "train":
        compared.pop("train", None)  # what is published is the sum of both lists
    return Reading(records=records, problems=problems, published=compared)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a list."""

    number: int
    path: str
    person_id: int
    person_of_path: int | None
    """What folder and file name say; None where they differ."""
    camera_id: int


def _lines(path: Path, *, folder: str, earlier: dict[str, str]) -> list[_Line]:
    """Read a list; `earlier` has the places of the images of lists before, and takes these."""
    if not path.is_file():  # or a pipe, which would wait for ever
        raise DataError(
            f"{path} is missing: MSMT17 has {', '.join(LISTS)}; put the lists of your download "
            "beside the images"
        )
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the list {path}: {error}; get it again") from error
    lines: list[_Line] = []
    strange: list[str] = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        image, _, person = text.strip().rpartition(" ")
        image = image.strip()
        match = _PATH.fullmatch(image)
        place = f"{path.name}, line {number}"
        if match is None or not re.fullmatch(r"[0-9]{1,4}", person):
            strange.append(f"line {number}: {text.strip()[:80]!r}")
            continue
        if (first := earlier.setdefault(f"{folder}/{image}", place)) is not place:
            strange.append(f"line {number}: {image} is in {first} already")
            continue
        of_folder, of_name = int(match[1]), int(match[2])
        lines.append(
            _Line(
                number=number,
                path=image,
                person_id=int(person),
                person_of_path=of_folder if of_folder == of_name else None,
                camera_id=int(match[3]),
            )
        )
    if strange:
        raise DataError(
            f"{path} has {len(strange):,} lines that are not MSMT17's: "
            f"{listed(strange, separator='; ')}; a line is like "
            "0000/0000_045_12_0303morning_0006_2.jpg 0, each image in one list; "
            "get the lists of your download again"
        )
    return lines


def _differences(records: list[ImageRecord], published: Mapping[Split, SplitCounts]) -> list[str]:
    counts = count_splits(records)
    return [
        difference
        for split in SPLITS
        if split in published
        for difference in count_differences(split, counts[split], published[split])
    ]


def _layout_of(folder: Path) -> Layout | None:
    """Tell whether a folder holds lists and images."""
    version = _version_of(folder)
    if version is None or not any((folder / name).is_file() for name in LISTS):
        return None
    return Layout(root=folder, version=version)


def _version_of(folder: Path) -> str | None:
    """Tell from the names of its folders which version's images a folder has."""
    found = [
        version for version, names in FOLDERS.items() if any((folder / n).is_dir() for n in names)
    ]
    if len(found) > 1:
        raise DataError(
            f"{folder} has the images of V1 ({', '.join(FOLDERS['V1'])}) and of V2 "
            f"({', '.join(FOLDERS['V2'])}); keep each version in its own folder, with its lists"
        )
    return found[0] if found else None


def _images_in(folder: Path) -> set[str]:
    """List the visible .jpg files of all persons' folders, as the lists name them."""
    if not folder.is_dir():
        return set()
    return {
        f"{person.name}/{image.name}"
        for person in folder.iterdir()
        if person.is_dir() and not person.name.startswith(".")
        for image in person.iterdir()
        if image.suffix.lower() == ".jpg" and not image.name.startswith(".")
    }
