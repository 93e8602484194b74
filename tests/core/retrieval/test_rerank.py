"""Re-ranking, judged by the method written out set by set, and by public code's results."""

import numpy as np
import pytest

from airnet_cli.core.data.records import JUNK
from airnet_cli.core.retrieval import rerank
from airnet_cli.core.retrieval.rerank import (
    Reranking,
    k_reciprocal_blocks,
    k_reciprocal_distances,
)
from airnet_cli.errors import EvaluationError


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


SETTINGS = [(20, 6, 0.3), (7, 3, 0.3), (4, 1, 0.5), (5, 2, 0.0), (6, 6, 1.0), (2, 9, 0.3)]


@pytest.mark.parametrize(("k1", "k2", "original_weight"), SETTINGS)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_sets_of_the_paper(seed, queries, k1, k2, original_weight):
    """Distances are those of the method written out with Python's sets."""
    settings = {"k1": k1, "k2": k2, "original_weight": original_weight}
    given = people(seed, queries, 40)
    ours = k_reciprocal_distances(
        queries=given[0], gallery=given[1], reranking=Reranking(**settings)
    )
    np.testing.assert_allclose(ours, reference(*given, **settings), atol=1e-12)


@pytest.fixture
def threads(request, monkeypatch) -> int:
    """So many threads, which share products however small these are."""
    monkeypatch.setattr(rerank.torch, "get_num_threads", lambda: request.param)
    monkeypatch.setattr(rerank, "SHARE_COLUMNS", 3)
    return request.param


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize("size", [1, 7, 64, 2**20])
def test_blocks_and_threads_are_for_speed_and_memory_only(monkeypatch, size, threads):
    """Blocks of one picture, or of all, give the same distances, however few neighbours are kept
    for later."""
    given = people(5, 12, 90, count=9)
    expected = reference(*given, k1=6, k2=3, original_weight=0.3)
    monkeypatch.setattr(rerank, "BLOCK_BYTES", size * 102 * 8)
    monkeypatch.setattr(rerank, "TABLE_CELLS", size * 102)
    monkeypatch.setattr(rerank, "PIECE_BYTES", size)
    monkeypatch.setattr(rerank, "PIECE_CELLS", size * 102)
    monkeypatch.setattr(rerank, "SPARE", size % 5)
    ours = k_reciprocal_distances(
        queries=given[0], gallery=given[1], reranking=Reranking(k1=6, k2=3)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-12)


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


def test_rows_that_are_not_meant_might_as_well_not_be_there():
    """`gallery_rows` gives what the gallery without the others gives."""
    queries, gallery = people(3, 4, 60)
    rows = np.arange(0, 60, 2)
    blocks = k_reciprocal_blocks(
        queries=queries, gallery=gallery, gallery_rows=rows, reranking=Reranking(k1=5)
    )
    expected = k_reciprocal_distances(
        queries=queries, gallery=gallery[rows], reranking=Reranking(k1=5)
    )
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), expected)


def test_float32_is_near_float64():
    """The product in float32 costs less than a millionth."""
    given = people(4, 10, 200, size=64, count=20)
    single, double = (
        k_reciprocal_distances(
            queries=given[0].astype(kind), gallery=given[1].astype(kind), reranking=Reranking()
        )
        for kind in (np.float32, np.float64)
    )
    np.testing.assert_allclose(single, double, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
def test_a_picture_that_is_there_twice(threads):
    """Equal pictures are equally far from everybody, and at no distance where all are equal."""
    queries, gallery = people(6, 2, 50)
    gallery[30] = gallery[7]
    distances = k_reciprocal_distances(
        queries=queries, gallery=gallery, reranking=Reranking(k1=8, k2=1)
    )
    np.testing.assert_allclose(distances[:, 30], distances[:, 7], atol=1e-12)
    same = k_reciprocal_distances(
        queries=np.ones((1, 4)), gallery=np.ones((99, 4)), reranking=Reranking(original_weight=1)
    )
    np.testing.assert_allclose(same, 0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize("size", [1, 7, 2**20])
@pytest.mark.parametrize("seed", range(3))
def test_of_equally_near_pictures_the_first_is_nearer(monkeypatch, seed, size, threads):
    """Where more are equally near than are kept, blocks of any size take those of lower index."""
    random = np.random.default_rng(seed)
    queries, gallery = (random.choice([-1.0, 1.0], (rows, 16)) for rows in (5, 80))
    monkeypatch.setattr(rerank, "BLOCK_BYTES", size * 85 * 8)
    monkeypatch.setattr(rerank, "SPARE", 1)
    ours = k_reciprocal_distances(queries=queries, gallery=gallery, reranking=Reranking(k1=6, k2=3))
    expected = reference(queries, gallery, k1=6, k2=3, original_weight=0.3)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_inputs_are_left_as_they_are():
    """Neither matrix is changed."""
    given = people(0, 2, 30)
    before = [matrix.copy() for matrix in given]
    k_reciprocal_distances(queries=given[0], gallery=given[1], reranking=Reranking())
    assert all((now == then).all() for now, then in zip(given, before, strict=True))


@pytest.mark.parametrize("value", [0, np.nan, np.inf], ids=["zero", "NaN", "infinity"])
@pytest.mark.parametrize(
    ("at", "named"), [(1, "query embeddings: row 1"), (2 + 7, "gallery embeddings: row 14")]
)
def test_a_row_without_direction(value, at, named):
    """The message names the row as it is numbered in its own matrix."""
    queries, gallery = people(0, 2, 30)
    if at < 2:
        queries[at] = value
    else:
        gallery[2 * (at - 2)] = value
    blocks = k_reciprocal_blocks(
        queries=queries,
        gallery=gallery,
        gallery_rows=np.arange(0, 30, 2),
        reranking=Reranking(k1=3),
    )
    with pytest.raises(EvaluationError, match=f"{named} has no direction"):
        next(blocks)


@pytest.mark.parametrize("changes", [{"k1": 0}, {"k2": 0}, {"original_weight": 1.5}])
def test_parameters_that_mean_nothing(changes):
    """They are refused where they are made."""
    with pytest.raises(ValueError, match="at least 1 and original_weight is in 0-1"):
        Reranking(**changes)
