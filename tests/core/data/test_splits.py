"""Splits: nobody on both sides, every query with an answer, the same again with one seed."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airnet_cli.core.data.records import ImageRecord, NamedImage
from airnet_cli.core.data.splits import hold_out, number, split_identities, split_people
from airnet_cli.errors import DataError


def people(shots: dict[str, dict[str | None, int]]) -> list[NamedImage]:
    """Images of people by cameras, so many each."""
    return [
        NamedImage(f"{person}/{camera}_{index}.jpg", person, camera)
        for person, by_camera in shots.items()
        for camera, count in by_camera.items()
        for index in range(count)
    ]


def splits_of(records) -> dict[str, list[str]]:
    found = defaultdict(list)
    for record in records:
        found[record.split].append(record.path)
    return found


SHOTS = st.dictionaries(
    st.integers(1, 30).map(str),
    st.dictionaries(st.sampled_from("123"), st.integers(1, 3), min_size=1),
    min_size=2,
)


@settings(deadline=None)
@given(shots=SHOTS, test_share=st.sampled_from([0.2, 0.5, 0.8]), seed=st.integers(0, 5))
def test_every_query_has_an_answer(shots, test_share, seed) -> None:
    """By another camera, in the gallery; nobody on both sides; one query of a camera at most."""
    images = people(shots)
    try:
        split = split_people(images, test_share=test_share, seed=seed)
    except DataError as error:
        if "no query would have a right answer" not in str(error):
            raise
        return
    assert sorted(record.path for record in split.records) == sorted(i.path for i in images)
    people_of, queries = defaultdict(set), []
    gallery = defaultdict(set)
    for record in split.records:
        people_of["train" if record.split == "train" else "test"].add(record.person_id)
        if record.split == "query":
            queries.append((record.person_id, record.camera_id))
        if record.split == "gallery":
            gallery[record.person_id].add(record.camera_id)
    assert not people_of["train"] & people_of["test"]
    assert people_of["train"]
    assert queries
    assert len(queries) == len(set(queries))
    if len({image.camera for image in images}) > 1:
        assert all(gallery[person] - {camera} for person, camera in queries)
        searched = {person for person, _ in queries}
        for person in people_of["test"] - searched:
            assert len(shots[str(person)]) == 1
    else:
        assert all(gallery[person] for person, _ in queries)


@pytest.mark.parametrize(
    ("by_camera", "num_queries"),
    [
        pytest.param({"1": 3, "2": 2, "3": 4}, 3, id="one query of each camera"),
        pytest.param({"1": 2, "2": 2, "3": 1}, 3, id="a camera's only image may be one"),
        pytest.param({"1": 1, "2": 1}, 1, id="one of two images stays to be found"),
        pytest.param({"1": 5, "2": 1}, 1, id="the other camera keeps its only image"),
        pytest.param({"1": 5, "2": 1, "3": 1}, 2, id="one other camera keeps its only image"),
        pytest.param({"1": 1, "2": 1, "3": 1}, 2, id="one of three images stays"),
        pytest.param({"1": 9}, 0, id="seen by one camera"),
    ],
)
def test_queries(by_camera: dict[str, int], num_queries: int) -> None:
    """As many as can be answered."""
    images = people({"1": by_camera, "2": {"1": 2, "2": 2}})
    split = split_people(images, test_share=1, seed=1)
    queries = [r for r in split.records if r.split == "query" and r.person_id == 1]
    assert len(queries) == num_queries
    assert split.num_one_camera == (num_queries == 0)


@pytest.mark.parametrize("camera", [None, "7"], ids=["no cameras", "one camera"])
def test_one_camera(camera: str | None) -> None:
    """One query of each person who has another image."""
    images = people({"eve": {camera: 3}, "adam": {camera: 2}, "cain": {camera: 1}})
    split = split_people(images, test_share=1, seed=1)
    found = splits_of(split.records)
    assert sorted(path.split("/")[0] for path in found["query"]) == ["adam", "eve"]
    assert len(found["gallery"]) == 4
    assert split.num_one_camera == 1
    assert {record.camera_id for record in split.records} == {0 if camera is None else 7}


def test_same_seed_same_split() -> None:
    """In any order of the images; another seed, another split; a smaller share is a part."""
    images = people({str(n): {"1": 3, "2": 3} for n in range(1, 41)})

    def test_people(share: float, seed: int, given=images) -> set[str]:
        records = split_people(given, test_share=share, seed=seed).records
        return {record.path for record in records if record.split == "query"}

    assert test_people(0.5, 1) == test_people(0.5, 1, images[::-1])
    assert test_people(0.5, 1) != test_people(0.5, 2)
    assert test_people(0.25, 1) < test_people(0.5, 1)


@pytest.mark.parametrize(("share", "num_test"), [(0, 0), (0.01, 1), (0.5, 2), (0.99, 3), (1, 4)])
def test_share(share: float, num_test: int) -> None:
    """Between 0 and 1 there is somebody on either side."""
    images = people({str(n): {"1": 2, "2": 2} for n in range(1, 5)})
    split = split_people(images, test_share=share, seed=1)
    assert split.num_test == num_test
    train = {record.person_id for record in split.records if record.split == "train"}
    assert len(train) == 4 - num_test


@pytest.mark.parametrize(
    ("texts", "lowest", "ids", "names"),
    [
        pytest.param(["0007", "12"], 1, {"0007": 7, "12": 12}, {}, id="numbers stay"),
        pytest.param(["0", "10", "9"], 1, {"0": 1, "9": 2, "10": 3}, {1: "0", 2: "9", 3: "10"},
                     id="0 would be a distractor"),
        pytest.param(["0", "1"], 0, {"0": 0, "1": 1}, {}, id="0 is a camera"),
        pytest.param(["7", "007"], 1, {"007": 1, "7": 2}, {1: "007", 2: "7"},
                     id="one number twice"),
        pytest.param(["eve", "2", "10"], 1, {"2": 1, "10": 2, "eve": 3},
                     {1: "2", 2: "10", 3: "eve"}, id="numbers and names"),
        pytest.param([], 1, {}, {}, id="none"),
    ],
)  # fmt: skip
def test_number(texts, lowest, ids, names) -> None:
    """Numbers that can stay do; others are counted from 1 and keep their names beside them."""
    assert number(texts, lowest=lowest) == (ids, names)


@pytest.mark.parametrize(
    ("shots", "share", "message"),
    [
        pytest.param({"-1": {"1": 1}, "2": {"1": 1}}, 0.5, "a person -1, which marks junk",
                     id="junk"),
        pytest.param({"1": {"1": 2, "2": 2}}, 0.5, "one identity only, which can't be split",
                     id="one person"),
        pytest.param({"1": {"1": 2}, "2": {"2": 2}}, 1,
                     "each of the 2 test identities was seen by one camera only; add images of the "
                     "same people by other cameras", id="nobody seen twice"),
        pytest.param({"1": {None: 1}, "2": {None: 1}}, 1,
                     "each of the 2 test identities has one image only", id="one image each"),
    ],
)  # fmt: skip
def test_what_can_not_be_split(shots, share: float, message: str) -> None:
    """Each is one line that says why and what to do."""
    with pytest.raises(DataError, match=message):
        split_people(people(shots), test_share=share, seed=1)


PEOPLE = [person for person in range(10, 30) for _ in range(3)]


def test_without_a_wish_everybody_is_trained_on():
    """No draw: the classes are all identities, sorted, whatever the seed."""
    for seed in (1, 2):
        split = split_identities(reversed(PEOPLE), train_ids=0, val_ids=0, seed=seed)
        assert (split.train, split.validation) == (tuple(range(10, 30)), ())


@pytest.mark.parametrize(("train_ids", "val_ids"), [(5, 0), (0, 4), (5, 4), (16, 4)])
def test_the_two_sets_are_as_large_as_asked_and_share_nobody(train_ids, val_ids):
    """Sizes are met; nobody is in both; all are people of the data set."""
    split = split_identities(PEOPLE, train_ids=train_ids, val_ids=val_ids, seed=3)
    assert len(split.train) == (train_ids or 20 - val_ids)
    assert len(split.validation) == val_ids
    assert len({*split.train, *split.validation}) == len(split.train) + val_ids
    assert {*split.train, *split.validation} <= set(PEOPLE)
    assert list(split.train) == sorted(split.train)


def test_the_seed_decides_who():
    """The same people from any order of images; fewer identities are a part of more."""

    def drawn(seed: int, people: list[int], train_ids: int = 8) -> tuple[int, ...]:
        return split_identities(people, train_ids=train_ids, val_ids=4, seed=seed).train

    assert drawn(1, PEOPLE) == drawn(1, PEOPLE[::-1])
    assert set(drawn(1, PEOPLE)) < set(drawn(1, PEOPLE, train_ids=12))
    assert len({drawn(seed, PEOPLE) for seed in range(5)}) == 5


@pytest.mark.parametrize(("train_ids", "val_ids"), [(21, 0), (17, 4), (0, 21)])
def test_more_than_there_are_is_refused(train_ids, val_ids):
    """The line says how many there are and which settings ask for too many."""
    with pytest.raises(DataError, match=r"there are 20 training identities; training\.val_ids"):
        split_identities(PEOPLE, train_ids=train_ids, val_ids=val_ids, seed=1)


def records_of(shots: dict[int, dict[int, int]]) -> list[ImageRecord]:
    """So many training images of people by cameras."""
    return [
        ImageRecord(f"{person}_c{camera}_{index}.jpg", person, camera, "train")
        for person, by_camera in shots.items()
        for camera, count in by_camera.items()
        for index in range(count)
    ]


TRAINING_SHOTS = st.dictionaries(
    st.integers(0, 30),
    st.dictionaries(st.integers(0, 3), st.integers(1, 3), min_size=1),
    min_size=3,
)


@settings(deadline=None)
@given(shots=TRAINING_SHOTS, seed=st.integers(0, 3))
def test_every_held_out_query_has_an_answer(shots, seed):
    """By another camera where there are two, else another image; each held-out image is there once,
    and nobody is a distractor.
    """
    person_ids = sorted(shots)[:-1]
    records = records_of(shots)
    try:
        held_out = hold_out(records, person_ids=person_ids, seed=seed)
    except DataError:
        return
    expected = [r.path for r in records if r.person_id in person_ids]
    assert sorted(r.path for r in held_out.records) == sorted(expected)
    gallery, queries = defaultdict(list), []
    for record in held_out.records:
        assert person_ids[record.person_id - 1] == int(record.path.split("_")[0])
        if record.split == "query":
            queries.append((record.person_id, record.camera_id))
        else:
            assert record.split == "gallery"
            gallery[record.person_id].append(record.camera_id)
    assert queries
    assert len(set(queries)) == len(queries)
    assert held_out.camera_filter == (len({r.camera_id for r in records}) > 1)
    for person_id, camera_id in queries:
        cameras = gallery[person_id]
        assert any(c != camera_id for c in cameras) if held_out.camera_filter else cameras


def test_the_seed_decides_and_nothing_else():
    """Neither the order of images nor who else is held out; another seed asks with others."""
    images = records_of({person: {1: 5, 2: 5} for person in range(1, 9)})

    def queries(seed, people=(2, 5), given=images):
        held_out = hold_out(given, person_ids=people, seed=seed)
        return {r.path for r in held_out.records if r.split == "query"}

    assert queries(1) == queries(1, given=images[::-1])
    assert queries(1) < queries(1, people=(2, 3, 5))
    assert len({frozenset(queries(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ({1: {1: 4}, 2: {2: 4}}, "none of the 2 .* was seen by a second camera.*val_ids"),
        ({1: {1: 1}, 2: {1: 1}}, "none of the 2 .* has a second image"),
    ],
    ids=["one camera each", "one image each"],
)
def test_nobody_to_search_for(shots, message):
    """One line that says why and which setting to change."""
    with pytest.raises(DataError, match=message):
        hold_out(records_of(shots), person_ids=[1, 2], seed=0)
