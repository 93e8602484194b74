"""Re-ranking by k-reciprocal neighbours (Zhong et al. 2017).

Two images are near each other if they have the same neighbours. This is the authors' procedure with
sparse matrices: each image is described by weights on its few neighbours, so memory grows with N
times the neighbours and never with N x N.

Letters: Q queries, G gallery images, N = Q + G images (queries first), D embedding size, K nearest
images that are kept, B images in a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.product import (
    Floats,
    Integers,
    Matrix,
    check_lengths,
    pieces,
    product,
    squared_lengths,
)

Distances = npt.NDArray[np.float64]

BLOCK_BYTES = 32 * 2**20
"""Size of one block of float32 cosines."""

QUERIES_AT_ONCE = 128
"""Largest number of queries in a block of results."""

KEPT_BYTES = 256 * 2**20
"""Largest size of the cosines (Q, G) that are kept from the search for neighbours to the end."""

ROUNDING = 1e-6
"""Images whose cosine is within this of 1 count as equal: float32 can't tell them apart."""


@dataclass(frozen=True, slots=True)
class Reranking:
    """The method's parameters; the defaults are the published ones."""

    k1: int = 20
    """Neighbours that may be reciprocal, from 1."""
    k2: int = 6
    """Neighbours (an image itself is the first) over which an image's description is averaged."""
    original_weight: float = 0.3
    """Lambda: the share of the original distance in the final one, in 0-1."""

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.original_weight <= 1:
            raise ValueError(f"k1 and k2 are at least 1 and original_weight is in 0-1, got {self}")


def k_reciprocal_distances(*, queries: Matrix, gallery: Matrix, reranking: Reranking) -> Distances:
    """Return all distances (Q, G) of `k_reciprocal_blocks`, for small problems."""
    blocks = k_reciprocal_blocks(queries=queries, gallery=gallery, reranking=reranking)
    return np.concatenate([distances for _, distances in blocks])


