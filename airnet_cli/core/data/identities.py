"""Which of a data set's training people are trained on, and which are held out. Seeded."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from airnet_cli.errors import DataError


@dataclass(frozen=True)
class IdentitySplit:
    """Two disjoint sets of training identities, each sorted: a class is an index into `train`, so
    that labels are the same on every machine."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def split_identities(
    person_ids: Iterable[int], *, train_ids: int, val_ids: int, seed: int
) -> IdentitySplit:
    """Hold `val_ids` of the identities in `person_ids` out, and train on `train_ids` of the rest.

    Both are drawn with `seed`; with one seed a smaller `train_ids` is a part of a larger one. 0
    trains on all that are left.

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
    drawn = np.random.default_rng((seed, SPLIT_STREAM)).permutation(identities).tolist()
    end = asked if train_ids else None
    return IdentitySplit(
        train=tuple(sorted(drawn[val_ids:end])), validation=tuple(sorted(drawn[:val_ids]))
    )


SPLIT_STREAM = 2
"""Tells these random numbers from the sampler's and the augmentation's, which share the seed."""
