"""The one product behind search, evaluation and re-ranking: float32, in pieces, without torch.

A matrix may be memory-mapped, of any float type, and made of several files. At most one piece of it
is in memory as float32.

Letters: N rows of a matrix, R rows asked for, D embedding size, Q queries.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from airnet_cli.errors import DataError

Metric = Literal["cosine", "euclidean"]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

PIECE_BYTES = 32 * 2**20
"""Size of one piece as float32."""

BLOCK_BYTES = 96 * 2**20
"""Size of one block of nearness, which is allocated once."""

SHORTEST_SQUARED = 1e-30
"""Squared length under which a vector's direction is lost in float32 products."""


class Matrix(Protocol):
    """Rows of floats: a NumPy array, or rows of several files (`JoinedRows`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, rows: Any, /) -> npt.NDArray[np.floating[Any]]:
        """The rows of a slice or of an index array, (R, D)."""


def pieces(
    matrix: Matrix, rows: Integers | None = None, *, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[int, Floats]]:
    """Yield the rows as float32 pieces (R, D), each with the number of rows before it.

    Args:
        matrix: (N, D).
        rows: ascending row numbers; None for all rows. Adjacent float32 rows are not copied.
        piece_bytes: size of a piece.
    """
    num_rows, width = matrix.shape
    count = num_rows if rows is None else len(rows)
    size = max(1, piece_bytes // (4 * max(1, width)))
    for begin in range(0, count, size):
        end = min(begin + size, count)
        if rows is None:
            taken = matrix[begin:end]
        elif rows[end - 1] - rows[begin] == end - 1 - begin:
            taken = matrix[int(rows[begin]) : int(rows[end - 1]) + 1]
        else:
            taken = matrix[rows[begin:end]]
        yield begin, np.asarray(taken, np.float32)


def squared_lengths(piece: Floats) -> Floats:
    """The squared length (R,) of each row of `piece` (R, D); infinity where float32 overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        # BLAS's dot product of each row with itself: three times as fast as einsum. Rows are cut in
        # four, as NumPy lets other threads run only in calls of more than 500 dot products.
        parts = piece.reshape(len(piece), math.gcd(piece.shape[1], 4), -1)
        squared: Floats = np.matmul(parts[..., None, :], parts[..., :, None]).sum(axis=(1, 2, 3))
    return squared


def check_lengths(squared: Floats, rows: Integers, *, metric: Metric, name: str) -> None:
    """Refuse the first of `rows` (R,) whose squared length (R,) does not fit the metric.

    Args:
        squared: from `squared_lengths`.
        rows: row numbers, for the message.
        metric: cosine also refuses vectors that are (nearly) zero: they have no direction.
        name: "query" or "gallery", for the message.

    Raises:
        DataError: a row holds NaN, infinity or values too large for float32, or is zero.
    """
    for row in rows[~np.isfinite(squared)][:1]:
        raise DataError(
            f"{name} row {row} (from 0) holds NaN, infinity or values too large for float32; "
            "compute the embeddings again, or remove that row"
        )
    if metric == "cosine":
        for row in rows[squared < SHORTEST_SQUARED][:1]:
            raise DataError(
                f"{name} row {row} (from 0) is zero and has no direction, which cosine needs; "
                "compute the embeddings again, or remove that row"
            )


def product(
    queries: Floats, gallery: Matrix, *, rows: Integers | None = None, out: Floats | None = None
) -> Floats:
    """The dot products (Q, R) of all `queries` (Q, D) with `rows` of the gallery.

    Args:
        queries: (Q, D) float32.
        gallery: (N, D).
        rows: ascending; None for all.
        out: (Q, R) float32 to write into; None allocates it.
    """
    count = gallery.shape[0] if rows is None else len(rows)
    if out is None:
        out = np.empty((len(queries), count), np.float32)
    for begin, piece in pieces(gallery, rows):
        np.matmul(queries, piece.T, out=out[:, begin : begin + len(piece)])
    return out


def checked_squared_lengths(
    matrix: Matrix, rows: Integers, *, metric: Metric, name: Literal["query", "gallery"]
) -> Floats:
    """The squared length (R,) of each of `rows`, checked as `check_lengths` does.

    Raises:
        DataError: a row does not fit the metric.
    """
    squared = np.concatenate([squared_lengths(piece) for _, piece in pieces(matrix, rows)])
    check_lengths(squared, rows, metric=metric, name=name)
    return squared


def nearness_blocks(
    queries: Matrix,
    gallery: Matrix,
    *,
    query_rows: Integers,
    gallery_rows: Integers,
    metric: Metric,
    query_block: int | None = None,
) -> Iterator[tuple[int, Floats]]:
    """How near `gallery_rows` (R,) are to `query_rows`, a block of queries (B, R) at a time.

    Larger is nearer. Cosine gives <q, g> / |g|, euclidean <q, g> - |g|^2 / 2. For one query both
    have the order of the distance: what is left out (|q|, its square) is the same for the whole
    row. Nothing is rounded before the product, so distances that are exact in float32 stay exact.

    Args:
        queries: (Q, D).
        gallery: (N, D).
        query_rows: the queries to compare.
        gallery_rows: ascending, at least one.
        metric: what "near" means.
        query_block: B; None takes as many queries as `BLOCK_BYTES` hold.

    Yields:
        The number of queries before this block, and the block. It may be changed freely, and is
        overwritten by the next one.

    Raises:
        DataError: a gallery row does not fit the metric.
    """
    squared = checked_squared_lengths(gallery, gallery_rows, metric=metric, name="gallery")
    lengths, half_squared = np.sqrt(squared), squared / 2
    size = query_block or max(1, BLOCK_BYTES // (4 * len(squared)))
    buffer = np.empty((min(size, len(query_rows)), len(squared)), np.float32)
    for first in range(0, len(query_rows), size):
        taken = np.asarray(queries[query_rows[first : first + size]], np.float32)
        nearness = product(taken, gallery, rows=gallery_rows, out=buffer[: len(taken)])
        if metric == "cosine":
            nearness /= lengths
        else:
            nearness -= half_squared
        yield first, nearness
