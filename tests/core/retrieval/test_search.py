"""Exact search, judged by sorting every cosine in float64."""

import math

import numpy as np
import pytest

from airnet_cli.core.gallery.rows import JoinedRows
from airnet_cli.core.retrieval import search as search_module
from airnet_cli.core.retrieval.search import search
from airnet_cli.errors import DataError


def reference(queries, gallery, *, k, allowed=None, parts=(slice(None),)):
    """Score each pair on its own, sort by cosine, then by row: the obvious computation."""
    columns = np.concatenate([np.arange(gallery.shape[1])[part] for part in parts])
    rows, scores = [], []
    for query in queries[:, columns].astype(np.float64):
        found = []
        for row, values in enumerate(gallery[:, columns].astype(np.float64)):
            if allowed is None or allowed[row]:
                lengths = math.sqrt(math.fsum(query * query) * math.fsum(values * values))
                found.append((-math.fsum(query * values) / lengths, row))
        found.sort()
        rows.append([row for _, row in found[:k]])
        scores.append([-score for score, _ in found[:k]])
    return np.array(rows), np.array(scores)


def features(seed, rows, size, kind="plain"):
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, size))
    if kind == "ties":  # +1 and -1: cosines are multiples of 2 / size, and exact
        return np.where(values > 0, 1, -1).astype(np.float32)
    if kind == "duplicates":  # a few different rows, each in many places
        values = values[random.integers(0, max(1, rows // 8), rows)]
    if kind == "alike":  # cosines that differ after the sixth digit
        values = 1 + values * 1e-3
    if kind == "scaled":
        values *= 10.0 ** random.integers(-9, 9, (rows, 1))
    return values.astype(np.float16 if kind == "float16" else np.float32)


@pytest.fixture(params=["one block", "many blocks and pieces"])
def blocks(request, monkeypatch):
    """Answers do not depend on how many rows are looked at together."""
    if request.param != "one block":
        monkeypatch.setattr(search_module, "BLOCK_ROWS", 40)
        monkeypatch.setattr(search_module, "PIECE_BYTES", 7 * 64 * 4)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("kind", ["plain", "ties", "duplicates", "alike", "scaled", "float16"])
@pytest.mark.parametrize("k", [1, 5, 90, 200], ids=lambda k: f"k={k}")
def test_equals_the_obvious_computation(kind, k):
    """Rows and scores are those of a full sort, ties by row, for any block and any k."""
    size = 64
    gallery = features(1, 90, size, kind)
    queries = np.concatenate([features(2, 5, size, kind), gallery[[3, 40]]])

    found = search(queries=queries, gallery_embeddings=gallery, k=k)

    rows, scores = reference(queries, gallery, k=k)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-7)


def test_equal_rows_are_found_in_order_wherever_they_are(monkeypatch):
    """Copies of one row tie exactly, in any block and at any place in it; the lowest come first."""
    monkeypatch.setattr(search_module, "BLOCK_ROWS", 255)
    gallery = features(0, 1000, 1283)
    copies = np.array([0, 1, 5, 254, 255, 256, 511, 700, 997, 998, 999])
    gallery[copies] = gallery[5]
    query = gallery[[5]] * 3 + features(1, 1, 1283) / 9
    for k in (4, len(copies)):
        found = search(queries=query, gallery_embeddings=gallery, k=k)
        assert found.rows.tolist() == [copies[:k].tolist()]
        assert len(set(found.scores[0].tolist())) == 1


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("parts", "share"),
    [
        pytest.param((slice(0, 8),), 1.0, id="first head"),
        pytest.param((slice(0, 8), slice(16, 24)), 1.0, id="two heads"),
        pytest.param((slice(0, 8), slice(8, 16), slice(16, 24)), 0.5, id="half of the rows"),
        pytest.param((slice(8, 16),), 0.05, id="few rows, one head"),
    ],
)
def test_only_what_was_asked_for(parts, share):
    """Only allowed rows are found, by the chosen columns; fewer than k where there are fewer."""
    gallery, queries = features(3, 60, 24), features(4, 6, 24)
    allowed = np.random.default_rng(5).random(60) < share
    found = search(queries=queries, gallery_embeddings=gallery, k=10, allowed=allowed, parts=parts)
    rows, scores = reference(queries, gallery, k=10, allowed=allowed, parts=parts)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-7)


