"""CUHK03 by the new protocol (Li et al. 2014; split by Zhong et al. 2017), from image folders.

The official images come in two cuts: boxes drawn by hand (`labeled`) and found by a detector
(`detected`); each is a data set of its own. A file is called `PPPP_cC_N.png` (some copies have
`.jpg`): person, camera, number. An identity is seen by one of five pairs of cameras, which all call
their cameras 1 and 2. `cuhk03_mat` makes the same of the official `cuhk-03.mat`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.readers.split_folders import (
    FOLDERS,
    SplitFolders,
    has_splits,
    only_copy,
    with_folders,
)
from airnet_cli.core.data.records import Split
from airnet_cli.errors import DataError

Boxes = Literal["labeled", "detected"]
BOXES: tuple[Boxes, ...] = get_args(Boxes)


def _recipe(boxes: Boxes, train: int, gallery: int) -> SplitFolders:
    return SplitFolders(
        title="CUHK03's new protocol",
        # Person 0000 would be a distractor, and CUHK03 has none.
        name=re.compile(r"(?P<person>[0-9]{4})_c(?P<camera>[12])_[0-9]+\.(png|jpg)"),
        example="0001_c1_1.png (or .jpg), person 0001 or later, camera 1 or 2",
        suffixes=(".png", ".jpg"),
        has_junk=False,
        split_rule=f"CUHK03 new protocol (767 / 700 identities), {boxes} boxes",
        # The protocol's README has the numbers of images, its files those of identities.
        published={
            "train": SplitCounts(images=train, ids=767, cameras=2),
            "query": SplitCounts(images=1_400, ids=700, cameras=2),
            "gallery": SplitCounts(images=gallery, ids=700, cameras=2),
        },
    )


RECIPES: dict[Boxes, SplitFolders] = {
    "labeled": _recipe("labeled", train=7_368, gallery=5_328),
    "detected": _recipe("detected", train=7_365, gallery=5_332),
}


def find_root(source: Path, *, boxes: Boxes) -> Path | None:
    """Find the folder of these boxes with `bounding_box_train` and its siblings.

    It is `source`, its folder `labeled` or `detected`, or that of one folder inside it. None if
    there is no such folder, and no sign that one was meant.

    Raises:
        DataError: more than one, the other boxes only, or only a part of them.
    """
    other = _other(boxes)
    if has_splits(source) and source.name != other:
        return source
    inside = with_folders(source)
    found = [folder / boxes for folder in inside if has_splits(folder / boxes)]
    root = only_copy(source, found, title="CUHK03", parts=FOLDERS.values())
    others = [source, *(folder / other for folder in inside)]
    if root is None and any(has_splits(folder) for folder in others):
        raise DataError(
            f"{source} has only the {other} boxes of CUHK03, not the {boxes} ones; give the folder "
            f"{boxes}, or run: airnet prepare-data cuhk03-{other} {source}"
        )
    return root


def differences(root: Path, counts: Mapping[Split, SplitCounts], *, boxes: Boxes) -> list[str]:
    """Name what is missing or extra against the published counts; empty for the full set."""
    other = _other(boxes)
    if counts == RECIPES[other].published:
        return [f"these are the {other} boxes (airnet prepare-data cuhk03-{other})"]
    return RECIPES[boxes].differences(root, counts)


def _other(boxes: Boxes) -> Boxes:
    return "detected" if boxes == "labeled" else "labeled"
