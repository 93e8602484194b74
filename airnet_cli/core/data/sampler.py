"""P x K batches: P identities with K images each (paper 4.2; the epoch as in docs/method.md).

The batches of an epoch are planned at once from (seed, epoch), so that their number is exact, and
any epoch can be planned again without the ones before it (resuming).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class IdentitySampler(Sampler[list[int]]):
    """Batches of P identities x K images as lists of image indices.

    An epoch gives every identity its images, shuffled, in groups of K (a remainder below K is left
    out this time); an identity with fewer than K images gets one group in which some repeat.
    Batches draw P identities without replacement, one group of each, while P identities have
    groups left.
    """

    def __init__(
        self,
        person_ids: Sequence[int],
        *,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int,
    ) -> None:
        """Plan epochs over images whose identities are `person_ids` (N,).

        Raises:
            ValueError: fewer identities than a batch needs.
        """
        self._images: dict[int, list[int]] = defaultdict(list)
        for index, person_id in enumerate(person_ids):
            self._images[person_id].append(index)
        if len(self._images) < identities_per_batch:
            raise ValueError(
                f"batches of {identities_per_batch} identities need at least as many; "
                f"there are {len(self._images)}"
            )
        self._identities_per_batch = identities_per_batch
        self._images_per_identity = images_per_identity
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Plan the batches of `epoch` (0, 1, …): the same plan for the same seed and epoch."""
        self._batches = self._plan(np.random.default_rng((self._seed, epoch)))

    def __len__(self) -> int:
        """The exact number of batches of the epoch that is planned."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The planned batches; each P * K indices, the K images of an identity side by side."""
        return iter(self._batches)

    def _plan(self, random: np.random.Generator) -> list[list[int]]:
        groups = {
            person_id: self._group(np.asarray(images), random)
            for person_id, images in sorted(self._images.items())
        }
        available = list(groups)
        batches = []
        while len(available) >= self._identities_per_batch:
            chosen = random.choice(len(available), self._identities_per_batch, replace=False)
            drawn = [available[i] for i in chosen]
            batches.append([index for person_id in drawn for index in groups[person_id].pop()])
            available = [person_id for person_id in available if groups[person_id]]
        return batches

    def _group(self, images: np.ndarray, random: np.random.Generator) -> list[list[int]]:
        """Cut one identity's shuffled images into groups of K."""
        size = self._images_per_identity
        if len(images) < size:  # every image once, then repeats
            repeats = random.choice(images, size - len(images))
            return [[int(i) for i in (*images, *repeats)]]
        shuffled = random.permutation(images)
        return [
            [int(i) for i in shuffled[i : i + size]] for i in range(0, len(images) - size + 1, size)
        ]


class BatchShare(Sampler[list[int]]):
    """The part of each batch that one of several processes trains on: its share of the people."""

    def __init__(self, sampler: IdentitySampler, *, member: int, size: int) -> None:
        """Take the share of process `member` (0 for the first) of `size`, which divides P."""
        self._sampler = sampler
        self._member = member
        self._size = size

    def __len__(self) -> int:
        """The exact number of batches of the epoch that is planned."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[int]]:
        """The planned batches; P / size * K indices of each, the shares one behind the other."""
        for batch in self._sampler:
            images = len(batch) // self._size
            yield batch[self._member * images : (self._member + 1) * images]
