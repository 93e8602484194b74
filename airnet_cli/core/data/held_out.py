"""Training people who are held out become a small query and gallery of their own. Seeded."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from airnet_cli.core.data.queries import draw_queries
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError


@dataclass(frozen=True)
class HeldOut:
    """A retrieval problem among people who are not trained on."""

    records: tuple[ImageRecord, ...]
    """Queries and gallery; people are numbered from 1 on, since 0 and less mean nobody there."""
    camera_filter: bool
    """False where the training data has one camera only: then any other image is an answer."""


def hold_out(records: Iterable[ImageRecord], *, person_ids: Collection[int], seed: int) -> HeldOut:
    """Make query and gallery of the people `person_ids` in the training split `records`.

    Each camera of each person gives one query that has a right answer by another camera, and the
    rest is the gallery. The same people and seed give the same queries, whoever else is held out.

    Raises:
        DataError: nobody can be searched for.
    """
    ordered = sorted(records, key=lambda record: record.path)
    by_image = len({record.camera_id for record in ordered}) == 1
    shots: defaultdict[int, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in ordered:
        if record.person_id in person_ids:
            shots[record.person_id][record.camera_id].append(record.path)
    numbers = {person_id: number for number, person_id in enumerate(sorted(shots), start=1)}
    queries: set[str] = set()
    for person_id, by_camera in shots.items():
        random = np.random.default_rng((seed, HELD_OUT_STREAM, person_id))
        queries |= draw_queries(by_camera, random, by_image=by_image)
    if not queries:
        seen = "has a second image" if by_image else "was seen by a second camera"
        raise DataError(
            f"none of the {len(shots)} training identities that are held out {seen}, so no epoch "
            f"can be chosen by them; raise training.val_ids, or set it to 0"
        )
    return HeldOut(
        tuple(
            replace(
                record,
                person_id=numbers[record.person_id],
                split="query" if record.path in queries else "gallery",
            )
            for record in ordered
            if record.person_id in numbers
        ),
        camera_filter=not by_image,
    )


HELD_OUT_STREAM = 4
"""Tells these random numbers from others that share the seed."""
