"""MSMT17 (Wei et al. 2018), V1 and V2: the official lists become image records.

V1 has the folders `train` and `test`, V2, whose faces are masked, `mask_train_v2` and
`mask_test_v2`. Lists beside them (`list_train.txt`, `list_val.txt`, `list_query.txt`,
`list_gallery.txt`) have lines like `0000/0000_045_12_0303morning_0006_2.jpg 0`: path in `train` or
`test`, person. The third part of the file name is the camera (1-15).

Persons of both folders are counted from 0, though they are different people: here those of `test`
are moved by `TEST_SHIFT`, so no two people share an id and no query has the id of distractors.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airnet_cli.core.data.manifest import SplitCounts, count_splits
from airnet_cli.core.data.readers.split_folders import (
    count_differences,
    only_copy,
    visible_files,
    with_folders,
)
from airnet_cli.core.data.records import ImageRecord, Split
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, listed

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
class Reading:
    """What the lists say, compared with the folders."""

    root: Path
    """Folder of the lists, above the folders of images."""
    split_rule: str
    """Where the split comes from, in one line."""
    records: list[ImageRecord]
    """Images that are there; of the lists that were asked for."""
    problems: list[str]
    """What is missing, extra or contradictory, one line each; empty for the full set."""
    published: Mapping[Split, SplitCounts]
    """Published counts of the lists that were asked for: none for `list_train` alone."""


def read(source: Path, *, lists: Lists, progress: Progress = silent) -> Reading:
    """Read the lists in `source`, or one folder inside it, and compare them with the images.

    A listed image that does not exist is left out; where a list and a file name differ about the
    person, the list is right. Both are problems.

    Raises:
        DataError: `source` is not MSMT17; a list is missing, or has lines that can't be used (the
            first ten are shown).
    """
    root, version = _find(source)
    folders = FOLDERS[version]
    # Without list_val.txt its images are in no list, and the training counts mean nothing.
    is_complete = lists == "train+val" or (root / VALIDATION).is_file()
    existing = {folder: _images_in(root / folder) for folder in folders}
    records: list[ImageRecord] = []
    unused: list[ImageRecord] = []
    problems: list[str] = []
    earlier: dict[str, str] = {}
    for name, (part, split) in LISTS.items():
        if name == VALIDATION and not is_complete:
            continue
        folder = folders[part]
        lines = _read_list(root / name, folder, earlier)
        found = [line for line in lines if line.path in existing[folder]]
        problems += _problems(name, folder, lines, existing[folder])
        (unused if name == VALIDATION and lists == "train" else records).extend(
            ImageRecord(
                f"{folder}/{line.path}", line.person_id + part * TEST_SHIFT, line.camera_id, split
            )
            for line in found
        )
        progress("reading lists", len(records), None, "images")
    for folder in folders if is_complete else folders[1:]:
        if unlisted := [path for path in existing[folder] if f"{folder}/{path}" not in earlier]:
            problems.append(
                f"{folder}: {len(unlisted):,} images are in no list ({listed(sorted(unlisted))})"
            )
    counts = count_splits([*records, *unused])
    for split, published in PUBLISHED.items():
        if is_complete or split != "train":
            problems += count_differences(split, counts[split], published)
    # What is published is the sum of both lists.
    shown = {split: PUBLISHED[split] for split in PUBLISHED if lists != "train" or split != "train"}
    train = "list_train + list_val" if lists == "train+val" else "list_train alone"
    rule = f"MSMT17 {version} official: {train}, list_query, list_gallery; test ids + {TEST_SHIFT}"
    return Reading(root, rule, records, problems, published=shown)


def _find(source: Path) -> tuple[Path, str]:
    """Find the folder with the lists and the images, and which version it is."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the MSMT17_V1 or MSMT17_V2 folder")
    versions = {folder: _version_of(folder) for folder in with_folders(source)}
    with_images = [folder for folder, version in versions.items() if version]
    found = [each for each in with_images if any((each / name).is_file() for name in LISTS)]
    parts = [name for names in FOLDERS.values() for name in names]
    root = only_copy(source, found, title="MSMT17", parts=parts)
    if root is not None:
        return root, versions[root] or ""
    if with_images:
        raise DataError(
            f"{with_images[0]} has the images of MSMT17 but no list_train.txt and its siblings, "
            "which say who is on them; put the lists of your download into it"
        )
    raise DataError(
        f"{source} is not MSMT17: it has no lists (list_train.txt, ...) beside folders "
        f"{' and '.join(FOLDERS['V1'])}, or {' and '.join(FOLDERS['V2'])}; "
        "give the MSMT17_V1 or MSMT17_V2 folder"
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a list."""

    number: int
    path: str
    """Below the folder of training or test images."""
    person_id: int
    camera_id: int
    fits_path: bool
    """Whether folder and file name say the same person."""


def _read_list(path: Path, folder: str, earlier: dict[str, str]) -> list[_Line]:
    """Read a list; `earlier` says where each image was listed, and takes the images of this one."""
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: MSMT17 has {', '.join(LISTS)}; put the lists of your download "
            "beside the images"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the list {path}: {error}; get it again") from error
    lines: list[_Line] = []
    strange: list[str] = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        line = _parse(number, text)
        place = f"{path.name}, line {number}"
        if line is None:
            strange.append(f"line {number}: {text.strip()[:80]!r}")
        elif (first := earlier.setdefault(f"{folder}/{line.path}", place)) is not place:
            strange.append(f"line {number}: {line.path} is in {first} already")
        else:
            lines.append(line)
    if strange:
        raise DataError(
            f"{path} has {len(strange):,} lines that are not MSMT17's: "
            f"{listed(strange, separator='; ')}; a line is like "
            "0000/0000_045_12_0303morning_0006_2.jpg 0, each image in one list; "
            "get the lists of your download again"
        )
    return lines


def _parse(number: int, text: str) -> _Line | None:
    image, _, person = text.strip().rpartition(" ")
    match = _PATH.fullmatch(image.strip())
    if match is None or not re.fullmatch(r"[0-9]{1,4}", person):
        return None
    fits_path = int(match[1]) == int(match[2]) == int(person)
    return _Line(number, image.strip(), int(person), int(match[3]), fits_path)


def _problems(name: str, folder: str, lines: list[_Line], existing: set[str]) -> Iterator[str]:
    wrong = [
        f"line {line.number}: {line.path} {line.person_id}" for line in lines if not line.fits_path
    ]
    if wrong:
        yield (
            f"{name}: {len(wrong):,} persons are not those of the folder or file name "
            f"({listed(wrong)})"
        )
    missing = [line.path for line in lines if line.path not in existing]
    if missing:
        yield (
            f"{name}: {len(missing):,} of {len(lines):,} images are not in {folder} "
            f"({listed(missing)})"
        )


def _version_of(folder: Path) -> str | None:
    """Which version's images a folder has, by the names of its folders."""
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
    """The visible .jpg files of all persons' folders, as the lists name them."""
    persons = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        f"{person.name}/{name}"
        for person in persons
        if not person.name.startswith(".")
        for name in visible_files(person, (".jpg",))
    }
