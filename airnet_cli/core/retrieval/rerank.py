"""Re-ranking by k-reciprocal neighbours (Zhong et al. 2017): pictures that find each other.

The procedure of the authors' code, sparse: a picture is described by weights on its few neighbours,
so memory grows with N times the neighbours, never with N x N. Who is near whom takes half of one
blocked matrix product of all pictures with each other (the other half is its mirror image).

Letters: Q queries, G gallery rows, N = Q + G pictures (queries first), D embedding size, K
neighbours that are kept, B rows of a block, P pairs.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.threads import blas_in_one_thread
from airnet_cli.errors import EvaluationError

BLOCK_BYTES = 192 * 2**20
"""Of a block of cosines or of distances."""

TABLE_CELLS = 2**21
"""Of the table in which the neighbours of a block of pictures are looked up: a cache's size."""

PIECE_CELLS = 2**16
"""Of the distances that are mixed at a time: a cache's size."""

PIECE_BYTES = 2**20
"""Of the rows that are gathered at a time for single products: a cache's size."""

SHARE_COLUMNS = 256
"""Of a block's product, that are worth a thread of their own."""

SPARE = 11
"""Neighbours kept beyond those that the method looks at: most of the pairs whose cosine it needs
later are then among them."""

SHORTEST_SQUARED = 1e-30
"""Squared length under which a vector's direction is lost in float32."""

T = TypeVar("T")
Matrix = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Reranking:
    """The method's parameters; the defaults are the published ones."""

    k1: int = 20
    """Neighbours that may be reciprocal, from 1."""
    k2: int = 6
    """Neighbours (a picture itself is the first) that a picture's description is averaged over."""
    original_weight: float = 0.3
    """Lambda: the share of the original distance in the final one, in 0-1."""

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.original_weight <= 1:
            raise ValueError(f"k1 and k2 are at least 1 and original_weight is in 0-1, got {self}")


def k_reciprocal_distances(*, queries: Matrix, gallery: Matrix, reranking: Reranking) -> Floats:
    """Return all distances (Q, G) of `k_reciprocal_blocks`: for problems whose matrix is small."""
    distances = np.empty((len(queries), len(gallery)))
    for first, block in k_reciprocal_blocks(queries=queries, gallery=gallery, reranking=reranking):
        distances[first : first + len(block)] = block
    return distances


