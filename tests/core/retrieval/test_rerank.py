"""Re-ranking, judged by the method written out set by set, and by public code's results."""

import numpy as np
import pytest

from airnet_cli.core.data.records import JUNK
from airnet_cli.core.retrieval.rerank import k_reciprocal_distances
from airnet_cli.errors import DataError


def reference(queries, gallery, *, k1, k2, original_weight):
    """Sets of neighbours, one picture after the other, as the paper describes them."""
    features = np.concatenate([queries, gallery]).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    n = len(features)
    d = np.array([[2 - 2 * (a @ b) for b in features] for a in features])
    d = np.maximum(d, 0)
    np.fill_diagonal(d, 0)
    d /= d.max(axis=1, keepdims=True)
    nearest = [sorted(range(n), key=lambda j, i=i: (d[i, j], j)) for i in range(n)]

    def mutual(i, k):
        return {j for j in nearest[i][: k + 1] if i in nearest[j][: k + 1]}

    vectors = np.zeros((n, n))
    for i in range(n):
        own = mutual(i, k1)
        expanded = set(own)
        for j in own:
            others = mutual(j, round(k1 / 2))
            if len(others & own) > 2 / 3 * len(others):
                expanded |= others
        for j in expanded:
            vectors[i, j] = np.exp(-d[i, j])
        vectors[i] /= vectors[i].sum()
    averaged = np.array([np.mean([vectors[j] for j in nearest[i][:k2]], axis=0) for i in range(n)])
    result = np.empty((len(queries), len(gallery)))
    for i in range(len(queries)):
        for j in range(len(gallery)):
            pair = averaged[i], averaged[len(queries) + j]
            jaccard = 1 - np.minimum(*pair).sum() / np.maximum(*pair).sum()
            original = d[i, len(queries) + j]
            result[i, j] = original_weight * original + (1 - original_weight) * jaccard
    return result


def people(seed, queries, gallery, size=6, count=5):
    """Return pictures of a few people, so that neighbourhoods mean something."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((count, size))
    return tuple(
        centres[random.integers(0, count, rows)] + 0.5 * random.standard_normal((rows, size))
        for rows in (queries, gallery)
    )


@pytest.mark.parametrize(
    ("k1", "k2", "original_weight"),
    [(20, 6, 0.3), (7, 3, 0.3), (4, 1, 0.5), (5, 2, 0.0), (6, 6, 1.0)],
)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_sets_of_the_paper(seed, queries, k1, k2, original_weight):
    """Distances are those of the method written out with Python's sets."""
    settings = {"k1": k1, "k2": k2, "original_weight": original_weight}
    given = people(seed, queries, 40)
    ours = k_reciprocal_distances(queries=given[0], gallery=given[1], **settings)
    np.testing.assert_allclose(ours, reference(*given, **settings), atol=1e-9)


@pytest.mark.parametrize("case", ["p2_clean", "p3_junk", "p4_nomatch"])
def test_equals_public_code(golden_dir, case):
    """On the golden cases the entries are those of the authors' code on features of length 1."""
    folder = golden_dir / "cases" / case
    kept = np.load(folder / "labels.npz")["gallery_ids"] != JUNK
    ours = k_reciprocal_distances(
        queries=np.load(folder / "query_features.npy"),
        gallery=np.load(folder / "gallery_features.npy")[kept],
    )
    with np.load(folder / "expected.npz") as arrays:
        expected = arrays["rerank/zhong_ranklist_f64/euclidean_l2norm"]
        sampled = ours.ravel()[arrays["rerank/sample_index"]]
    np.testing.assert_allclose(sampled, expected, atol=1e-6)


def test_inputs_are_left_as_they_are():
    """Neither matrix is changed."""
    given = people(0, 2, 30)
    before = [matrix.copy() for matrix in given]
    k_reciprocal_distances(queries=given[0], gallery=given[1])
    assert all((now == then).all() for now, then in zip(given, before, strict=True))


def test_a_gallery_that_is_too_small():
    """Where everybody is everybody's neighbour, neighbours tell nothing."""
    given = people(0, 1, 20)
    with pytest.raises(DataError, match="20 neighbours of each picture, and there are 20 rows"):
        k_reciprocal_distances(queries=given[0], gallery=given[1])
