"""The nearest gallery rows of each query by cosine: exact, in one pass over a memory-mapped matrix.

- A float32 product of a block of rows with all queries finds candidates; only they are scored in
  float64. How wrong the product can be is bounded, so no row that belongs among the best is missed.
- The best k so far are kept for each query. Memory is that of a block, not of the gallery.
- Equal rows have equal scores, wherever in the file they are: a row's float64 score depends on
  nothing but the row and the query. (A matrix product's last bit depends on the row's place.)

Letters: Q queries, N gallery rows, D embedding size, B rows of a block, P candidate pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

Matrix = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

BLOCK_BYTES = 8 * 2**20
"""Of a block as float32: small enough that its lengths are taken while it is in the cache."""

PAIR_BYTES = 32 * 2**20
"""Of one (queries, B) product, and of the candidates scored in float64 at a time."""

SHORTEST_SQUARED = 1e-30
"""Squared length under which a vector's direction is lost in float32 products."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The nearest rows of each query, nearest first; k is at most the number of rows allowed."""

    rows: Rows
    """(Q, k) rows of the gallery."""
    scores: npt.NDArray[np.float32]
    """(Q, k) cosines, in -1 to 1."""


def search(
    *,
    queries: Matrix,
    gallery_embeddings: Matrix,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    parts: Sequence[slice] = (slice(None),),
    block_rows: int | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Find the `k` gallery rows with the highest cosine for each query.

    Among equal cosines (in float64) the lower row comes first.

    Args:
        queries: (Q, D), floats.
        gallery_embeddings: (N, D), floats, read as float32; may be memory-mapped.
        k: how many, from 1; fewer come back where fewer rows are allowed.
        allowed: (N,) which rows may be found, at least one; None for all.
        parts: the columns to compare, as slices that do not overlap; all of them if not given.
        block_rows: B; None takes as many as `BLOCK_BYTES` hold. For speed and memory only.
        progress: told after each block.

    Raises:
        DataError: the widths differ, or a row has no direction: zero, NaN or infinity.
    """
    if k < 1 or (block_rows is not None and block_rows < 1):
        raise ValueError(f"k and block_rows are at least 1, got {k} and {block_rows}")
    num_rows, width = gallery_embeddings.shape
    if queries.ndim != 2 or queries.shape[1] != width:
        raise DataError(
            f"the queries have the shape {queries.shape} and the gallery has {width} columns; "
            "compute both with the same model and the same heads"
        )
    num_allowed = num_rows if allowed is None else int(np.count_nonzero(allowed))
    if num_allowed == 0:
        raise DataError("no gallery row is allowed, so there is nothing to find")
    compared = np.concatenate([np.arange(width)[part] for part in parts])
    exact = _unit_queries(queries, compared)  # (Q, D) float64, in the order of `parts`
    best = _Best(exact, gallery_embeddings, compared, k=min(k, num_allowed))
    product = [(part, exact[:, at].astype(np.float32)) for part, at in _places(parts, width)]
    block = block_rows or max(1, BLOCK_BYTES // (4 * width))
    done = 0
    progress("searching", done, num_allowed, "rows")
    for rows in _blocks(num_rows, block, allowed):
        values = _take(gallery_embeddings, rows)  # (B, D) float32
        lengths = _lengths(values, rows, [part for part, _ in product])
        for begin, end in _pieces(len(queries), 4 * len(rows)):
            cosines = np.zeros((end - begin, len(rows)), np.float32)
            for part, vectors in product:
                cosines += vectors[begin:end] @ values[:, part].T
            cosines /= lengths
            best.add(begin, cosines, rows)
        done += len(rows)
        progress("searching", done, num_allowed, "rows")
    return SearchResult(rows=best.rows, scores=best.scores.astype(np.float32))


class _Best:
    """The best k rows of each query so far, with their float64 cosines."""

    def __init__(self, queries: Matrix, gallery: Matrix, compared: Rows, *, k: int) -> None:
        self.queries = queries
        self.gallery = gallery
        self.compared = compared
        self.k = k
        self.rows: Rows = np.full((len(queries), k), -1, np.int64)
        self.scores = np.full((len(queries), k), -np.inf)
        # A product of D terms is off by at most D roundings of its largest possible sum, 1; the
        # length's by half of that (Higham 2002, 3.1). Real errors are far smaller.
        self.error = (2 * len(compared) + 16) * 2.0**-24

    def add(self, first: int, cosines: npt.NDArray[np.float32], rows: Rows) -> None:
        """Take the best of `rows` (B,) for the queries from `first` on: `cosines` (q, B)."""
        held = slice(first, first + len(cosines))
        bound = self.scores[held, -1] - self.error  # of what may still get in; -inf while not full
        is_near = cosines >= _under(bound)[:, None]
        crowded = np.flatnonzero(np.count_nonzero(is_near, axis=1) > 2 * self.k + 64)
        if len(crowded) and self.k < len(rows):
            place = len(rows) - self.k
            kth = np.partition(cosines[crowded], place, axis=1)[:, place]
            bound[crowded] = np.maximum(bound[crowded], kth - 2 * self.error)
            is_near[crowded] = cosines[crowded] >= _under(bound[crowded])[:, None]
        query, column = np.nonzero(is_near)  # (P,) each, sorted by query, then by row
        if len(query):
            self._merge(query + first, rows[column])

    def _merge(self, query: Rows, row: Rows) -> None:
        """Score pairs (P,) and keep the best k of each query, old ones included."""
        touched = np.unique(query)
        all_queries = np.concatenate([np.repeat(touched, self.k), query])
        all_rows = np.concatenate([self.rows[touched].ravel(), row])
        all_scores = np.concatenate([self.scores[touched].ravel(), self._score(query, row)])
        order = np.lexsort((all_rows, -all_scores, all_queries))
        starts = np.searchsorted(all_queries[order], touched)
        kept = order[starts[:, None] + np.arange(self.k)]  # (touched, k)
        self.rows[touched] = all_rows[kept]
        self.scores[touched] = all_scores[kept]

    def _score(self, query: Rows, row: Rows) -> npt.NDArray[np.float64]:
        scores = np.empty(len(query))
        for begin, end in _pieces(len(query), 8 * len(self.compared)):
            # C order whatever the indexing gave: each row is then added up in the same way.
            values = _take(self.gallery, row[begin:end])[:, self.compared]
            values = values.astype(np.float64, order="C")
            products = (values * self.queries[query[begin:end]]).sum(axis=1)
            scores[begin:end] = products / np.sqrt((values * values).sum(axis=1))
        return np.clip(scores, -1, 1)


def _unit_queries(queries: Matrix, compared: Rows) -> npt.NDArray[np.float64]:
    """The compared columns of the queries as float64 vectors of length 1, or an error."""
    vectors = queries[:, compared].astype(np.float64)
    squared = (vectors * vectors).sum(axis=1)
    for query in np.flatnonzero(~(np.isfinite(squared) & (squared >= SHORTEST_SQUARED)))[:1]:
        raise DataError(
            f"query {query} (from 0) has an embedding without direction: zero, NaN or infinity; "
            "compute it again"
        )
    unit: npt.NDArray[np.float64] = vectors / np.sqrt(squared)[:, None]
    return unit


def _lengths(
    values: npt.NDArray[np.float32], rows: Rows, parts: Sequence[slice]
) -> npt.NDArray[np.float32]:
    """The lengths (B,) of the compared columns of a block, or an error."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.zeros(len(values), np.float32)
        for part in parts:
            squared += np.einsum("nd,nd->n", values[:, part], values[:, part])
    for row in rows[~(np.isfinite(squared) & (squared >= SHORTEST_SQUARED))][:1]:
        raise DataError(
            f"gallery row {row} (from 0) has no direction: zero, NaN, infinity or values too large "
            "for float32; embed the gallery again, or leave that row out"
        )
    return np.sqrt(squared)


def _blocks(num_rows: int, block: int, allowed: npt.NDArray[np.bool_] | None) -> Iterator[Rows]:
    """Yield the allowed rows, ascending, up to `block` at a time."""
    rows = np.arange(num_rows) if allowed is None else np.flatnonzero(allowed)
    for begin in range(0, len(rows), block):
        yield rows[begin : begin + block]


def _take(matrix: Matrix, rows: Rows) -> npt.NDArray[np.float32]:
    """Return `rows` as float32: a view if they are adjacent and float32, else a copy."""
    first, last = int(rows[0]), int(rows[-1])
    is_adjacent = last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all())
    taken = matrix[first : last + 1] if is_adjacent else matrix[rows]
    return np.asarray(taken, dtype=np.float32)


def _places(parts: Sequence[slice], width: int) -> Iterator[tuple[slice, slice]]:
    """Yield each part with its place among the compared columns."""
    start = 0
    for part in parts:
        stop = start + len(range(width)[part])
        yield part, slice(start, stop)
        start = stop


def _pieces(total: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    size = max(1, PAIR_BYTES // bytes_each)
    for begin in range(0, total, size):
        yield begin, min(total, begin + size)


def _under(bound: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The bound as float32, never higher."""
    return np.nextafter(bound.astype(np.float32), np.float32(-np.inf))
