"""Seeded splits: who is trained on, who is tested on, which images are queries.

- `split_people`: the user's own images become train, query and gallery.
- `split_identities`: which training identities are trained on, which are held out.
- `hold_out`: held-out training people become a query and gallery of their own.

As in Market-1501 and CUHK03, each camera of a test person gives one query that has a right answer
by another camera, and the other images are the gallery. With a single camera, each person gives one
query, and images by the query's camera must count as answers (`camera_filter` off).

Each draw has a stream of its own beside the seed, so that draws with one seed are independent.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airnet_cli.core.data.records import JUNK, ImageRecord, NamedImage, Split
from airnet_cli.errors import DataError

NO_CAMERA = 0
"""`camera_id` of all images where cameras are not known."""

IDENTITY_STREAM, PEOPLE_STREAM, HELD_OUT_STREAM = 2, 3, 4

ByCamera = Mapping[int, Sequence[str]]
"""The images of one person, by the camera that took them."""


@dataclass(frozen=True, slots=True)
class SplitPeople:
    """A split of the user's own images."""

    records: list[ImageRecord]
    person_names: Mapping[int, str]
    """The text that each person id stands for; empty if the ids are the user's own numbers."""
    camera_names: Mapping[int, str]
    """The same for camera ids."""
    num_test: int
    """Test identities."""
    num_one_camera: int
    """Test identities without a query, since a single camera saw them."""


def split_people(images: Sequence[NamedImage], *, test_share: float, seed: int) -> SplitPeople:
    """Number people and cameras, draw the test people, and split their images.

    The same images, share and seed give the same split. With one seed, the test people of a smaller
    share are a subset of those of a larger one.

    Args:
        images: labeled images, in any order.
        test_share: share of the identities to test on, from 0 (train on all) to 1 (test on all).
            Between them, each side gets at least one identity.
        seed: draws test people and queries.

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
    queries = {
        person_id: draw_queries(
            shots[person_id],
            np.random.default_rng((seed, PEOPLE_STREAM, person_id)),
            by_image=one_camera,
        )
        for person_id in sorted(test)
    }
    num_one_camera = sum(not drawn for drawn in queries.values())
    if test and num_one_camera == len(test):
        raise DataError(_why_no_answers(len(test), one_camera))

    def split(person_id: int, path: str) -> Split:
        if person_id not in test:
            return "train"
        return "query" if path in queries[person_id] else "gallery"

    return SplitPeople(
        records=[
            ImageRecord(path, person_id, camera_id, split(person_id, path))
            for person_id in identities
            for camera_id, paths in shots[person_id].items()
            for path in paths
        ],
        person_names=person_names,
        camera_names=camera_names,
        num_test=len(test),
        num_one_camera=num_one_camera,
    )


def _why_no_answers(num_test: int, one_camera: bool) -> str:
    seen = "has one image only" if one_camera else "was seen by one camera only"
    return (
        f"no query would have a right answer: each of the {num_test:,} test identities "
        f"{seen}; add images of the same people"
        f"{'' if one_camera else ' by other cameras'}, check the ids, "
        "try another --seed, or train on everybody with --test-share 0"
    )


def _draw_test(identities: Sequence[int], *, test_share: float, seed: int) -> set[int]:
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


def number(texts: Iterable[str], *, lowest: int) -> tuple[dict[str, int], dict[int, str]]:
    """Give each text a number; the second result names the numbers that were made up.

    Different whole numbers from `lowest` on keep their values and need no names. Otherwise all are
    numbered from 1 in order (numbers by size, before other texts).

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
    is_number = re.fullmatch(r"[0-9]{1,18}", text) is not None
    return not is_number, int(text) if is_number else 0, text


def draw_queries(by_camera: ByCamera, random: np.random.Generator, *, by_image: bool) -> set[str]:
    """Draw one query per camera, so that each has a right answer among the other images.

    Args:
        by_camera: one person's images.
        random: where the draws come from.
        by_image: for data of one camera: draw one of all images, if any other remains.

    Returns:
        The paths of the queries; empty if the person can't be searched for. Without `by_image`
        that is everyone whom a single camera saw.

    >>> random = np.random.default_rng(0)
    >>> sorted(draw_queries({1: ["a"], 2: ["b"], 3: ["c"]}, random, by_image=False))
    ['a', 'b']
    """
    if by_image:
        paths = [path for _, each in sorted(by_camera.items()) for path in each]
        return {paths[int(random.integers(len(paths)))]} if len(paths) > 1 else set()
    if len(by_camera) < 2:
        return set()
    drawn = {
        camera_id: paths[int(random.integers(len(paths)))]
        for camera_id, paths in sorted(by_camera.items())
    }
    # A query removes its camera's only image from the gallery. Two cameras with images left answer
    # every query; otherwise one camera has to keep its only image.
    only = [camera_id for camera_id in sorted(by_camera) if len(by_camera[camera_id]) == 1]
    if len(by_camera) - len(only) < 2:
        del drawn[only[int(random.integers(len(only)))]]
    return set(drawn.values())


@dataclass(frozen=True)
class IdentitySplit:
    """Two disjoint sets of training identities, each sorted: a class is an index into `train`, so
    labels are the same on every machine."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def split_identities(
    person_ids: Iterable[int], *, train_ids: int, val_ids: int, seed: int
) -> IdentitySplit:
    """Hold out `val_ids` of the identities and train on `train_ids` of the others (0: on all).

    With one seed, a smaller `train_ids` gives a subset of a larger one.

    Raises:
        DataError: there are fewer identities than asked for.

    >>> split_identities([7, 7, 3, 5], train_ids=0, val_ids=0, seed=1).train
    (3, 5, 7)
    """
    identities = sorted(set(person_ids))
    asked = val_ids + train_ids
    if asked > len(identities):
        raise DataError(
            f"there are {len(identities)} training identities; training.val_ids = {val_ids} and "
            f"training.train_ids = {train_ids} ask for {asked}"
        )
    drawn = np.random.default_rng((seed, IDENTITY_STREAM)).permutation(identities).tolist()
    end = asked if train_ids else None
    return IdentitySplit(
        train=tuple(sorted(drawn[val_ids:end])), validation=tuple(sorted(drawn[:val_ids]))
    )


@dataclass(frozen=True)
class HeldOut:
    """A retrieval problem among people who are not trained on."""

    records: tuple[ImageRecord, ...]
    """Queries and gallery. People are numbered from 1, since 0 and -1 have other meanings there."""
    camera_filter: bool
    """False if the training data has one camera only: then every other image is an answer."""


def hold_out(records: Iterable[ImageRecord], *, person_ids: Collection[int], seed: int) -> HeldOut:
    """Make query and gallery of the people `person_ids` in the training split `records`.

    The same people and seed give the same queries, no matter who else is held out.

    Raises:
        DataError: no query would have a right answer.
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