def k_reciprocal_blocks(
    *,
    queries: Matrix,
    gallery: Matrix,
    reranking: Reranking,
    gallery_rows: Integers | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[int, Distances]]:
    """Yield (b, distances): those of queries b, b + 1, ... to all gallery rows, from 0 to 1.

    Follows the authors' code (`zhunzhong07/person-re-ranking`, `re_ranking_ranklist.py`) on
    features of length 1: the original distance is 2 - 2 cos (squared Euclidean), divided by the
    largest of its row. That code leaves the order of equal distances to the sort. Here an image is
    its own nearest neighbour, and of equally near images the lower row is nearer (queries first).
    Cosines are computed in float32, all the rest in float64.

    Args:
        queries: (Q, D), floats of any length but 0.
        gallery: (N, D), the same. With `k1` rows or fewer, all images are neighbours of each other.
        reranking: the parameters.
        gallery_rows: (G,) the rows of `gallery` to rank, ascending; None for all. The result is
            the same as without the other rows.
        progress: called after each block of images, then of queries.

    Yields:
        The number of queries before this block, and its distances (B, G), which may be modified.

    Raises:
        DataError: a row is zero, or holds NaN, infinity or values too large for float32.
    """
    if gallery_rows is None:
        gallery_rows = np.arange(gallery.shape[0])
    num_queries, num_gallery = queries.shape[0], len(gallery_rows)
    features = np.empty((num_queries + num_gallery, queries.shape[1]), np.float32)
    _fill_unit_rows(features[:num_queries], queries, np.arange(num_queries), name="query")
    _fill_unit_rows(features[num_queries:], gallery, gallery_rows, name="gallery")

    is_kept = 4 * num_queries * num_gallery <= KEPT_BYTES  # computing them again: + 20% time
    kept = np.empty((num_queries if is_kept else 0, num_gallery), np.float32)
    near, largest = _nearest(features, max(reranking.k1 + 1, reranking.k2), kept, progress)
    described = _average(_describe(features, near, largest, reranking.k1), near[:, : reranking.k2])
    # (N, G): who of the gallery has this neighbour?
    gallery_with = described[num_queries:].T.tocsr()

    size = max(1, min(QUERIES_AT_ONCE, BLOCK_BYTES // (4 * num_gallery)))
    for first in range(0, num_queries, size):
        last = min(first + size, num_queries)
        cosines = (
            kept[first:last] if is_kept else product(features[first:last], features[num_queries:])
        )
        original = (1 - np.minimum(cosines, 1)) / largest[first:last, None]
        common = _common(described[first:last], gallery_with)
        # Each description adds up to 1, so the union of two is 2 - common.
        jaccard = 1 - common / (2 - common)
        weight = reranking.original_weight
        yield first, weight * original + (1 - weight) * jaccard
        progress("re-ranking", last, num_queries, "queries")


def _fill_unit_rows(out: Floats, matrix: Matrix, rows: Integers, *, name: str) -> None:
    """Write `rows` (R,) of `matrix` into `out` (R, D), each divided by its length."""
    for begin, piece in pieces(matrix, rows):
        end = begin + len(piece)
        squared = squared_lengths(piece)
        check_lengths(squared, rows[begin:end], metric="cosine", name=name)
        np.divide(piece, np.sqrt(squared)[:, None], out=out[begin:end])


def _nearest(
    features: Floats, k: int, kept: Floats, progress: Progress
) -> tuple[Integers, Distances]:
    """Find the K = min(k, N) nearest images (N, K) of each, in order, itself first.

    The cosines are symmetric, so half of them are computed: block by block those of some images
    with themselves and all later ones. Those of queries and gallery are written into `kept`
    (Q, G), unless it has no rows. The second value (N,) is each image's largest 1 - cos; 1 where
    all images are equal.
    """
    total = len(features)
    k = min(k, total)
    # At least k rows, so that the first block gives each image k candidates.
    size = max(k, min(total // 16, BLOCK_BYTES // (4 * total)))
    found = _Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    lowest = np.full(total, np.inf, np.float32)
    progress("comparing", 0, total, "images")
    for first in range(0, total, size):
        last = min(first + size, total)
        cosines = product(features[first:last], features[first:])
        if first < len(kept):
            kept[first:last] = cosines[: len(kept) - first, len(kept) - first :]
        later = cosines[:, last - first :]
        lowest[first:last] = np.minimum(lowest[first:last], cosines.min(axis=1))
        lowest[last:] = np.minimum(lowest[last:], later.min(axis=0))
        np.fill_diagonal(cosines, 2)  # an image itself comes before all equal ones
        if first == 0:
            # (N,): a candidate has to exceed what k images reach.
            reached = np.partition(cosines, -k, axis=0)[-k]
            bound = np.minimum(np.nextafter(reached, np.float32(-3)), np.float32(1 - ROUNDING))
        row, column = _cells(cosines > bound[first:last, None])
        below, right = _cells(later > bound[last:])
        found = _Candidates(
            np.concatenate([found.images, row + first, right + last]),
            np.concatenate([found.others, column + first, below + first]),
            np.concatenate([found.cosines, cosines[row, column], later[below, right]]),
        )
        if last == total or len(found.images) > 3 * total * k:
            found = found.nearest(k)
            bound = np.minimum(found.cosines[k - 1 :: k], np.float32(1 - ROUNDING))
        progress("comparing", last, total, "images")
    largest = 1 - lowest.astype(np.float64)
    largest[largest < ROUNDING] = 1
    return found.others.reshape(total, k), largest


def _cells(flags: npt.NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Row and column of each cell that is set; several times faster than `np.nonzero`."""
    row, column = np.divmod(np.flatnonzero(flags), max(1, flags.shape[1]))
    return row, column


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Pairs (P,) of images that may be near; the pairs of an image have `others` in order."""

    images: Integers
    others: Integers
    cosines: Floats

    def nearest(self, k: int) -> "_Candidates":
        """The `k` nearest pairs of each image, in order; of equal ones the lower row first."""
        cosines = self.cosines.copy()
        cosines[(cosines > 1 - ROUNDING) & (cosines < 2)] = 1
        # One key sorts in half the time of `np.lexsort`; stable, so lower rows stay first.
        order = np.argsort(4.0 * self.images - cosines, kind="stable")
        images = self.images[order]
        starts = np.flatnonzero(np.diff(images, prepend=-1))
        order = order[(starts[:, None] + np.arange(k)).ravel()]
        return _Candidates(self.images[order], self.others[order], cosines[order])


def _describe(features: Floats, near: Integers, largest: Distances, k1: int) -> csr_array:
    """Describe each image by weights (N, N) on its reciprocal neighbours and on some of theirs."""
    whole = _reciprocal(near[:, : k1 + 1])
    half = _reciprocal(near[:, : round(k1 / 2) + 1])
    # A neighbour adds its own (half as many) neighbours, if over two thirds of them are shared.
    shared = (whole @ half).multiply(whole).tocoo()
    adds = shared.data > 2 / 3 * np.diff(half.indptr)[shared.col]
    cells = shared.data[adds], (shared.row[adds], shared.col[adds])
    described = (whole + csr_array(cells, shape=whole.shape) @ half).tocsr()

    cosines = np.empty(described.nnz)
    starts = described.indptr
    for row, (begin, end) in enumerate(pairwise(starts)):
        cosines[begin:end] = features[described.indices[begin:end]] @ features[row]
    counts = np.diff(starts)
    weights = np.exp((np.minimum(cosines, 1) - 1) / np.repeat(largest, counts))
    described.data = weights / np.repeat(np.add.reduceat(weights, starts[:-1]), counts)
    return described


def _reciprocal(near: Integers) -> csr_array:
    """The symmetric matrix (N, N) of ones where two images are in each other's `near` (N, K)."""
    graph = _rows_with(1.0, np.sort(near, axis=1))
    return graph.multiply(graph.T.tocsr()).tocsr()


def _average(described: csr_array, near: Integers) -> csr_array:
    """The mean of the descriptions (N, N) of each image's `near` (N, k2)."""
    return _rows_with(1 / near.shape[1], near) @ described


def _rows_with(value: float, columns: Integers) -> csr_array:
    """The matrix (N, N) that has `value` in these `columns` (N, K) of each row."""
    total, k = columns.shape
    starts = np.arange(0, total * k + 1, k)
    return csr_array((np.full(total * k, value), columns.ravel(), starts), shape=(total, total))


def _common(described: csr_array, gallery_with: csr_array) -> Distances:
    """What descriptions (B, N) share with the gallery's (B, G): the sums of the minima."""
    shape = described.shape[0], gallery_with.shape[1]
    rows = np.repeat(np.arange(shape[0]), np.diff(described.indptr))
    lists = gallery_with[described.indices]
    lengths = np.diff(lists.indptr)
    minima = np.minimum(lists.data, np.repeat(described.data, lengths))
    cells = np.repeat(rows * shape[1], lengths) + lists.indices
    return np.bincount(cells, minima, minlength=shape[0] * shape[1]).reshape(shape)
