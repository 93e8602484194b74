"""Exact search, judged by sorting every cosine in float64."""

import math

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("block_rows", [1, 7, None])
@pytest.mark.parametrize(
    "kind", ["plain", "ties", "duplicates", "alike", "scaled", "float16"]
)  # fmt: skip
@pytest.mark.parametrize("k", [1, 5, 90, 200], ids=lambda k: f"k={k}")
def test_equals_the_obvious_computation(kind, k, block_rows):
    """Rows and scores are those of a full sort, ties by row, for any block and any k."""
    size = 64
    gallery = features(1, 90, size, kind)
    queries = np.concatenate([features(2, 5, size, kind), gallery[[3, 40]]])

    found = search(queries=queries, gallery_embeddings=gallery, k=k, block_rows=block_rows)

    rows, scores = reference(queries, gallery, k=k)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_equals_one_numpy_product(seed):
    """At a common size the answers are those of a product and a stable argsort."""
    gallery, queries = features(seed, 3000, 96), features(seed + 9, 40, 96)
    unit = [m.astype(np.float64) for m in (queries, gallery)]
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in unit]
    cosines = unit[0] @ unit[1].T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :10]

    found = search(queries=queries, gallery_embeddings=gallery, k=10, block_rows=256)

    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, np.take_along_axis(cosines, rows, axis=1), atol=1e-6)


def test_equal_rows_are_found_in_order_wherever_they_are():
    """Copies of one row tie exactly, in any block and at any place in it."""
    gallery = features(0, 1000, 1283)
    copies = np.array([0, 1, 5, 254, 255, 256, 511, 700, 997, 998, 999])
    gallery[copies] = gallery[5]
    found = search(
        queries=gallery[[5]] * 3 + features(1, 1, 1283) / 9,
        gallery_embeddings=gallery, k=len(copies), block_rows=255,
    )  # fmt: skip
    assert found.rows.tolist() == [copies.tolist()]
    assert len(set(found.scores[0].tolist())) == 1


@pytest.mark.parametrize("block_rows", [4, None])
@pytest.mark.parametrize(
    ("parts", "share"),
    [
        pytest.param((slice(0, 8),), 1.0, id="first head"),
        pytest.param((slice(0, 8), slice(16, 24)), 1.0, id="two heads"),
        pytest.param((slice(None),), 0.5, id="half of the rows"),
        pytest.param((slice(8, 16),), 0.05, id="few rows, one head"),
    ],
)
def test_only_what_was_asked_for(parts, share, block_rows):
    """Only allowed rows are found, by the chosen columns; fewer than k where there are fewer."""
    gallery, queries = features(3, 60, 24), features(4, 6, 24)
    allowed = np.random.default_rng(5).random(60) < share
    found = search(
        queries=queries, gallery_embeddings=gallery, k=10, allowed=allowed, parts=parts,
        block_rows=block_rows,
    )  # fmt: skip
    rows, scores = reference(queries, gallery, k=10, allowed=allowed, parts=parts)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-7)


@pytest.mark.parametrize("num_queries", [1, 20])
def test_pieces_of_a_block_change_nothing(monkeypatch, num_queries):
    """A block that is read in many pieces gives the answers of a block read at once."""
    gallery, queries = features(1, 300, 24, "duplicates"), features(2, num_queries, 24)
    monkeypatch.setattr(search_module, "PIECE_BYTES", 7 * 24 * 4)
    found = search(queries=queries, gallery_embeddings=gallery, k=40, block_rows=200)
    np.testing.assert_array_equal(found.rows, reference(queries, gallery, k=40)[0])


@pytest.mark.parametrize("width", [1, 2, 7, 509, 521, 1022, 6144])
@pytest.mark.parametrize("rows", [1, 3, 85, 600])
def test_lengths_of_every_width_and_number_of_rows(width, rows):
    """They are added up in pieces, and what is left over."""
    values = features(1, rows, width + 3)[:, 3:]  # rows lie apart in memory
    squared = search_module._squared(values)
    expected = (values.astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(squared, expected, rtol=width * 2.0**-24 + 1e-7)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "joined"])
