"""Market-1501 (Zheng et al. 2015): the official folder becomes image records.

A file is called `PPPP_cCsS_FFFFFF_BB.jpg`: person, camera (1-6), sequence, frame, box. Person `-1`
is junk (a bad detection), `0000` a distractor (nobody who is searched for); both are found in the
gallery only. Some files of the official release end in `.jpg.jpg`, a `Thumbs.db` lies in each
folder, and archives made on a Mac add `._*.jpg`.
"""

import re
from pathlib import Path

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.readers.split_folders import (
    FOLDERS,
    SplitFolders,
    has_splits,
    only_copy,
    with_folders,
)
from airnet_cli.errors import DataError

RECIPE = SplitFolders(
    title="Market-1501",
    # [0-9], not \d: that would take the digits of all scripts.
    name=re.compile(
        r"(?P<person>-1|[0-9]{4})_c(?P<camera>[1-6])s[0-9]_[0-9]{6}_[0-9]{2}\.jpg(\.jpg)?"
    ),
    example="0002_c1s1_000451_03.jpg, -1 and 0000 only in bounding_box_test",
    suffixes=(".jpg",),
    has_junk=True,
    split_rule="Market-1501 official: bounding_box_train, query, bounding_box_test",
    # Of the release v15.09.15; its readme.txt has the numbers of images and identities.
    published={
        "train": SplitCounts(images=12_936, ids=751, cameras=6),
        "query": SplitCounts(images=3_368, ids=750, cameras=6),
        "gallery": SplitCounts(images=19_732, ids=750, cameras=6, distractors=2_798, junk=3_819),
    },
)


def find_root(source: Path) -> Path:
    """Find the folder with `bounding_box_train` and its siblings: `source` or one inside it.

    Raises:
        DataError: there is none, or more than one.
    """
    advice = "give the Market-1501-v15.09.15 folder or its zip"
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; {advice}")
    if has_splits(source):
        return source
    found = [folder for folder in with_folders(source) if has_splits(folder)]
    root = only_copy(source, found, title="Market-1501", parts=FOLDERS.values())
    if root is None:
        raise DataError(
            f"{source} is not Market-1501: it has no folder {' or '.join(FOLDERS.values())}; "
            f"{advice}"
        )
    return root
