"""Ranked lists: one result type for match, visualize, pictures, pages and JSON. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airnet_cli.core.data.records import DISTRACTOR, JUNK

MatchState = Literal["right", "wrong", "ignored", "junk", "unknown", "same", "unjudged"]
"""By labels: right, wrong, ignored (same person, same camera), junk, unknown (no label).
By a threshold: same (person), unknown; unjudged without a threshold."""

NOT_RANKED: frozenset[MatchState] = frozenset({"ignored", "junk"})
"""States of images that are shown in the list but have no rank."""

Verdict = Literal["same person", "unknown"]


@dataclass(frozen=True, slots=True)
class RankedMatch:
    """One gallery image of a ranked list."""

    rank: int | None
    """From 1; None for images that are not ranked."""
    row: int | None
    """Row of the gallery, from 0; None in Milvus, whose rows have no order."""
    name: str
    """Path as seen from the current folder, or URL."""
    score: float
    """Cosine, -1 to 1."""
    state: MatchState
    columns: Mapping[str, str]
    """The row's cells in the gallery's table, without the path."""
    distance: float | None = None
    """Re-ranked distance, 0 to 1; None without re-ranking."""

    @property
    def path(self) -> Path:
        """The image file; no file if `name` is a URL."""
        return Path(self.name)

    @property
    def verdict(self) -> Verdict | None:
        """What the threshold says; None without one."""
        if self.state == "same":
            return "same person"
        return "unknown" if self.state == "unknown" else None

    @property
    def rank_text(self) -> str:
        """The rank, or "-" for images that are not ranked."""
        return "-" if self.rank is None else str(self.rank)

    @property
    def caption(self) -> str:
        """Who is on the image and which camera took it, or the file's name."""
        return describe(self.columns) or self.path.name


@dataclass(frozen=True, slots=True)
class RankedList:
    """A query and its matches, best first."""

    query: str
    """Path of the image, or `features.npy[3]` for a row of features without a known image."""
    image: Path | None
    """The query's image, where it is known."""
    label: str
    """A heading: the query's name, and what ranked the matches."""
    matches: tuple[RankedMatch, ...]


def describe(columns: Mapping[str, str]) -> str:
    """Person and camera in a few words; empty if they are not known.

    >>> describe({"person_id": "12", "camera_id": "3"})
    'person 12, c3'
    """
    person, camera = columns.get("person_id", ""), columns.get("camera_id", "")
    who = {"": "", str(JUNK): "junk", str(DISTRACTOR): "distractor"}.get(person, f"person {person}")
    return ", ".join(word for word in (who, f"c{camera}" if camera else "") if word)


def judge(query: Mapping[str, str], match: Mapping[str, str]) -> MatchState:
    """What a gallery image is for a labeled query, by the protocol of the evaluation.

    Args:
        query: its `person_id` and `camera_id`, where known.
        match: the columns of the gallery image.
    """
    person, other = query.get("person_id", ""), match.get("person_id", "")
    if other == str(JUNK):
        return "junk"
    if not person or not other:
        return "unknown"
    if person != other:
        return "wrong"
    camera = query.get("camera_id", "")
    return "ignored" if camera and camera == match.get("camera_id") else "right"