def test_a_query_finds_the_same_alone_and_in_company():
    """Rows whose cosines differ by roundings of float64 only keep their order."""
    random = np.random.default_rng(1)
    row = random.random(301).astype(np.float32)
    gallery = np.stack([random.permutation(row) for _ in range(50)])
    queries = np.concatenate([np.ones((1, 301), np.float32), features(2, 4, 301)])
    alone = search(queries=queries[:1], gallery_embeddings=gallery, k=50)
    together = search(queries=queries, gallery_embeddings=gallery, k=50)
    np.testing.assert_array_equal(together.rows[0], alone.rows[0])
    np.testing.assert_array_equal(together.scores[0], alone.scores[0])


@pytest.mark.parametrize("kind", ["float16", "float32", "joined"])
def test_a_gallery_on_disk_is_read_in_blocks(tmp_path, monkeypatch, kind):
    """Mapped files, one or several, give the answers of an array; progress reaches its end."""
    monkeypatch.setattr(search_module, "BLOCK_ROWS", 20)
    gallery, calls = features(6, 50, 16).astype("float16" if kind == "float16" else "float32"), []
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    if kind == "joined":
        mapped = JoinedRows([mapped[:15], mapped[15:]], [None, None])
    found = search(
        queries=gallery[:2], gallery_embeddings=mapped, k=3,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    np.testing.assert_array_equal(found.rows, reference(gallery[:2], gallery, k=3)[0])
    assert [done for _, done, _, _ in calls] == [0, 20, 40, 50]


@pytest.mark.parametrize("width", [7, 2048, 6144])
def test_float32_products_are_as_exact_as_their_margin_says(width):
    """Twice their error fits into `MARGIN`, for rows of one sign too, whose sums are larger."""
    for kind in (np.asarray, np.abs):
        gallery, queries = kind(features(1, 500, width)), kind(features(2, 3, width))
        found = search(queries=queries, gallery_embeddings=gallery, k=500)
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        cosines = unit @ gallery.T / np.linalg.norm(gallery, axis=1)
        error = np.abs(np.take_along_axis(cosines, found.rows, axis=1) - found.scores).max()
        assert 2 * error < search_module.MARGIN


def row_of(value):
    gallery = features(7, 10, 4)
    gallery[6] = value
    return gallery


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"queries": np.ones((1, 3))}, r"shape \(1, 3\) and .* 4 columns", id="width"),
        pytest.param({"queries": np.ones(4)}, r"the shape \(4,\)", id="no matrix"),
        pytest.param({"queries": np.zeros((1, 4))}, "query row 0 .* is zero", id="zero"),
        pytest.param({"allowed": np.zeros(10, bool)}, "0 gallery rows are allowed", id="no row"),
        pytest.param({"k": 0}, "k is 0", id="k"),
        pytest.param({"gallery_embeddings": row_of(0)}, "gallery row 6 ", id="zero row"),
        pytest.param({"gallery_embeddings": row_of(np.nan)}, "gallery row 6 ", id="NaN"),
        pytest.param({"gallery_embeddings": row_of(3e38)}, "gallery row 6 ", id="overflow"),
    ],
)  # fmt: skip
def test_what_can_not_be_searched_is_refused(changes, message):
    """Widths that differ, rows without direction and an empty choice are errors in one line."""
    given = {"queries": features(8, 1, 4), "gallery_embeddings": features(7, 10, 4), "k": 2}
    with pytest.raises(DataError, match=message):
        search(**given | changes)


def test_rows_that_are_not_allowed_are_never_looked_at():
    """A broken row that is left out changes nothing."""
    allowed = np.arange(10) != 6
    found = search(
        queries=features(8, 1, 4), gallery_embeddings=row_of(np.nan), k=9, allowed=allowed
    )
    assert sorted(found.rows[0].tolist()) == np.flatnonzero(allowed).tolist()
