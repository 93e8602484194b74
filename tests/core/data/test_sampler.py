"""P x K batches: the golden sampler's invariants, exact lengths, plans that can be repeated."""

import itertools
from collections import Counter

import numpy as np
import pytest

from airnet_cli.core.data.sampler import BatchShare, IdentitySampler

EPOCHS = 30


def sampler_of(images_per_id, *, p=4, k=4, seed=0) -> tuple[IdentitySampler, list[int]]:
    """Return a sampler over identities with so many images each, in shuffled order."""
    person_ids = np.repeat(np.arange(len(images_per_id)) * 7, images_per_id)
    shuffled = np.random.default_rng(99).permutation(person_ids).tolist()
    sampler = IdentitySampler(shuffled, identities_per_batch=p, images_per_identity=k, seed=seed)
    return sampler, shuffled


def assert_epoch(sampler, person_ids, *, p, k):
    """Hold one planned epoch against the rules, each counted by hand."""
    counts = Counter(person_ids)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    drawn: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    for batch in batches:
        assert len(batch) == p * k
        assert all(isinstance(index, int) for index in batch)
        identities = [person_ids[index] for index in batch]
        side_by_side = [identities[i : i + k] for i in range(0, p * k, k)]
        assert all(len(set(group)) == 1 for group in side_by_side)
        assert len({group[0] for group in side_by_side}) == p  # an identity once in a batch
        for start, (person_id, *_) in zip(range(0, p * k, k), side_by_side, strict=True):
            group = batch[start : start + k]
            assert len(set(group)) == min(k, counts[person_id])
            groups[person_id] += 1
            if counts[person_id] >= k:
                drawn.update(group)
    assert not drawn or max(drawn.values()) == 1  # no image twice, where there are enough
    assert all(number <= max(1, counts[person_id] // k) for person_id, number in groups.items())
    left = [i for i, number in counts.items() if groups[i] < max(1, number // k)]
    assert len(left) < p  # it went on while P identities had groups
    return {index for batch in batches for index in batch}


def test_golden_invariants(golden_json):
    """No violation over the golden configurations, and epochs as long as the reference's."""
    for config in golden_json("random_identity_sampler")["configs"]:
        p, k = config["ids_per_batch"], config["num_instances"]
        sampler, person_ids = sampler_of(config["images_per_id"], p=p, k=k)
        yielded, seen = [], set()
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            seen |= assert_epoch(sampler, person_ids, p=p, k=k)
            yielded.append(len(sampler) * p * k)
        assert config["yielded_min"] <= min(yielded) <= max(yielded) <= config["yielded_max"]
        assert np.mean(yielded) == pytest.approx(config["yielded_mean"], rel=0.03)
        assert len(seen) == config["images_ever_drawn"]


@pytest.mark.parametrize(
    ("images_per_id", "p", "k", "batches"),
    [
        ([4, 4, 4, 4], 4, 4, 1),
        ([8, 8], 2, 2, 4),
        ([7, 7], 2, 4, 1),
        ([8, 8, 4], 2, 4, 2),
        ([1, 1, 1], 2, 4, 1),
        ([40, 1], 2, 4, 1),
    ],
    ids=["one", "square", "remainders", "uneven", "singletons", "lonely"],
)
def test_small_epochs(images_per_id, p, k, batches):
    """Epochs short enough to count by hand."""
    sampler, person_ids = sampler_of(images_per_id, p=p, k=k)
    assert_epoch(sampler, person_ids, p=p, k=k)
    assert len(sampler) == batches


def test_few_images_are_all_shown_before_one_is_repeated():
    """An identity with 3 images and K = 4 shows all three and one of them twice."""
    sampler, _ = sampler_of([3, 3], p=2, k=4)
    repeated = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        (batch,) = sampler
        for group in (batch[:4], batch[4:]):
            assert sorted(Counter(group).values()) == [1, 1, 2]
            repeated.add(Counter(group).most_common(1)[0][0])
    assert len(repeated) == 6  # not always the same one


def test_length_is_exact_at_any_time():
    """The number of batches of the epoch that is planned, before and after going through it."""
    sampler, _ = sampler_of([4, 5, 4, 5], p=2, k=2)
    lengths = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        promised = len(sampler)
        assert sum(1 for _ in sampler) == promised == len(sampler)
        lengths.append(promised)
    assert len(set(lengths)) > 1  # or exactness would be no achievement


def test_plans_depend_on_seed_and_epoch_alone():
    """Defect 11: the same seed and epoch, the same batches, whatever was planned before."""
    sizes = [9, 6, 5, 13, 4, 8]
    plans = {}
    for seed, epoch in itertools.product([0, 1], [0, 1, 2]):
        sampler, _ = sampler_of(sizes, seed=seed)
        sampler.set_epoch(epoch)
        plans[seed, epoch] = list(sampler)
    sampler, _ = sampler_of(sizes, seed=1)
    for epoch in (2, 0, 1, 2):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler) == plans[1, epoch]
    assert all(a != b for a, b in itertools.combinations(plans.values(), 2))


def test_a_new_sampler_has_planned_the_first_epoch():
    """Epoch 0, without being told."""
    sampler, _ = sampler_of([9, 6, 5, 13])
    first = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_identities_are_drawn_evenly():
    """Over many epochs of equal identities each is in as many batches, in changing company."""
    sampler, person_ids = sampler_of([4] * 10, p=4, k=4)
    seen: Counter[int] = Counter()
    pairs = set()
    for epoch in range(300):
        sampler.set_epoch(epoch)
        for batch in sampler:
            chosen = {person_ids[index] for index in batch}
            seen.update(chosen)
            pairs |= set(itertools.combinations(sorted(chosen), 2))
    assert len(pairs) == 45
    assert max(seen.values()) < 1.15 * min(seen.values())


@pytest.mark.parametrize("identities", [0, 3])
def test_too_few_identities_are_refused(identities):
    """A batch needs P of them; the message has both numbers."""
    with pytest.raises(ValueError, match=f"batches of 4 identities.*there are {identities}"):
        sampler_of([5] * identities, p=4)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_make_up_the_batches(size):
    """Behind each other they are the planned batches, in any epoch; each has whole people."""
    sampler, person_ids = sampler_of([9, 6, 5, 13, 4])
    shares = [BatchShare(sampler, member=member, size=size) for member in range(size)]
    for epoch in range(3):
        sampler.set_epoch(epoch)
        dealt = [list(share) for share in shares]
        assert [list(itertools.chain(*parts)) for parts in zip(*dealt, strict=True)] == list(
            sampler
        )
        assert [len(share) for share in shares] == [len(sampler)] * size
        for part in itertools.chain.from_iterable(dealt):
            assert len({person_ids[index] for index in part}) == 4 // size
