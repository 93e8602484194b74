"""People who are known by any text become numbered identities, split for training and test.

Seeded and disjoint: nobody is in both. Of the test people, each camera of each person gives one
query and the rest is the gallery, as in Market-1501 and CUHK03, so that every query has an answer
by another camera. Where there is one camera only, each person gives one query, and the scores need
`airnet evaluate --no-camera-filter`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airnet_cli.core.data.queries import draw_queries
from airnet_cli.core.data.readers.folder import FoundImage
from airnet_cli.core.data.records import JUNK, ImageRecord
from airnet_cli.errors import DataError

NO_CAMERA = 0
"""`camera_id` of all images where cameras are not known."""

PEOPLE_STREAM = 3
"""Tells these random numbers from others that share the seed."""


@dataclass(frozen=True, slots=True)
class SplitPeople:
    """A split of one's own images."""

    records: list[ImageRecord]
    person_names: Mapping[int, str]
    """What stood for each person id; empty where the ids are the numbers that stood there."""
    camera_names: Mapping[int, str]
    """The same for camera ids."""
    num_test: int
    """Test identities."""
    num_one_camera: int
    """How many of them can't be searched for, since one camera alone saw them."""


def split_people(images: Sequence[FoundImage], *, test_share: float, seed: int) -> SplitPeople:
    """Number people and cameras, draw the people to test on, and part their images.

    The same images, share and seed give the same split; with one seed, a smaller share's test
    people are a part of a larger one's.

    Args:
        images: with what their paths say, in any order.
        test_share: of the identities, from 0 (train on all) to 1 (test on all). Between them at
            least one identity is on either side.
        seed: of who is tested on and which images are queries.

    Raises:
        DataError: a person is called -1, one identity can't be split, or no query would have a
            right answer.
    """
    people = {image.person for image in images}
    if str(JUNK) in people:
        raise DataError(
            f"there is a person {JUNK}, which marks junk; take these images out, or list all in a "
            "table for airnet prepare-data csv, which knows junk and distractors"
        )
    person_ids, person_names = number(people, lowest=1)
    cameras = {image.camera for image in images if image.camera is not None}
    camera_ids, camera_names = number(cameras, lowest=0)
    shots: defaultdict[int, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for image in sorted(images, key=lambda image: image.path):
        camera_id = NO_CAMERA if image.camera is None else camera_ids[image.camera]
        shots[person_ids[image.person]][camera_id].append(image.path)

    identities = sorted(shots)
    test = _draw_test(identities, test_share=test_share, seed=seed)
    one_camera = len({camera_id for by_camera in shots.values() for camera_id in by_camera}) == 1
    records: list[ImageRecord] = []
    num_one_camera = 0
    for person_id in identities:
        by_camera = shots[person_id]
        queries: set[str] = set()
        if person_id in test:
            random = np.random.default_rng((seed, PEOPLE_STREAM, person_id))
            queries = draw_queries(by_camera, random, by_image=one_camera)
            num_one_camera += not queries
        for camera_id, paths in by_camera.items():
            records += [
                ImageRecord(
                    path=path,
                    person_id=person_id,
                    camera_id=camera_id,
                    split="train"
                    if person_id not in test
                    else ("query" if path in queries else "gallery"),
                )
                for path in paths
            ]
    if test and num_one_camera == len(test):
        seen = "has one image only" if one_camera else "was seen by one camera only"
        raise DataError(
            f"no query would have a right answer: each of the {len(test):,} test identities "
            f"{seen}; add images of the same people"
            f"{'' if one_camera else ' by other cameras'}, check the ids, "
            "try another --seed, or train on everybody with --test-share 0"
        )
    return SplitPeople(
        records=records,
        person_names=person_names,
        camera_names=camera_names,
        num_test=len(test),
        num_one_camera=num_one_camera,
    )


def number(texts: Iterable[str], *, lowest: int) -> tuple[dict[str, int], dict[int, str]]:
    """Give each text a number, and the names that the numbers need to be understood.

    Texts that are different whole numbers from `lowest` on keep them, and need no names. Others are
    counted from 1 in their order (numbers by size, before any other text).

    >>> number(["0007", "12"], lowest=1)
    ({'0007': 7, '12': 12}, {})
    >>> number(["eve", "adam"], lowest=1)
    ({'adam': 1, 'eve': 2}, {1: 'adam', 2: 'eve'})
    """
    ordered = sorted(set(texts), key=_order)
    values = {text: int(text) for text in ordered if re.fullmatch(r"[0-9]{1,18}", text)}
    different = len(set(values.values())) == len(ordered)
    if different and min(values.values(), default=lowest) >= lowest:
        return values, {}
    return (
        {text: index for index, text in enumerate(ordered, start=1)},
        dict(enumerate(ordered, start=1)),
    )


def _order(text: str) -> tuple[bool, int, str]:
    """Sort numbers by size, before other texts."""
    is_number = re.fullmatch(r"[0-9]{1,18}", text) is not None
    return not is_number, int(text) if is_number else 0, text


def _draw_test(identities: Sequence[int], *, test_share: float, seed: int) -> set[int]:
    """Draw whom to test on."""
    if not 0 <= test_share <= 1:
        raise ValueError(f"test_share is from 0 to 1, got {test_share}")
    num_test = round(test_share * len(identities))
    if 0 < test_share < 1:
        if len(identities) < 2:
            raise DataError(
                "there is one identity only, which can't be split into training and test; "
                "give images of more people, or --test-share 0 or 1"
            )
        num_test = min(max(num_test, 1), len(identities) - 1)
    drawn = np.random.default_rng((seed, PEOPLE_STREAM)).permutation(np.array(identities))
    return set(drawn[:num_test].tolist())