@pytest.mark.parametrize("num_queries", [1, 3, 600])
def test_any_number_of_threads_finds_the_same(monkeypatch, threads, kind, num_queries):
    """Also where a block has fewer rows than there are threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(search_module, "PIECE_BYTES", 7 * 24 * 4)
    plain = features(1, 122, 24, "float16" if kind == "float16" else "duplicates")
    gallery = plain.astype(np.float64) if kind == "float64" else plain
    if kind == "joined":
        gallery = JoinedRows(
            [plain[:50], plain[50:]], [None, None], dimensions=24, dtype=plain.dtype
        )
    queries = features(2, num_queries, 24)
    found = search(queries=queries, gallery_embeddings=gallery, k=9, block_rows=40)
    rows, scores = reference(queries[:3], plain, k=9)
    np.testing.assert_array_equal(found.rows[:3], rows)
    np.testing.assert_allclose(found.scores[:3], scores, atol=1e-7)


def test_a_bad_row_in_any_share_is_named(monkeypatch):
    """By its number in the gallery, not in the share; no warning of NumPy's comes first."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    gallery = features(1, 90, 16)
    gallery[77, 3] = np.nan
    with pytest.raises(DataError, match="row 77 "):
        search(queries=features(2, 4, 16), gallery_embeddings=gallery, k=3)


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


@pytest.mark.parametrize("k", [1, 20])
def test_more_rows_alike_than_are_held(monkeypatch, k):
    """Rows that float32 can't tell apart are decided by float64 block by block, ties by row."""
    monkeypatch.setattr(search_module, "MOST_ALIKE", 8)
    gallery = np.concatenate([features(1, 150, 32, "alike"), features(3, 150, 32, "ties")])
    gallery[::2] = gallery[0]  # half of them are one row
    queries = np.concatenate([np.ones((2, 32), np.float32), features(2, 3, 32)])
    found = search(queries=queries, gallery_embeddings=gallery, k=k, block_rows=60)
    rows, scores = reference(queries, gallery, k=k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-7)


def test_every_float16_is_read_as_it_is(tmp_path):
    """All finite float16 values, subnormal ones too, become float32 exactly, from a mapped file."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    values = values[np.isfinite(values).all(axis=1)]
    np.save(tmp_path / "g.npy", values)
    reader = search_module._Reader(np.load(tmp_path / "g.npy", mmap_mode="r"))
    for rows in (np.arange(3, 40), np.array([700, 2, 2])):
        np.testing.assert_array_equal(reader.take(rows), values[rows].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_memory_map_is_read_in_blocks(tmp_path, dtype):
    """A mapped file gives the same answers, stays as it is, and progress reaches its end."""
    gallery, calls = features(6, 50, 16).astype(dtype), []
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    found = search(
        queries=gallery[:2], gallery_embeddings=mapped, k=3, block_rows=20,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    np.testing.assert_array_equal(found.rows, reference(gallery[:2], gallery, k=3)[0])
    assert [done for _, done, _, _ in calls] == [0, 20, 40, 50]


def row_of(value):
    gallery = features(7, 10, 4)
    gallery[6] = value
    return gallery


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"queries": np.ones((1, 3))}, r"shape \(1, 3\) and .* 4 columns", id="width"),
        pytest.param({"queries": np.ones(4)}, r"the shape \(4,\)", id="no matrix"),
        pytest.param({"queries": np.zeros((1, 4))}, "query 0 .* without direction", id="zero"),
        pytest.param({"allowed": np.zeros(10, bool)}, "no gallery row is allowed", id="no row"),
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


def test_k_starts_at_1():
    """No match at all is no question."""
    with pytest.raises(ValueError, match="at least 1"):
        search(queries=np.ones((1, 4)), gallery_embeddings=np.ones((1, 4)), k=0)
