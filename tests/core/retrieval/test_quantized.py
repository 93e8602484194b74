"""Search with int8 rows: what the search in floats finds, to the bit."""

import numpy as np
import pytest

from airnet_cli.core.retrieval import quantized as quantized_module
from airnet_cli.core.retrieval import search as search_module
from airnet_cli.core.retrieval.kernels import kernel_of
from airnet_cli.core.retrieval.quantized import QuantizedRows, Screen, quantize
from airnet_cli.core.retrieval.search import search
from airnet_cli.errors import DataError

PARTS = (slice(0, 20), slice(20, 37), slice(37, 64))
KINDS = ["noise", "clusters", "ties", "duplicates", "alike", "scaled", "tiny", "spiky", "float16"]


def features(seed, rows, kind, size=64):
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, size))
    match kind:
        case "clusters":  # people of twenty pictures
            people = np.random.default_rng(0).standard_normal((rows // 20 + 1, size))
            values = people[random.integers(0, len(people), rows)] + values / 2
        case "ties":
            values = np.where(values > 0, 1, -1)
        case "duplicates":
            values = values[random.integers(0, max(1, rows // 8), rows)]
        case "alike":
            values = 1 + values * 1e-4
        case "scaled":
            values *= 10.0 ** random.integers(-12, 15, (rows, 1))
        case "tiny":
            values *= 1e-15
        case "spiky":  # one number is all that int8 sees
            values[np.arange(rows), random.integers(0, size, rows)] *= 1000
        case "heads":
            values[:, PARTS[1]] *= 1e-3
    return values.astype(np.float16 if kind == "float16" else np.float32)


def indexed(gallery, parts=PARTS) -> QuantizedRows:
    return QuantizedRows(*quantize(gallery.astype(np.float32), parts), parts)


def same(found, expected):
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("num_queries", [1, 7])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_finds_what_the_search_in_floats_finds(kind, seed, k, num_queries):
    """Rows and scores, ties and all, for few and many queries and for k beyond the rows."""
    gallery = features(seed, 700, kind)
    queries = features(seed + 100, num_queries, kind).astype(np.float32)
    queries[0] = gallery[3]
    given = {"queries": queries, "gallery_embeddings": gallery, "k": k}
    found = search(**given, quantized=indexed(gallery), kernel=kernel_of("float32"))
    same(found, search(**given))
    assert found.kernel == "float32"


@pytest.mark.parametrize("name", ["numkong", "torch", "bfloat16", "float32", None])
@pytest.mark.parametrize("kind", ["clusters", "alike", "noise"])
@pytest.mark.parametrize("num_queries", [1, 20])
def test_with_every_kernel(name, kind, num_queries):
    """Each way to multiply, and the one that is chosen here."""
    if name == "numkong":
        pytest.importorskip("numkong", reason="needs numkong: pip install 'airnet[ann]'")
    gallery = features(1, 900, kind)
    given = {"queries": features(2, num_queries, kind), "gallery_embeddings": gallery, "k": 10}
    kernel = None if name is None else kernel_of(name)
    same(search(**given, quantized=indexed(gallery), kernel=kernel), search(**given))


@pytest.mark.parametrize("kind", ["clusters", "heads", "spiky", "duplicates"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
@pytest.mark.parametrize("num_queries", [2, 12])
@pytest.mark.parametrize("heads", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_heads_and_chosen_rows(kind, share, num_queries, heads):
    """Some heads, touching or not, some rows, and blocks and pieces that cut across them."""
    gallery = features(5, 400, kind)
    allowed = np.random.default_rng(6).random(400) < share
    given = {
        "queries": features(7, num_queries, kind),
        "gallery_embeddings": gallery,
        "k": 9,
        "allowed": allowed,
        "parts": [PARTS[head] for head in heads],
    }
    found = search(**given, quantized=indexed(gallery), block_rows=130)
    same(found, search(**given))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("num_queries", [2, 9])
def test_pieces_of_a_block_change_nothing(monkeypatch, threads, num_queries):
    """Rows that are multiplied in many pieces, by several threads, the last one alone."""
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    gallery = features(1, 301, "clusters")
    queries = features(2, num_queries, "clusters")
    given = {"queries": queries, "gallery_embeddings": gallery, "k": 12}
    monkeypatch.setattr(quantized_module, "PIECE_ROWS", 50)
    same(search(**given, quantized=indexed(gallery)), search(**given))


@pytest.mark.parametrize("kind", [*KINDS, "heads"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [(0, 1, 2), (1,)], ids=str)
@pytest.mark.parametrize("num_queries", [3, 30])
def test_no_cosine_is_more_wrong_than_it_says(kind, name, heads, num_queries):
    """Held against float64 products, before and after the low parts; and these say less."""
    gallery, queries = features(8, 300, kind), features(9, num_queries, kind)
    compared = np.concatenate([np.arange(64)[PARTS[head]] for head in heads])
    unit, exact = (
        each[:, compared].astype(np.float64)
        / np.linalg.norm(each[:, compared].astype(np.float64), axis=1, keepdims=True)
        for each in (gallery, queries)
    )
    rows, everyone = np.arange(300), np.arange(num_queries)
    screen = Screen(indexed(gallery), exact, compared, kernel_of(name))
    cosines, errors = screen.compare(rows)
    assert (np.abs(cosines - exact @ unit.T) <= errors).all()
    if not screen.is_fine:
        finer, less = screen.refine(rows, everyone, cosines)
        assert (np.abs(finer - exact @ unit.T) <= less).all()
        assert (less <= errors).all()
        if name == "float32" and kind in ("noise", "clusters", "float16"):
            assert less.mean() < errors.mean() * 0.7


def test_the_error_of_a_row_is_what_int8_leaves_over():
    """Rounded up, by next to nothing; a row of zeros leaves nothing."""
    gallery = features(3, 50, "spiky")
    gallery[7] = 0
    gallery[8, PARTS[0]] = 0
    values, sizes = quantize(gallery, PARTS)
    assert values.min() >= -127
    left = gallery.astype(np.float64) - sizes[:, :1].astype(np.float64) * values
    for head, part in enumerate(PARTS):
        error = np.linalg.norm(left[:, part], axis=1)
        assert (sizes[:, 4 + head] >= error).all()
        np.testing.assert_allclose(sizes[:, 4 + head], error, rtol=1e-6, atol=1e-6)
        length = np.linalg.norm(gallery[:, part].astype(np.float64), axis=1)
        np.testing.assert_allclose(sizes[:, 1 + head], length, rtol=1e-6)


def test_what_int8_can_not_tell_apart_is_searched_in_floats(monkeypatch):
    """A query with too many candidates is given up, and its answer is the same."""
    monkeypatch.setattr(search_module, "MOST_ALIKE", 8)
    monkeypatch.setattr(search_module, "HOPELESS_SHARE", 0.0)
    gallery = np.concatenate([features(1, 500, "alike"), features(1, 500, "clusters")])
    queries = np.concatenate([np.ones((3, 64), np.float32), gallery[[600, 700, 900]]])
    given = {"queries": queries, "gallery_embeddings": gallery, "k": 5}
    found = search(**given, quantized=indexed(gallery), block_rows=100)
    same(found, search(**given))
    assert found.in_floats >= 3


def test_clusters_need_few_scores(monkeypatch):
    """Where people are apart, int8 leaves float64 little more than the answers."""
    scored = []
    score = search_module._Best._score
    monkeypatch.setattr(
        search_module._Best, "_score",
        lambda self, query, row: scored.append(len(row)) or score(self, query, row),
    )  # fmt: skip
    gallery = features(1, 4000, "clusters")
    search(
        queries=gallery[::400], gallery_embeddings=gallery, k=5, quantized=indexed(gallery)
    )  # fmt: skip
    assert sum(scored) <= 10 * 40


@pytest.mark.parametrize("value", [0.0, 1e-20])
def test_a_row_without_direction_is_the_same_error(value):
    """As in floats; a row that is left out is not looked at."""
    gallery = features(2, 30, "noise")
    gallery[6] = value
    given = {"queries": gallery[:2], "gallery_embeddings": gallery, "k": 3}
    told = []
    for rows in (None, indexed(gallery)):
        with pytest.raises(DataError, match="gallery row 6 ") as error:
            search(**given, quantized=rows)
        told.append(str(error.value))
    assert told[0] == told[1]
    allowed = np.arange(30) != 6
    same(
        search(**given, allowed=allowed, quantized=indexed(gallery)),
        search(**given, allowed=allowed),
    )


def test_int8_rows_of_others_are_noticed():
    """What is scored is held against its bounds: rows that changed places are an error."""
    gallery = features(4, 200, "clusters")
    other = indexed(gallery[::-1].copy())
    with pytest.raises(DataError, match="is not what its int8 row says"):
        search(queries=gallery[:3], gallery_embeddings=gallery, k=5, quantized=other)


def test_half_a_head_is_no_question():
    """int8 rows know the length of whole heads."""
    gallery = features(4, 20, "noise")
    with pytest.raises(ValueError, match="whole heads"):
        search(
            queries=gallery[:1], gallery_embeddings=gallery, k=1, parts=[slice(0, 10)],
            quantized=indexed(gallery),
        )  # fmt: skip
