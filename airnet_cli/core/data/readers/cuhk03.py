"""CUHK03 by the new protocol (Li et al. 2014; split by Zhong et al. 2017), from image folders.

The official images come in two cuts: boxes drawn by hand (`labeled`) and found by a detector
(`detected`); each is a data set of its own. A file is called `PPPP_cC_N.png` (some copies have
`.jpg`): person, camera, number. An identity is seen by one of five pairs of cameras, which all call
their cameras 1 and 2. `cuhk03_raw` makes the same of the official `cuhk-03.mat`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.problems import folder_differences, listed
from airnet_cli.core.data.records import SPLITS, ImageRecord, Split
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

Boxes = Literal["labeled", "detected"]
BOXES: tuple[Boxes, ...] = get_args(Boxes)

FOLDERS: Mapping[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}

PUBLISHED: Mapping[Boxes, Mapping[Split, SplitCounts]] = {
    "labeled": {
        "train": SplitCounts(images=7_368, ids=767, cameras=2),
        "query": SplitCounts(images=1_400, ids=700, cameras=2),
        "gallery": SplitCounts(images=5_328, ids=700, cameras=2),
    },
    "detected": {
        "train": SplitCounts(images=7_365, ids=767, cameras=2),
        "query": SplitCounts(images=1_400, ids=700, cameras=2),
        "gallery": SplitCounts(images=5_332, ids=700, cameras=2),
    },
}
"""Of the new protocol; its README has the numbers of images, its files those of identities."""

_NAME = re.compile(r"([0-9]{4})_c([12])_[0-9]+\.(png|jpg)")


def split_rule(boxes: Boxes) -> str:
    """Say in one line where the split comes from."""
    return f"CUHK03 new protocol (767 / 700 identities), {boxes} boxes"


def find_root(source: Path, *, boxes: Boxes) -> Path | None:
    """Find the folder of these boxes that holds `bounding_box_train` and its siblings.

    It is `source`, its folder `labeled` or `detected`, or that of one folder inside it. None if
    there is no such folder, and no sign that one was meant.

    Raises:
        DataError: more than one, the other boxes only, or only a part of them.
    """
    other = _other(boxes)
    if _looks_right(source):
        if source.name == other:
            raise DataError(
                f"{source} has the {other} boxes of CUHK03, not the {boxes} ones; give the folder "
                f"{boxes}, or run: airnet prepare-data cuhk03-{other} {source}"
            )
        return source
    inside = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    found = [folder / boxes for folder in inside if _looks_right(folder / boxes)]
    if len(found) > 1:
        raise DataError(
            f"{source} holds more than one copy of CUHK03 "
            f"({', '.join(path.relative_to(source).as_posix() for path in found)}); "
            "give one of them"
        )
    if found:
        return found[0]
    if source.name in FOLDERS.values():
        raise DataError(
            f"{source} is only a part of CUHK03; give the folder above it: {source.parent}"
        )
    if any(_looks_right(folder / other) for folder in inside):
        raise DataError(
            f"{source} has the {other} boxes of CUHK03 only, not the {boxes} ones; give their "
            f"folder, or run: airnet prepare-data cuhk03-{other} {source}"
        )
    return None


def read(root: Path, *, progress: Progress = silent) -> list[ImageRecord]:
    """Read the labels of all images under `root`, which comes from `find_root`.

    Files that are hidden or neither `.png` nor `.jpg` are not images; a missing folder gives no
    records.

    Raises:
        DataError: names that say nothing; the first ten are listed.
    """
    records: list[ImageRecord] = []
    strange: list[str] = []
    for split in SPLITS:
        folder = root / FOLDERS[split]
        for name in _image_names(folder) if folder.is_dir() else []:
            match = _NAME.fullmatch(name)
            path = f"{folder.name}/{name}"
            # 0000 would be a distractor, and CUHK03 has none.
            if match is None or int(match[1]) == 0:
                strange.append(path)
                continue
            records.append(
                ImageRecord(
                    path=path, person_id=int(match[1]), camera_id=int(match[2]), split=split
                )
            )
        progress("reading names", len(records), None, "images")
    if strange:
        raise DataError(
            f"{len(strange):,} file names under {root} are not those of CUHK03's new protocol: "
            f"{listed(strange)}; a name is like 0001_c1_1.png (or .jpg), person 0001 or later, "
            "camera 1 or 2; take these files out or unpack the archive again"
        )
    return records


def differences(root: Path, counts: Mapping[Split, SplitCounts], *, boxes: Boxes) -> list[str]:
    """Name what is missing or extra against the published counts; empty for the full set."""
    other = _other(boxes)
    if counts == PUBLISHED[other]:
        return [f"these are the {other} boxes (airnet prepare-data cuhk03-{other})"]
    return folder_differences(root, FOLDERS, counts=counts, published=PUBLISHED[boxes])


def _other(boxes: Boxes) -> Boxes:
    return "detected" if boxes == "labeled" else "labeled"


def _looks_right(folder: Path) -> bool:
    """Tell whether a folder is the data set's: `query` alone is too common a name to go by."""
    return (folder / FOLDERS["train"]).is_dir() or (folder / FOLDERS["gallery"]).is_dir()


def _image_names(folder: Path) -> list[str]:
    """List the visible images, sorted: the order of a folder differs between machines."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and path.suffix.lower() in (".png", ".jpg")
        and path.is_file()
    )
