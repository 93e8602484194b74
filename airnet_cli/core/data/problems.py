"""Problems of a data set in words: lists that end after ten, differences from published counts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.records import SPLITS, Split

LISTED = 10
"""How many problems a message spells out."""


def listed(problems: Sequence[str], *, separator: str = ", ") -> str:
    """Join the first ten and count the others.

    >>> listed([str(number) for number in range(13)])
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more'
    """
    more = f" and {len(problems) - LISTED:,} more" if len(problems) > LISTED else ""
    return separator.join(problems[:LISTED]) + more


def folder_differences(
    root: Path,
    folders: Mapping[Split, str],
    *,
    counts: Mapping[Split, SplitCounts],
    published: Mapping[Split, SplitCounts],
) -> list[str]:
    """Name what is missing or extra in a set with a folder for each split; empty for the full set.

    A folder that is not there at all has one line instead of one for each count.
    """
    found: list[str] = []
    for split in SPLITS:
        if (root / folders[split]).is_dir():
            found += count_differences(folders[split], counts[split], published[split])
        else:
            found.append(f"{folders[split]}: the folder is missing")
    return found


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
