"""The nearest gallery rows of each query by cosine: exact, in one pass over a mapped matrix.

- A float32 product of a block of rows with all queries finds the rows that may be among the best k.
  Only these few are scored in float64, which decides their order.
- The last bits of a matrix product depend on a row's place in it. A float64 score depends on
  nothing but the row and the query, so equal rows have equal scores wherever they are.
- Memory is that of a block of cosines, and a piece of the gallery for each thread.
- Threads share the rows of a block, with BLAS in one thread each. BLAS's own threads share every
  product of a piece instead, and take 2 to 10 times as long beside other work.

Letters: Q queries, N gallery rows, D embedding size, C compared columns, B rows of a block.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.product import (
    Floats,
    Integers,
    Matrix,
    check_lengths,
    pieces,
    squared_lengths,
)
from airnet_cli.core.retrieval.threads import blas_in_one_thread
from airnet_cli.errors import DataError

Doubles = npt.NDArray[np.float64]

PIECE_BYTES = 8 * 2**20
"""Size of a piece as float32: small enough that the product finds it in the cache after its lengths
were computed."""

BLOCK_BYTES = 32 * 2**20
"""Size of the float32 cosines (Q, B) of a block."""

BLOCK_ROWS = 2**16
"""B, unless the cosines would take more than `BLOCK_BYTES`."""

MARGIN = 4e-6
"""Twice the error that a float32 cosine may have; for 6,144 columns it is about 2e-7."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The nearest rows of each query, nearest first; k is at most the number of rows allowed."""

    rows: Integers
    """(Q, k) rows of the gallery."""
    scores: Floats
    """(Q, k) cosines, in -1 to 1."""


def search(
    *,
    queries: npt.NDArray[np.floating[Any]],
    gallery_embeddings: Matrix,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    parts: Sequence[slice] = (slice(None),),
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
        progress: told after each block.

    Raises:
        DataError: the widths differ, no row is allowed, or a row holds NaN or infinity, or is zero.
    """
    num_rows, width = gallery_embeddings.shape
    if queries.ndim != 2 or queries.shape[1] != width:
        raise DataError(
            f"the queries have the shape {queries.shape} and the gallery has {width} columns; "
            "compute both with the same model and the same heads"
        )
    chosen = None if allowed is None else np.flatnonzero(allowed)
    count = num_rows if chosen is None else len(chosen)
    if k < 1 or not count:
        raise DataError(f"nothing to find: k is {k}, and {count} gallery rows are allowed")
    k = min(k, count)
    columns = _merge(parts, width)
    unit = _unit_queries(queries, columns)
    best = _Best(unit, gallery_embeddings, columns, k)
    single = unit.astype(np.float32)
    block = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, len(queries)))))
    progress("searching", 0, count, "rows")
    with blas_in_one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        fill = partial(_fill, single, gallery_embeddings, columns)
        for begin in range(0, count, block):
            end = min(begin + block, count)
            rows = np.arange(begin, end) if chosen is None else chosen[begin:end]
            cosines = np.empty((len(queries), len(rows)), np.float32)
            shares = np.array_split(rows, threads), np.array_split(cosines, threads, axis=1)
            list(pool.map(fill, *shares))  # the list passes errors on
            best.add(cosines, rows)
            progress("searching", end, count, "rows")
    return SearchResult(np.stack(best.rows), np.stack(best.scores).astype(np.float32))


class _Best:
    """The best k rows of each query so far, by their float64 scores."""

    def __init__(self, queries: Doubles, gallery: Matrix, columns: Sequence[slice], k: int) -> None:
        """Begin without rows, for `queries` (Q, C) of length 1."""
        self.queries, self.gallery, self.columns, self.k = queries, gallery, columns, k
        self.rows: list[Integers] = [np.empty(0, np.int64)] * len(queries)
        self.scores: list[Doubles] = [np.empty(0)] * len(queries)
        self._floor = np.full(len(queries), -np.inf)  # (Q,) the k-th best score so far

    def add(self, cosines: Floats, rows: Integers) -> None:
        """Take the best of `rows` (B,), ascending and above all before, by `cosines` (Q, B)."""
        for query in np.flatnonzero(cosines.max(axis=1) >= self._floor - MARGIN).tolist():
            near = np.flatnonzero(cosines[query] >= self._floor[query] - MARGIN)
            if len(near) > self.k:
                kth = np.partition(cosines[query, near], -self.k)[-self.k]
                near = near[cosines[query, near] >= kth - MARGIN]
            scores = np.concatenate([self.scores[query], self._score(query, rows[near])])
            order = np.argsort(-scores, kind="stable")[: self.k]
            self.rows[query] = np.concatenate([self.rows[query], rows[near]])[order]
            self.scores[query] = scores[order]
            if len(order) == self.k:
                self._floor[query] = scores[order[-1]]

    def _score(self, query: int, rows: Integers) -> Doubles:
        """The float64 cosines (R,) of one query with `rows` (R,)."""
        scores = np.empty(len(rows))
        for begin, piece in pieces(self.gallery, rows, piece_bytes=PIECE_BYTES):
            # In C order einsum adds up each row in the same way, whatever is beside it.
            values = _compared(piece, self.columns).astype(np.float64, order="C")
            dots = np.einsum("rc,c->r", values, self.queries[query])
            lengths = np.sqrt(np.einsum("rc,rc->r", values, values))
            scores[begin : begin + len(piece)] = dots / lengths
        return scores.clip(-1, 1)


def _fill(
    queries: Floats, gallery: Matrix, columns: Sequence[slice], rows: Integers, cosines: Floats
) -> None:
    """Compute the `cosines` (Q, B) of `queries` (Q, C), of length 1, with `rows` (B,).

    Raises:
        DataError: a row holds NaN or infinity, or is zero.
    """
    for begin, piece in pieces(gallery, rows, piece_bytes=PIECE_BYTES):
        here = slice(begin, begin + len(piece))
        values = _compared(piece, columns)
        squared = squared_lengths(values)
        check_lengths(squared, rows[here], metric="cosine", name="gallery")
        products = values @ queries.T  # a little faster than queries @ values.T
        np.divide(products.T, np.sqrt(squared), out=cosines[:, here])


def _unit_queries(queries: npt.NDArray[np.floating[Any]], columns: Sequence[slice]) -> Doubles:
    """The compared columns of the queries as vectors (Q, C) of length 1, or an error."""
    values = _compared(queries, columns).astype(np.float64, order="C")
    with np.errstate(over="ignore"):  # too large for float32 is an error, not a warning
        squared = squared_lengths(values.astype(np.float32))
    check_lengths(squared, np.arange(len(values)), metric="cosine", name="query")
    unit: Doubles = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit


def _merge(parts: Sequence[slice], width: int) -> list[slice]:
    """The parts with adjacent ones made one: all heads of a gallery are all its columns."""
    columns = np.concatenate([np.arange(width)[part] for part in parts])
    runs = np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]


def _compared(matrix: npt.NDArray[Any], columns: Sequence[slice]) -> npt.NDArray[Any]:
    """The chosen columns (R, C) of a matrix (R, D); a view where they are adjacent."""
    if len(columns) == 1:
        return matrix[:, columns[0]]
    return np.concatenate([matrix[:, part] for part in columns], axis=1)
