"""Which training people are trained on and which are held out."""

import pytest

from airnet_cli.core.data.splits import split_identities
from airnet_cli.errors import DataError

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
    """The same seed draws the same people from any order of images; another draws others."""

    def drawn(seed: int, people: list[int]) -> tuple[int, ...]:
        return split_identities(people, train_ids=8, val_ids=4, seed=seed).train

    assert drawn(1, PEOPLE) == drawn(1, PEOPLE[::-1])
    assert len({drawn(seed, PEOPLE) for seed in range(5)}) == 5


def test_fewer_identities_are_a_part_of_more():
    """Learning curves over the number of identities grow the same set."""
    few, many = (split_identities(PEOPLE, train_ids=count, val_ids=4, seed=1) for count in (6, 12))
    assert set(few.train) < set(many.train)
    assert few.validation == many.validation


@pytest.mark.parametrize(("train_ids", "val_ids"), [(21, 0), (17, 4), (0, 21)])
def test_more_than_there_are_is_refused(train_ids, val_ids):
    """The line says how many there are and which settings ask for too many."""
    with pytest.raises(DataError, match=r"there are 20 training identities; training\.val_ids"):
        split_identities(PEOPLE, train_ids=train_ids, val_ids=val_ids, seed=1)
