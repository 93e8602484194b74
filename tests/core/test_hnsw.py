"""The approximate index: right scores, and an honest word about what it misses."""

import numpy as np
import pytest

from airnet_cli.core import hnsw
from airnet_cli.core.gallery import index_files, read_gallery
from airnet_cli.core.retrieval.search import search
from airnet_cli.errors import DataError, RuntimeSetupError


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, write_gallery):
    """600 rows with an hnsw index."""
    pytest.importorskip("usearch", reason="needs usearch: pip install 'airnet[ann]'")
    gallery = write_gallery(tmp_path_factory.mktemp("hnsw") / "g.npy")
    hnsw.make_hnsw_index(gallery)
    return gallery


def test_scores_are_those_of_the_exact_search(gallery):
    """On an easy gallery the rows too; each score is the row's cosine."""
    queries = np.asarray(gallery.embeddings[::50])
    found = hnsw.HnswIndex(gallery).search(queries, k=5)
    exact = search(queries=queries, gallery_embeddings=gallery.embeddings, k=5)
    assert (found.rows == exact.rows).mean() > 0.9
    agree = found.rows == exact.rows
    np.testing.assert_array_equal(found.scores[agree], exact.scores[agree])


def test_what_it_misses_is_measured(gallery, monkeypatch):
    """Recall and rank-1 of a graph that proposes wrong rows are those of counting by hand."""

    class Wrong:
        """Proposes the first rows, whatever is asked."""

        def search(self, query, count):
            return type("Found", (), {"keys": np.arange(count, dtype=np.uint64)})

    monkeypatch.setattr(hnsw, "EXPANSION_SEARCH", 60)
    measured = hnsw._measure(gallery, Wrong(), lambda *_: None)
    values = gallery.embeddings.astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    sample = np.sort(np.random.default_rng(hnsw.SEED).choice(600, 200, replace=False))
    hits, right, exactly = 0, 0, 0
    for row in sample:
        others = [each for each in range(600) if each != row]
        best = sorted(others, key=lambda each: -values[row] @ values[each])[:10]
        proposed = sorted((e for e in others if e < 60), key=lambda e: -values[row] @ values[e])
        hits += len(set(best) & set(proposed[:10]))
        right += row // 20 == proposed[0] // 20
        exactly += row // 20 == best[0] // 20
    assert measured["recall"] == hits / 2000 < 0.5
    assert measured["rank1"] == right / 200 < measured["exact_rank1"] == exactly / 200


def test_the_record_keeps_what_was_measured(gallery):
    """And says on what."""
    measured = hnsw.read_record(gallery, "hnsw")["measured"]
    assert (measured["queries"], measured["k"], measured["seed"]) == (200, 10, 0)
    assert measured["recall"] > 0.9
    assert measured["exact_rank1"] >= measured["rank1"] > 0.9


def test_a_graph_that_was_changed_is_refused(tmp_path, write_gallery):
    """By its hash, before usearch reads it."""
    pytest.importorskip("usearch", reason="needs usearch: pip install 'airnet[ann]'")
    gallery = write_gallery(tmp_path / "g.npy", rows=30)
    hnsw.make_hnsw_index(gallery)
    graph = index_files(gallery.path)[4]
    content = bytearray(graph.read_bytes())
    content[100] ^= 1
    graph.write_bytes(content)
    with pytest.raises(DataError, match=r"changed or damaged.*--kind hnsw"):
        hnsw.HnswIndex(gallery)
    write_gallery(gallery.path, rows=30, seed=3)
    with pytest.raises(DataError, match="has no hnsw index"):
        hnsw.HnswIndex(read_gallery(gallery.path))


@pytest.mark.parametrize(
    ("content", "told"), [(b"no graph at all", "can't be read"), (None, "and the gallery of 40 x")]
)
def test_graphs_of_strangers(tmp_path, write_gallery, content, told):
    """With the right hash: no graph, or that of a gallery with other rows."""
    pytest.importorskip("usearch", reason="needs usearch: pip install 'airnet[ann]'")
    gallery = write_gallery(tmp_path / "g.npy", rows=40)
    other = write_gallery(tmp_path / "other.npy", rows=20)
    hnsw.make_hnsw_index(other)
    graph = index_files(gallery.path)[4]
    graph.write_bytes(index_files(other.path)[4].read_bytes() if content is None else content)
    hnsw.write_record(gallery, "hnsw", {"graph_sha256": hnsw.file_digest(graph), "measured": {}})
    with pytest.raises(DataError, match=told):
        hnsw.HnswIndex(gallery)


@pytest.mark.parametrize("rows", [1, 2])
def test_tiny_galleries(tmp_path, write_gallery, rows):
    """Fewer rows than are looked at."""
    pytest.importorskip("usearch", reason="needs usearch: pip install 'airnet[ann]'")
    gallery = write_gallery(tmp_path / "g.npy", rows=rows)
    measured = hnsw.make_hnsw_index(gallery)["measured"]
    assert measured["recall"] == (None if rows == 1 else 1)
    found = hnsw.HnswIndex(gallery).search(np.asarray(gallery.embeddings), k=10)
    assert found.rows[:, 0].tolist() == list(range(rows))


def test_without_usearch_one_line_says_so(tmp_path, write_gallery, monkeypatch):
    """Before any work."""
    gallery = write_gallery(tmp_path / "g.npy", rows=3)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(hnsw.importlib, "import_module", missing)
    with pytest.raises(RuntimeSetupError, match=r"pip install 'airnet\[ann\]'"):
        hnsw.make_hnsw_index(gallery)
