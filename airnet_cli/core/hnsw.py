"""An approximate index of a gallery on disk: a graph of near neighbours (HNSW), by usearch.

It looks at a few rows of many and can miss the right one, most easily among near-duplicates, so it
is used only when it is asked for. What it proposes is scored as by the exact search. When it is
made, rows of the gallery are searched for in both ways, each without itself, and the record keeps
how often they agree.

    gallery.hnsw.usearch   usearch's own file; its C++ code reads it, so use none of strangers
    gallery.hnsw.json      which gallery it is of, its hash, and what was measured

Letters: Q queries, N gallery rows, D embedding size, C candidates.
"""

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import replacing
from airnet_cli.core.gallery import Gallery
from airnet_cli.core.index import (
    again,
    check_indexable,
    file_digest,
    index_files,
    pieces,
    read_record,
    write_record,
)
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.search import SearchResult, search
from airnet_cli.errors import DataError, RuntimeSetupError

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 128
"""Edges of a row; rows that are looked at when one is added, and when one is searched."""

SAMPLE = 200
"""Rows that are searched for to measure."""
DEPTH = 10
"""Of the recall that is measured."""
SEED = 0

Rows = npt.NDArray[np.int64]


def make_hnsw_index(gallery: Gallery, *, progress: Progress = silent) -> dict[str, Any]:
    """Write the HNSW index of a gallery; whoever calls holds its place. The complete record.

    Raises:
        DataError: the gallery is another than its record says, or a row has no direction.
        OutputError: the system refused to write.
        RuntimeSetupError: usearch is not installed.
    """
    path = check_indexable(gallery)
    rows, width = gallery.embeddings.shape
    index = _new_index(width)
    for begin, piece in pieces(gallery, progress):
        unit = piece / np.linalg.norm(piece, axis=1, keepdims=True)
        index.add(np.arange(begin, begin + len(piece), dtype=np.uint64), unit)
        progress("indexing", begin + len(piece), rows, "rows")
    record_file, graph_file = index_files(path)[3:]
    record_file.unlink(missing_ok=True)
    with replacing(graph_file) as graph:
        index.save(str(graph))
        graph_sha256 = file_digest(graph)
    measured = _measure(gallery, index, progress)
    return write_record(gallery, "hnsw", {"graph_sha256": graph_sha256, "measured": measured})


class HnswIndex:
    """The HNSW index of a gallery, in memory."""

    def __init__(self, gallery: Gallery) -> None:
        """Read and check it.

        Raises:
            DataError: it is missing, broken, or of another gallery.
            RuntimeSetupError: usearch is not installed.
        """
        record = read_record(gallery, "hnsw")
        path = check_indexable(gallery)
        graph = index_files(path)[4]
        try:
            if file_digest(graph) != record.get("graph_sha256"):
                raise DataError(f"'{graph}' was changed or damaged; {again(path, 'hnsw')}")
        except OSError as error:
            raise DataError(
                f"'{graph}' can't be read: {error.strerror}; {again(path, 'hnsw')}"
            ) from None
        self.gallery = gallery
        self._index = _new_index(gallery.embeddings.shape[1])
        rows, width = gallery.embeddings.shape
        try:
            self._index.load(str(graph))
        except (RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())
            raise DataError(f"'{graph}' can't be read: {told}; {again(path, 'hnsw')}") from None
        if (len(self._index), self._index.ndim) != (rows, width):
            raise DataError(
                f"'{graph}' is of {len(self._index):,} x {self._index.ndim:,} numbers and the "
                f"gallery of {rows:,} x {width:,}; {again(path, 'hnsw')}"
            )
        self._index.expansion_search = EXPANSION_SEARCH

    def search(self, queries: npt.NDArray[np.floating[Any]], *, k: int) -> SearchResult:
        """The best `k` of the rows that the graph proposes, scored as by the exact search.

        Raises:
            DataError: a query has no direction.
        """
        return _propose_and_score(self.gallery, self._index, queries, k)


def _propose_and_score(
    gallery: Gallery, index: Any, queries: npt.NDArray[np.floating[Any]], k: int
) -> SearchResult:
    num_rows = len(gallery.embeddings)
    k = min(k, num_rows)
    count = min(num_rows, max(4 * k, EXPANSION_SEARCH))
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for number, query in enumerate(np.asarray(queries, np.float32)):
        proposed = np.asarray(index.search(query, count).keys).astype(np.int64)
        allowed = np.zeros(num_rows, np.bool_)
        allowed[proposed[proposed < num_rows]] = True
        if np.count_nonzero(allowed) < k:
            raise DataError(
                f"the hnsw index of '{gallery.path}' proposes {np.count_nonzero(allowed)} rows "
                f"where {k} are wanted; ask for fewer, or search without it: --index none"
            )
        found = search(
            queries=query[None], gallery_embeddings=gallery.embeddings, k=k, allowed=allowed
        )
        rows[number], scores[number] = found.rows[0], found.scores[0]
    return SearchResult(rows, scores)


def _measure(gallery: Gallery, index: Any, progress: Progress) -> dict[str, Any]:
    """How the graph's answers compare with the exact ones, on rows of the gallery itself."""
    num_rows = len(gallery.embeddings)
    random = np.random.default_rng(SEED)
    sample = np.sort(random.choice(num_rows, min(SAMPLE, num_rows), replace=False))
    depth = min(DEPTH, num_rows - 1)
    measured: dict[str, Any] = {
        "queries": len(sample),
        "seed": SEED,
        "k": depth,
        "recall": None,
        "rank1": None,
        "exact_rank1": None,
    }
    if not depth:
        return measured
    queries = np.asarray(gallery.embeddings[sample], dtype=np.float32)
    exact = search(
        queries=queries, gallery_embeddings=gallery.embeddings, k=depth + 1, progress=progress
    )
    near = _propose_and_score(gallery, index, queries, depth + 1)
    best, proposed = _without(exact.rows, sample), _without(near.rows, sample)
    agree = [len(set(a) & set(b)) for a, b in zip(best.tolist(), proposed.tolist(), strict=True)]
    measured["recall"] = sum(agree) / best.size
    people = gallery.columns.get("person_id")
    if people is not None:
        ids = np.array(people)
        # Somebody with one picture has no right answer; distractors and junk are nobody.
        counted = [
            i for i, row in enumerate(sample)
            if ids[row] not in ("", "0", "-1") and people.count(ids[row]) > 1
        ]  # fmt: skip
        if counted:
            own = ids[sample[counted]]
            measured["rank1"] = float((ids[proposed[counted, 0]] == own).mean())
            measured["exact_rank1"] = float((ids[best[counted, 0]] == own).mean())
    return measured


def _without(found: Rows, own: Rows) -> Rows:
    """`found` (Q, k + 1) without each query's `own` row, or without the last where it is not."""
    kept = []
    for rows, row in zip(found.tolist(), own.tolist(), strict=True):
        kept.append([each for each in rows if each != row][: len(rows) - 1])
    return np.array(kept, np.int64)


def _new_index(width: int) -> Any:
    try:
        usearch: Any = importlib.import_module("usearch.index")
    except ImportError:
        raise RuntimeSetupError(
            "hnsw indexes are usearch's, which is not installed: pip install 'airnet[ann]'"
        ) from None
    return usearch.Index(
        ndim=width,
        metric="cos",
        dtype="bf16",  # candidates only; half of the room of float32
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