def k_reciprocal_blocks(
    *,
    queries: Matrix,
    gallery: Matrix,
    reranking: Reranking,
    gallery_rows: Integers | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[int, Floats]]:
    """Yield (b, distances): those of queries b, b + 1, ... to the whole gallery, from 0 to 1.

    As the authors' code (`zhunzhong07/person-re-ranking`, `re_ranking_ranklist.py`) does on
    features of length 1: the original distance is 2 - 2 cos (squared Euclidean), divided by the
    largest of its row. Differences: among equal distances the lower index (queries first) is
    nearer, where it leaves that to the sort; and it holds several N x N matrices.

    Cosines are computed in float32, or in float64 where both matrices are, and the rest in float64.

    Args:
        queries: (Q, D), floats of any length but 0.
        gallery: (G, D), likewise. With `k1` rows or fewer everybody is everybody's neighbour, which
            tells little, and is computed as published.
        reranking: The parameters.
        gallery_rows: The rows of `gallery` that are meant, ascending; None for all. The others
            might as well not be there.
        progress: Told after each block of pictures, then of queries.

    Yields:
        The number of queries before this block, and float64 (B, G), B smaller in the last block. It
        may be changed freely, and is overwritten by the next block.

    Raises:
        EvaluationError: A row has no direction: zero, NaN or infinity.
    """
    if gallery_rows is None:
        gallery_rows = np.arange(len(gallery))
    num_queries, num_gallery = len(queries), len(gallery_rows)
    features = _unit_rows(queries, gallery, gallery_rows)  # (N, D)
    # One block's worth of what the end needs again is worth keeping.
    is_kept = num_queries * num_gallery * features.itemsize <= BLOCK_BYTES
    kept = np.empty((num_queries, num_gallery), features.dtype) if is_kept else None
    near = _neighbours(features, reranking, kept, progress)
    weights = _average(_encode(features, near, reranking), near, reranking.k2)
    by_neighbour = weights.rows_between(num_queries, len(features)).transposed()  # (N, G)

    size = max(1, BLOCK_BYTES // (features.itemsize * num_gallery))
    step = max(1, PIECE_CELLS // num_gallery)
    buffer = np.empty((min(step, num_queries), num_gallery))
    for first in range(0, num_queries, size):
        last = min(first + size, num_queries)
        cosines = (
            features[first:last] @ features[num_queries:].T if kept is None else kept[first:last]
        )
        for begin in range(first, last, step):
            end = min(begin + step, last)
            distances = buffer[: end - begin]
            common = _common(weights.rows_between(begin, end), by_neighbour)
            np.subtract(1, np.minimum(cosines[begin - first : end - first], 1), out=distances)
            distances *= (reranking.original_weight / near.largest[begin:end])[:, None]
            # Jaccard: 1 - common / (2 - common), since both descriptions add up to 1.
            distances += (1 - reranking.original_weight) * (1 - common / (2 - common))
            yield begin, distances
        progress("re-ranking", last, num_queries, "queries")


@dataclass(frozen=True, slots=True, eq=False)
class _Neighbours:
    """The nearest pictures of each, itself among them."""

    rows: npt.NDArray[np.int32]
    """(N, K), the nearest first; of equally near ones the lower first."""
    distances: Floats
    """(N, K) 1 - cos, divided by `largest`."""
    largest: Floats
    """(N,) the largest 1 - cos of each picture; 1 where all are 0."""


_Cells = tuple[npt.NDArray[np.int32], Floats, Integers]
"""Of some rows of a sparse matrix: columns and values of the cells, and the cells of each row."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sparse:
    """A matrix by its cells that are not zero, row after row (CSR)."""

    starts: Integers
    """(rows + 1,) where each row's cells begin, and where the last one's end."""
    columns: npt.NDArray[np.int32]
    """(cells,) in any order within a row."""
    values: Floats
    """(cells,)"""
    num_columns: int

    @classmethod
    def of(cls, parts: Iterable[_Cells], num_columns: int) -> "_Sparse":
        """Return the matrix of some rows after the other."""
        columns, values, counts = map(np.concatenate, zip(*parts, strict=True))
        return cls(np.concatenate([[0], counts.cumsum()]), columns, values, num_columns)

    def cells_of(self, rows: npt.NDArray[np.integer[Any]]) -> tuple[Integers, Integers]:
        """Return the places of the cells of `rows`, one row after the other, and their numbers."""
        begin = self.starts[rows]
        counts = self.starts[1:][rows] - begin
        ends = counts.cumsum()
        return np.arange(ends[-1]) + np.repeat(begin - ends + counts, counts), counts

    def rows_between(self, first: int, last: int) -> "_Sparse":
        """Return the rows from `first` up to `last` alone."""
        cells = slice(self.starts[first], self.starts[last])
        return _Sparse(
            self.starts[first : last + 1] - cells.start,
            self.columns[cells],
            self.values[cells],
            self.num_columns,
        )

    def transposed(self) -> "_Sparse":
        """Return the matrix with its columns as rows: who has this cell?"""
        num_rows = len(self.starts) - 1
        rows = np.repeat(np.arange(num_rows, dtype=np.int32), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        starts = np.zeros(self.num_columns + 1, np.int64)
        np.cumsum(np.bincount(self.columns, minlength=self.num_columns), out=starts[1:])
        return _Sparse(starts, rows[order], self.values[order], num_rows)


def _unit_rows(queries: Matrix, gallery: Matrix, gallery_rows: Integers) -> Matrix:
    """Both matrices, one under the other, each row of length 1; one copy."""
    kind = np.float64 if queries.dtype == gallery.dtype == np.float64 else np.float32
    features = np.empty((len(queries) + len(gallery_rows), queries.shape[1]), kind)
    features[: len(queries)] = queries
    if kind == gallery.dtype:
        # "clip": rows are in range, and "raise" would buffer the whole result.
        np.take(gallery, gallery_rows, axis=0, out=features[len(queries) :], mode="clip")
    else:
        features[len(queries) :] = gallery[gallery_rows]
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("nd,nd->n", features, features)
    for row in np.flatnonzero(~(np.isfinite(squared) & (squared >= SHORTEST_SQUARED)))[:1]:
        name = f"query embeddings: row {row}"
        if row >= len(queries):
            name = f"gallery embeddings: row {gallery_rows[row - len(queries)]}"
        raise EvaluationError(
            f"{name} has no direction (zero, NaN, infinity or values too large for float32), which "
            "re-ranking needs; compute the embeddings again, or leave that row out"
        )
    features /= np.sqrt(squared)[:, None]
    return features


def _neighbours(
    features: Matrix, reranking: Reranking, kept: Matrix | None, progress: Progress
) -> _Neighbours:
    """Find the K nearest of each picture; fills `kept` (Q, G), if there is one, with cosines."""
    total = len(features)
    looked_at = max(reranking.k1 + 1, reranking.k2)
    k = min(total, looked_at + SPARE)
    # (N, K) so far, in any order; -inf where a row was compared with fewer than K.
    best = np.full((total, k), -np.inf, features.dtype)
    rows = np.zeros((total, k), np.int32)
    lowest = np.full(total, np.inf, features.dtype)
    threads = torch.get_num_threads()
    # In blocks: what a block has with itself, half of its square, is one thread's.
    blocks = max(8, 4 * threads)
    size = max(1, min(total // blocks + 1, BLOCK_BYTES // (features.itemsize * total)))
    buffer = np.empty(size * total, features.dtype)

    def multiply(cosines: Matrix, first: int, others: slice) -> None:
        pictures = features[first : first + len(cosines)]
        # NumPy's product: on processors that torch's is not made for it takes two thirds the time.
        # Of pictures with themselves it computes one half.
        columns = cosines[:, others.start - first : others.stop - first]
        np.matmul(pictures, features[others].T, out=columns)

    def take(cosines: Matrix, first: int, own: slice, later: slice) -> None:
        with_all = cosines[own.start - first : own.stop - first]
        with_block = cosines[:, later.start - first : later.stop - first].T
        for pictures, theirs in (own, with_all), (later, with_block):
            if theirs.size:
                lowest[pictures] = np.minimum(lowest[pictures], theirs.min(axis=1))
                _merge(best[pictures], rows[pictures], theirs, first)

    progress("comparing", 0, total, "pictures")
    with ThreadPoolExecutor(threads) as pool, blas_in_one_thread():
        for first in range(0, total, size):
            last = min(first + size, total)
            block = slice(first, last)
            cosines = buffer[: (last - first) * (total - first)].reshape(last - first, -1)
            number = max(1, min(threads, (total - last) // SHARE_COLUMNS))
            others = [block, *_spans(last, total, number)]
            list(pool.map(partial(multiply, cosines, first), others))
            if kept is not None and first < len(kept):
                kept[block] = cosines[: len(kept) - first, len(kept) - first :]
            np.fill_diagonal(cosines, 2)  # oneself is never lost
            shares = _spans(first, last, threads), _spans(last, total, threads)
            list(pool.map(partial(take, cosines, first), *shares))
            progress("comparing", last, total, "pictures")
    nearest = np.minimum(best, 1)  # rounding errors beyond 1 belong to 1
    order = np.lexsort((rows, -nearest))
    largest = 1 - lowest.astype(np.float64)
    largest[largest <= 0] = 1
    return _Neighbours(
        rows=np.take_along_axis(rows, order, axis=1),
        distances=(1 - np.take_along_axis(nearest, order, axis=1).astype(np.float64))
        / largest[:, None],
        largest=largest,
    )


def _shared_out(work: Callable[[slice], T], number: int) -> list[T]:
    """What `work` gives for the spans of `number` rows, one in each thread."""
    spans = _spans(0, number, min(torch.get_num_threads(), number))
    with ThreadPoolExecutor(len(spans)) as pool:
        return list(pool.map(work, spans))


def _spans(first: int, last: int, number: int) -> list[slice]:
    """Cut from `first` to `last` into so many spans."""
    ends = [first + (last - first) * cut // number for cut in range(number + 1)]
    return list(map(slice, ends[:-1], ends[1:]))


def _merge(best: Matrix, rows: npt.NDArray[np.int32], cosines: Matrix, first: int) -> None:
    """Keep the best K of what rows have (R, K) and of `cosines` (R, C) with pictures from `first`,
    of equals the first; in the pictures' order. All that is there is of pictures before those.

    To choose among all cells takes a third as long as to compute them. So one comparison leaves out
    what is not above the worst that a row has: nearly everything.
    """
    k = best.shape[1]
    worst = best.min(axis=1)
    if np.isneginf(worst).any():
        np.maximum(worst, _reached(cosines, k), out=worst)
    row, column = _cells_above(cosines, worst)
    counts = np.bincount(row, minlength=len(best))
    changed = np.flatnonzero(counts)  # (R',)
    found = counts[changed]
    width = k + int(found.max(initial=0))
    # (R', width): what each has, and behind it what it has found.
    values = np.full((len(changed), width), -np.inf, best.dtype)
    places = np.zeros(values.shape, np.int32)
    values[:, :k], places[:, :k] = best[changed], rows[changed]
    begin = np.arange(len(changed)) * width + k
    cell = np.arange(len(row)) + np.repeat(begin - (found.cumsum() - found), found)
    values.ravel()[cell] = cosines[row, column]
    places.ravel()[cell] = column + first
    reached = np.partition(values, width - k, axis=1)[:, width - k, None]
    is_kept = values >= reached
    too_many = np.count_nonzero(is_kept, axis=1, keepdims=True) - k  # of those that equal `reached`
    tied = np.flatnonzero(too_many)
    is_equal = values[tied] == reached[tied]
    is_last = is_equal[:, ::-1].cumsum(axis=1)[:, ::-1] <= too_many[tied]
    is_kept[tied] &= ~(is_equal & is_last)
    best[changed] = values[is_kept].reshape(-1, k)
    rows[changed] = places[is_kept].reshape(-1, k)


def _cells_above(cosines: Matrix, worst: Matrix) -> tuple[Integers, Integers]:
    """Row and column (P,) of each cell that is above its row's `worst` (R,), row after row."""
    num_rows, num_columns = cosines.shape
    is_above = cosines > worst[:, None]  # laid out in memory as `cosines` is
    if cosines.flags.c_contiguous:
        cell = np.flatnonzero(is_above)
    else:
        cell = np.flatnonzero(is_above.T)
        column = cell // num_rows
        cell = (cell - column * num_rows) * num_columns + column
        cell.sort()
    row = cell // num_columns
    return row, cell - row * num_columns


def _reached(cosines: Matrix, k: int) -> Matrix:
    """A bound (R,) just below what `k` cells of each row of `cosines` (R, C) reach, or more."""
    num_rows, num_columns = cosines.shape
    if num_columns <= k:
        return np.full(num_rows, -np.inf, cosines.dtype)
    parts = min(num_columns, 4 * k)
    each = num_columns // parts
    # The k-th largest of the maxima of 4k parts, which a glance at each cell finds.
    if cosines.flags.c_contiguous:
        maxima = cosines[:, : each * parts].reshape(num_rows, each, parts).max(axis=1)
    else:
        maxima = cosines.T[: each * parts].reshape(each, parts, num_rows).max(axis=0).T
    bound = np.partition(maxima, parts - k, axis=1)[:, parts - k]
    return np.nextafter(bound, -np.inf, dtype=cosines.dtype)


def _encode(features: Matrix, near: _Neighbours, reranking: Reranking) -> _Sparse:
    """Describe each picture by weights (N, N) on its reciprocal neighbours, and theirs."""
    whole = near.rows[:, : reranking.k1 + 1]
    half = near.rows[:, : round(reranking.k1 / 2) + 1]
    is_mutual, is_half_mutual = (
        np.concatenate(_shared_out(partial(_mutual, rows), len(rows))) for rows in (whole, half)
    )
    encode = partial(_encode_some, features, near, whole, half, is_mutual, is_half_mutual)
    return _Sparse.of(_shared_out(encode, len(near.rows)), num_columns=len(near.rows))


def _encode_some(
    features: Matrix,
    near: _Neighbours,
    whole: npt.NDArray[np.int32],
    half: npt.NDArray[np.int32],
    is_mutual: Flags,
    is_half_mutual: Flags,
    span: slice,
) -> _Cells:
    """Describe the pictures of a span."""
    total, k = near.rows.shape
    num_half = np.count_nonzero(is_half_mutual, axis=1)
    size = max(1, min(TABLE_CELLS // total, span.stop - span.start))
    # Which place each picture has among the neighbours of a block's rows; k where it has none.
    table = np.full((size, total), k, np.int16)
    # A last column for those without a place, which is nobody's.
    own = np.zeros((size, k + 1), np.bool_)
    cells, weights, counts = [], [], []
    for first in range(span.start, span.stop, size):
        last = min(first + size, span.stop)
        block = np.arange(last - first)[:, None]
        listed = near.rows[first:last]  # (B, K)
        table[block, listed] = np.arange(k, dtype=np.int16)
        own[: last - first, : whole.shape[1]] = is_mutual[first:last]

        # A neighbour brings its own (half as many) neighbours, if over two thirds are shared.
        row, place = np.nonzero(is_mutual[first:last])  # (P,) each
        neighbour = whole[first:last][row, place]
        offered, is_offered = half[neighbour], is_half_mutual[neighbour]  # (P, half)
        known = own[row[:, None], table[row[:, None], offered]]
        shared = (known & is_offered).sum(axis=1)
        brings = shared > 2 / 3 * num_half[neighbour]
        is_new = is_offered[brings] & ~known[brings]
        new = (row[brings, None] * total + offered[brings])[is_new]
        pairs = np.sort(np.concatenate([row * total + neighbour, new]))  # (P,) row, then column
        is_first = np.diff(pairs, prepend=-1) != 0
        row, column = np.divmod(pairs[is_first], total)

        place = table[row, column].astype(np.int64)
        is_listed = place < k
        distances = np.empty(len(row))
        distances[is_listed] = near.distances[first:last][row[is_listed], place[is_listed]]
        rest = ~is_listed
        cosines = _products(features, first + row[rest], column[rest])
        distances[rest] = (1 - np.minimum(cosines, 1)) / near.largest[first:last][row[rest]]
        values = np.exp(-distances)
        sums = np.bincount(row, weights=values, minlength=last - first)
        cells.append(column.astype(np.int32))
        weights.append(values / sums[row])
        counts.append(np.bincount(row, minlength=last - first))
        table[block, listed] = k
    return np.concatenate(cells), np.concatenate(weights), np.concatenate(counts)


def _mutual(rows: npt.NDArray[np.int32], span: slice) -> Flags:
    """Which of the neighbours (N, k) of a span's pictures have them among theirs."""
    flags = np.empty((span.stop - span.start, rows.shape[1]), np.bool_)
    size = max(1, TABLE_CELLS // rows.shape[1] ** 2)
    for first in range(span.start, span.stop, size):
        part = rows[first : min(first + size, span.stop)]
        oneself = np.arange(first, first + len(part), dtype=np.int32)[:, None, None]
        flags[first - span.start :][: len(part)] = (rows[part] == oneself).any(axis=2)
    return flags


def _products(features: Matrix, left: Integers, right: Integers) -> Floats:
    """The products (P,) of pairs of rows."""
    products = np.empty(len(left))
    size = max(1, PIECE_BYTES // (features.itemsize * features.shape[1]))
    for begin in range(0, len(left), size):
        piece = slice(begin, begin + size)
        products[piece] = np.einsum("nd,nd->n", features[left[piece]], features[right[piece]])
    return products


def _average(weights: _Sparse, near: _Neighbours, k2: int) -> _Sparse:
    """The mean of the weights (N, N) of each picture's `k2` nearest, itself among them."""
    average = partial(_average_some, weights, near.rows[:, :k2])
    return _Sparse.of(_shared_out(average, len(near.rows)), num_columns=weights.num_columns)


def _average_some(weights: _Sparse, nearest: npt.NDArray[np.int32], span: slice) -> _Cells:
    """The means of a span's pictures."""
    total = weights.num_columns
    k2 = nearest.shape[1]
    size = max(1, min(TABLE_CELLS // total, span.stop - span.start))
    # Which number each cell of a block's rows has; what it held before does not matter.
    table = np.zeros(size * total, np.int32)
    cells, values, counts = [], [], []
    for first in range(span.start, span.stop, size):
        rows = nearest[first : min(first + size, span.stop)]  # (B, k2)
        places, lengths = weights.cells_of(rows.ravel())
        row = np.repeat(np.repeat(np.arange(len(rows)), k2), lengths)
        keys = row * total + weights.columns[places]  # (P,)
        numbers = np.arange(len(keys), dtype=np.int32)
        table[keys] = numbers
        keys_once = keys[table[keys] == numbers]  # row after row: of equal ones the last
        table[keys_once] = numbers[: len(keys_once)]
        row, column = np.divmod(keys_once, total)
        cells.append(column.astype(np.int32))
        values.append(np.bincount(table[keys], weights=weights.values[places]) / k2)
        counts.append(np.bincount(row, minlength=len(rows)))
    return np.concatenate(cells), np.concatenate(values), np.concatenate(counts)


def _common(weights: _Sparse, by_neighbour: _Sparse) -> Floats:
    """How much queries' descriptions (B, N) share with the gallery's (B, G): sums of the minima.

    Only gallery rows that stand in the list of one of a query's neighbours are looked at.
    """
    num_rows, num_gallery = len(weights.starts) - 1, by_neighbour.num_columns
    row = np.repeat(np.arange(num_rows), np.diff(weights.starts))
    places, lengths = by_neighbour.cells_of(weights.columns)
    minima = np.minimum(np.repeat(weights.values, lengths), by_neighbour.values[places])
    common: Floats = np.bincount(
        np.repeat(row * num_gallery, lengths) + by_neighbour.columns[places],
        weights=minima,
        minlength=num_rows * num_gallery,
    )  # type: ignore[assignment]  # of floats where there are weights
    return common.reshape(num_rows, num_gallery)
