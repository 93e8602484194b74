"""Re-ranking, compared with the method written out with sets and with the authors' results."""

import numpy as np
import pytest

from airnet_cli.core.data.records import JUNK
from airnet_cli.core.retrieval import rerank
from airnet_cli.core.retrieval.rerank import (
    Reranking,
    k_reciprocal_blocks,
    k_reciprocal_distances,
)
from airnet_cli.errors import DataError


def reference(queries, gallery, *, k1, k2, original_weight):
    """Sets of neighbours, one image after the other, as the paper describes them."""
    features = np.concatenate([queries, gallery]).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    n = len(features)
    d = 2 - 2 * np.round(features @ features.T, 12)
    largest = d.max(axis=1, keepdims=True)
    d /= np.where(largest > 0, largest, 1)
    nearest = [sorted(range(n), key=lambda j, i=i: (j != i, d[i, j], j)) for i in range(n)]

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
    """Features of a few people, so that neighbourhoods have a meaning."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((count, size))
    return tuple(
        centres[random.integers(0, count, rows)] + 0.5 * random.standard_normal((rows, size))
        for rows in (queries, gallery)
    )


SETTINGS = [(20, 6, 0.3), (4, 1, 0.5), (5, 2, 0.0), (6, 6, 1.0), (2, 9, 0.3), (50, 60, 0.3)]


@pytest.mark.parametrize(("k1", "k2", "original_weight"), SETTINGS)
@pytest.mark.parametrize("queries", [1, 3])
def test_equals_the_sets_of_the_paper(queries, k1, k2, original_weight):
    """Distances are those of the method written out with Python's sets."""
    settings = {"k1": k1, "k2": k2, "original_weight": original_weight}
    given = people(0, queries, 40)
    ours = k_reciprocal_distances(
        queries=given[0], gallery=given[1], reranking=Reranking(**settings)
    )
    np.testing.assert_allclose(ours, reference(*given, **settings), atol=1e-6)


@pytest.mark.parametrize("case", ["p1_tiny", "p2_clean", "p3_junk", "p4_nomatch", "p6_market"])
def test_equals_public_code(golden_dir, case):
    """On the golden cases the entries are those of the authors' code on features of length 1."""
    folder = golden_dir / "cases" / case
    ours = k_reciprocal_distances(
        queries=np.load(folder / "query_features.npy"),
        gallery=np.load(folder / "gallery_features.npy")[
            np.load(folder / "labels.npz")["gallery_ids"] != JUNK
        ],
        reranking=Reranking(),
    )
    with np.load(folder / "expected.npz") as arrays:
        expected = arrays["rerank/zhong_ranklist_f64/euclidean_l2norm"]
        sampled = ours.ravel()[arrays["rerank/sample_index"]]
    np.testing.assert_allclose(sampled, expected, atol=1e-6)


@pytest.mark.parametrize("block_rows", [1, 16, 10_000])
@pytest.mark.parametrize("tied", [False, True])
def test_blocks_do_not_change_the_result(monkeypatch, block_rows, tied):
    """Blocks are for memory only, also where more images are equally near than are kept."""
    queries, gallery = people(5, 12, 190, count=9)
    if tied:  # 16 values of +-1: exact cosines, many of them equal
        signs = np.random.default_rng(5).choice([-1.0, 1.0], (202, 16))
        queries, gallery = signs[:12], signs[12:]
    monkeypatch.setattr(rerank, "BLOCK_BYTES", block_rows * 202 * 4)
    monkeypatch.setattr(rerank, "KEPT_BYTES", block_rows * 202 * 4)
    ours = k_reciprocal_distances(queries=queries, gallery=gallery, reranking=Reranking(k1=6, k2=3))
    expected = reference(queries, gallery, k1=6, k2=3, original_weight=0.3)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_only_the_given_gallery_rows_count():
    """`gallery_rows` gives the same distances as a gallery without the other rows."""
    queries, gallery = people(3, 4, 60)
    rows = np.arange(0, 60, 2)
    blocks = k_reciprocal_blocks(
        queries=queries, gallery=gallery, gallery_rows=rows, reranking=Reranking(k1=5)
    )
    expected = k_reciprocal_distances(
        queries=queries, gallery=gallery[rows], reranking=Reranking(k1=5)
    )
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), expected)


def test_equal_images():
    """An image that is there twice has one distance; if all are equal, the original one is 0."""
    queries, gallery = people(6, 2, 50)
    gallery[30] = gallery[7]
    distances = k_reciprocal_distances(
        queries=queries, gallery=gallery, reranking=Reranking(k1=8, k2=1)
    )
    np.testing.assert_allclose(distances[:, 30], distances[:, 7], atol=1e-6)

    image = np.random.default_rng(0).standard_normal((1, 2048))
    gallery = np.repeat(image, 99, axis=0)
    distances = k_reciprocal_distances(queries=image, gallery=gallery, reranking=Reranking())
    expected = reference(np.ones((1, 4)), np.ones((99, 4)), k1=20, k2=6, original_weight=0)
    np.testing.assert_allclose(distances, 0.7 * expected, atol=1e-6)


@pytest.mark.parametrize("value", [0, np.nan, np.inf], ids=["zero", "NaN", "infinity"])
@pytest.mark.parametrize("name", ["query row 1", "gallery row 14"])
def test_a_row_without_direction(value, name):
    """The message names the row as it is numbered in its own matrix."""
    queries, gallery = people(0, 2, 30)
    (queries if name == "query row 1" else gallery)[int(name.split()[-1])] = value
    blocks = k_reciprocal_blocks(
        queries=queries,
        gallery=gallery,
        gallery_rows=np.arange(0, 30, 2),
        reranking=Reranking(k1=3),
    )
    with pytest.raises(DataError, match=name):
        next(blocks)


@pytest.mark.parametrize("changes", [{"k1": 0}, {"k2": 0}, {"original_weight": 1.5}])
def test_invalid_parameters(changes):
    """They are refused at once."""
    with pytest.raises(ValueError, match="at least 1 and original_weight is in 0-1"):
        Reranking(**changes)
