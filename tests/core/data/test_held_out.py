"""Held-out training people: every query has an answer, nobody is lost, the same again."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.data.splits import hold_out
from airnet_cli.errors import DataError


def records_of(shots: dict[int, dict[int, int]]) -> list[ImageRecord]:
    """So many training images of people by cameras."""
    return [
        ImageRecord(f"{person}_c{camera}_{index}.jpg", person, camera, "train")
        for person, by_camera in shots.items()
        for camera, count in by_camera.items()
        for index in range(count)
    ]


SHOTS = st.dictionaries(
    st.integers(0, 30),
    st.dictionaries(st.integers(0, 3), st.integers(1, 3), min_size=1),
    min_size=3,
)


@settings(deadline=None)
@given(shots=SHOTS, seed=st.integers(0, 3))
def test_every_query_has_an_answer(shots, seed):
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


def test_one_query_of_each_camera():
    """Where each camera has two images, all of them ask."""
    shots = {person: {1: 2, 2: 2, 3: 2} for person in range(1, 5)}
    records = hold_out(records_of(shots), person_ids=[1, 3], seed=0).records
    asked = sorted((r.person_id, r.camera_id) for r in records if r.split == "query")
    assert asked == [(person, camera) for person in (1, 2) for camera in (1, 2, 3)]


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
