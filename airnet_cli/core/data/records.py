"""One image of a data set, and the words for its part. No torch here.

`person_id` and `camera_id` are the data set's own numbers (Market-1501: as in its file names).
"""

from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "query", "gallery"]
SPLITS: tuple[Split, ...] = get_args(Split)

JUNK = -1
"""`person_id` of a gallery image that evaluation ignores (a bad detection)."""

DISTRACTOR = 0
"""`person_id` of a gallery image that is a wrong answer for every query.

Only in the gallery: in a training split 0 is an identity like any other, and a query may not have
it.
"""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: where it lies, who is on it, who took it, what it is for."""

    path: str
    """Relative to the data set's root, with forward slashes."""
    person_id: int
    camera_id: int
    split: Split


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image of the user's own, and what its path or its table says about it."""

    path: str
    """Relative to the folder, with forward slashes."""
    person: str
    """Any text."""
    camera: str | None
    """Any text; None where cameras are not known."""
