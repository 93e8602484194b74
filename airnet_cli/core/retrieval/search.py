"""The nearest gallery rows of each query by cosine: exact, in one pass over a memory-mapped matrix.

- A float32 product of a block of rows with all queries finds candidates; only they are scored in
  float64. How wrong the product can be is bounded, so no row that belongs among the best is missed.
- The candidates so far are kept for each query, and scored in float64 when all blocks are
  through. Memory is that of a block, not of the gallery.
- A block is read in pieces that stay in the processor's cache for all that is done with them:
  float16 made float32 (by torch: ten times as fast as NumPy), lengths, product.
- With int8 rows (`quantized.py`) their product finds the candidates, at a quarter of the reading
  and with int8 kernels. Its errors are bounded too, row by row, so the answers are the same. A
  query with so many candidates that reading them takes longer than all rows is searched in floats.
- Equal rows have equal scores, wherever in the file they are: a row's float64 score depends on
  nothing but the row and the query. (A matrix product's last bit depends on the row's place.)

Letters: Q queries, N gallery rows, D embedding size, B rows of a block, R rows of a piece of it,
P candidate pairs.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from airnet_cli.core.gallery.rows import JoinedRows
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.directions import SHORTEST_SQUARED, check_directions
from airnet_cli.core.retrieval.kernels import Kernel
from airnet_cli.core.retrieval.quantized import QuantizedRows, Screen
from airnet_cli.core.runtime import blas_in_one_thread
from airnet_cli.errors import DataError

Matrix = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

PIECE_BYTES = 4 * 2**20
"""Of a piece as float32: small enough that what is done with it finds it in the cache. More queries
take larger ones, twice and four times the size: each product goes through all of them anew."""

FEW_QUERIES = 2
"""Up to so many, a product with one after the other is faster than with all."""

SHARED_QUERIES = 512
"""Up to so many, each thread multiplies its own share of the rows. With more the library's threads
share each product, as every thread of ours would go through all queries for its few rows."""

UNLOCKED_PRODUCTS = 512
"""Dot products in one call from which on NumPy lets other threads run meanwhile (over 500)."""

BLOCK_ROWS = 2**14
"""B, unless (queries, B) cosines would take more than `PAIR_BYTES`."""

SCREENED_ROWS = 2**17
"""The same of int8 rows: the more are compared at once, the fewer look near."""

PAIR_BYTES = 32 * 2**20
"""Of the (queries, B) cosines of a block."""

SCORED_ROWS = 64
"""Candidates of a query that are scored in float64 together: they stay in the cache."""

MOST_ALIKE = 1024
"""Rows of a query, besides 4k, that are held before float64 decides which are the best."""

MOST_DOUBTFUL = 64
"""The same where candidates come from int8 rows, of which more are alike."""

DECIDED = 2.0**-22
"""To either side of a cosine that float64 has given: float32 can't write it more exactly."""

CROWDED = 64
"""Candidates of a query in one block, besides 2k, from which on finer cosines are worth taking."""

HOPELESS_SHARE = 1 / 16
"""Of the rows: a query of which more are candidates is searched in floats. A candidate's float64
score, with a row read from anywhere, takes about as long as so many rows in a float32 product."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The nearest rows of each query, nearest first; k is at most the number of rows allowed."""

    rows: Rows
    """(Q, k) rows of the gallery."""
    scores: npt.NDArray[np.float32]
    """(Q, k) cosines, in -1 to 1."""
    kernel: str | None = None
    """What multiplied int8 rows; None where floats were searched."""
    in_floats: int = 0
    """Queries that int8 could not decide, and that were searched in floats too."""


def search(
    *,
    queries: Matrix,
    gallery_embeddings: Matrix | JoinedRows,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    parts: Sequence[slice] = (slice(None),),
    block_rows: int | None = None,
    quantized: QuantizedRows | None = None,
    kernel: Kernel | None = None,
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
        block_rows: B; None takes what suits the number of queries. For speed and memory only.
        quantized: the same rows as int8; then `parts` are those of whole heads. For speed only.
        kernel: what multiplies them; None: the quickest here.
        progress: told after each block.

    Raises:
        DataError: the widths differ, or a row has no direction: zero, NaN or infinity; or its
            int8 row is of another.
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
    places = list(_places(parts, width))
    k = min(k, num_allowed)
    block = block_rows or max(64, min(BLOCK_ROWS, PAIR_BYTES // (4 * max(1, len(queries)))))
    blocks = partial(_blocks, num_rows, block, allowed)

    def told(done: int) -> None:
        progress("searching", done, num_allowed, "rows")

    told(0)
    if quantized is None:
        return _search_floats(exact, gallery_embeddings, places, k, blocks, told)
    screen = Screen(quantized, exact, compared, kernel)
    hopeless = int(num_allowed * HOPELESS_SHARE)
    best = _Best(
        exact,
        gallery_embeddings,
        places,
        k=k,
        most=MOST_DOUBTFUL,
        most_scored=max(4 * k + MOST_ALIKE, hopeless),
    )
    block = block_rows or max(64, min(SCREENED_ROWS, PAIR_BYTES // (4 * max(1, len(queries)))))
    done = 0
    for rows in _blocks(num_rows, block, allowed):
        cosines, errors = screen.compare(rows)
        if not screen.is_fine:
            _refine(screen, best, rows, cosines, errors)
        best.add(cosines, rows, errors)
        done += len(rows)
        told(done)
    result = best.finish()
    left = np.flatnonzero(best.is_hopeless)
    if len(left):
        again = _search_floats(exact[left], gallery_embeddings, places, k, blocks, told)
        result.rows[left], result.scores[left] = again.rows, again.scores
    return replace(result, kernel=screen.kernel.name, in_floats=len(left))


def _refine(
    screen: Screen,
    best: "_Best",
    rows: Rows,
    cosines: npt.NDArray[np.float32],
    errors: npt.NDArray[np.float32],
) -> None:
    """Compare anew, and finer, what may be among the best of queries that have much of it."""
    is_near = best.near(cosines, errors)  # (Q, B)
    count = np.count_nonzero(is_near, axis=1)
    crowded = count > 2 * best.k + CROWDED
    # A row read from anywhere takes about as long as so many in a row.
    many = np.flatnonzero(crowded & (count > len(rows) / 8))
    if len(many):
        cosines[many], errors[many] = screen.refine(rows, many, cosines[many])
    for query in np.flatnonzero(crowded & (count <= len(rows) / 8)):
        near = np.flatnonzero(is_near[query])
        found = screen.refine(rows[near], np.array([query]), cosines[query, near][None])
        cosines[query, near], errors[query, near] = found[0][0], found[1][0]


def _search_floats(
    exact: npt.NDArray[np.float64],
    gallery_embeddings: Matrix | JoinedRows,
    places: Sequence[tuple[slice, slice]],
    k: int,
    blocks: Callable[[], Iterator[Rows]],
    told: Callable[[int], None],
) -> SearchResult:
    """Search for queries (Q, D) of length 1 by a float32 product of all rows."""
    best = _Best(exact, gallery_embeddings, places, k=k, most=MOST_ALIKE)
    product = [(part, exact[:, at].astype(np.float32)) for part, at in places]
    # A product of D terms is off by at most D roundings of its largest possible sum, 1; the
    # length's by half of that (Higham 2002, 3.1). Real errors are far smaller.
    error = np.full((1, 1), (2 * exact.shape[1] + 24) * 2.0**-24, np.float32)
    is_shared = len(exact) <= SHARED_QUERIES
    threads = torch.get_num_threads() if is_shared else 1
    readers = [_Reader(gallery_embeddings) for _ in range(threads)]
    done = 0
    with (
        blas_in_one_thread() if is_shared else nullcontext(),
        ThreadPoolExecutor(threads) as pool,
    ):
        for rows in blocks():
            cosines = np.zeros((len(exact), len(rows)), np.float32)  # (Q, B)
            spans = zip(
                readers,
                np.array_split(rows, threads),
                np.array_split(cosines, threads, axis=1),
                strict=True,
            )
            for finished in [pool.submit(_compare, product, *span) for span in spans]:
                finished.result()
            best.add(cosines, rows, error)
            done += len(rows)
            told(done)
        return best.finish()


def _compare(
    product: Sequence[tuple[slice, npt.NDArray[np.float32]]],
    reader: "_Reader",
    rows: Rows,
    cosines: npt.NDArray[np.float32],
) -> None:
    """Put the cosines of all queries with `rows` (B,) into `cosines` (Q, B), which is zero."""
    squared = np.zeros(len(rows), np.float32)
    more = 1 if len(cosines) <= FEW_QUERIES else 2 if len(cosines) <= SHARED_QUERIES else 4
    piece = max(1, more * PIECE_BYTES // (4 * reader.width))
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(rows), piece):
            here = slice(begin, begin + piece)
            values = reader.take(rows[here])  # (R, D) float32
            for part, vectors in product:
                squared[here] += _squared(values[:, part])
                if len(vectors) <= FEW_QUERIES:
                    for cosine, vector in zip(cosines, vectors, strict=True):
                        cosine[here] += values[:, part] @ vector
                else:
                    cosines[:, here] += (values[:, part] @ vectors.T).T  # faster in this order
        check_directions(squared, rows)
        cosines /= np.sqrt(squared)


class _Best:
    """The rows that may be among the best k of each query so far.

    They are held with bounds of their cosines, and scored in float64 at the end, or earlier where
    too many are too alike.
    """

    def __init__(
        self,
        queries: Matrix,
        gallery: Matrix | JoinedRows,
        parts: Sequence[tuple[slice, slice]],
        *,
        k: int,
        most: int,
        most_scored: int | None = None,
    ) -> None:
        """Begin without rows.

        Args:
            queries: (Q, D) of length 1, the compared columns alone.
            gallery: (N, D).
            parts: the compared columns, each with its place in `queries`.
            k: how many are wanted.
            most: rows of a query, besides 4k, that are held undecided.
            most_scored: float64 scores before the end after which a query is given up; None: never.
        """
        self.queries = queries
        self.reader = _Reader(gallery)
        self.parts = parts
        self.k = k
        self.most = most
        self.most_scored = most_scored
        self.query: Rows = np.empty(0, np.int64)  # (P,) of each pair that is held, ascending
        self.row: Rows = np.empty(0, np.int64)  # (P,)
        self.lowest = np.empty(0, np.float32)  # (P,) what its cosine is at least
        self.highest = np.empty(0, np.float32)  # (P,) and at most
        self.score = np.empty(0)  # (P,) what it is, by float64; NaN while nobody asked
        # (Q,) what k rows reach for certain; -inf while there are fewer, inf of the hopeless.
        self.floor = np.full(len(queries), -np.inf, np.float32)
        self.scored = np.zeros(len(queries), np.int64)  # (Q,) in float64

    @property
    def is_hopeless(self) -> npt.NDArray[np.bool_]:
        """Which queries (Q,) were given up: no row is held for them."""
        return np.isposinf(self.floor)

    def near(
        self, cosines: npt.NDArray[np.float32], errors: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Which (Q, B) may be among the best, after the floor has heard of the block."""
        is_near: npt.NDArray[np.bool_] = cosines + errors >= self.floor[:, None]
        crowded = np.flatnonzero(np.count_nonzero(is_near, axis=1) > 2 * self.k + 64)
        if len(crowded) and self.k < cosines.shape[1]:
            place = cosines.shape[1] - self.k
            wrong = errors[crowded] if errors.size > 1 else errors
            kth = np.partition(cosines[crowded] - wrong, place, axis=1)[:, place]
            self.floor[crowded] = np.maximum(self.floor[crowded], kth)
            is_near[crowded] = cosines[crowded] + wrong >= self.floor[crowded, None]
        return is_near

    def add(
        self,
        cosines: npt.NDArray[np.float32],
        rows: Rows,
        errors: npt.NDArray[np.float32],
    ) -> None:
        """Take the best of `rows` (B,), whose `cosines` (Q, B) are off by at most `errors`.

        The errors are (Q, B), or (1, 1) where all are the same.
        """
        query, column = np.nonzero(self.near(cosines, errors))
        if not len(query):
            return
        near = cosines[query, column]
        wrong = errors[query, column] if errors.size > 1 else errors[0]
        self.query = np.concatenate([self.query, query])
        self.row = np.concatenate([self.row, rows[column]])
        self.lowest = np.concatenate([self.lowest, near - wrong])
        self.highest = np.concatenate([self.highest, near + wrong])
        self.score = np.concatenate([self.score, np.full(len(near), np.nan)])
        self._raise_floor()
        for decide in (self._decide_best, self._settle):
            crowded = np.bincount(self.query, minlength=len(self.queries)) > 4 * self.k + self.most
            if crowded.any():
                decide(crowded)
        if self.most_scored is not None:
            self.floor[self.scored > self.most_scored] = np.inf
            self._keep(~self.is_hopeless[self.query])

    def finish(self) -> SearchResult:
        """The best k of each query, zeros for the hopeless; nothing may be added after that."""
        hopeful = ~self.is_hopeless
        if self.most_scored is not None:  # bounds are wide: most of what is held can be dropped
            self._decide_best(hopeful)
        self._settle(hopeful)
        shape = (len(self.queries), self.k)
        result = SearchResult(np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        result.rows[hopeful] = self.row.reshape(-1, self.k)
        result.scores[hopeful] = self.score.reshape(-1, self.k)
        return result

    def _raise_floor(self) -> None:
        """Sort what is held, by query and what it is at least, and drop what can't be among the
        best."""
        self._keep(np.lexsort((-self.lowest, self.query)))
        starts = np.searchsorted(self.query, np.arange(len(self.queries) + 1))
        full = np.flatnonzero(np.diff(starts) >= self.k)
        self.floor[full] = np.maximum(self.floor[full], self.lowest[starts[full] + self.k - 1])
        self._keep(self.highest >= self.floor[self.query])

    def _decide_best(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Score the k that look best of the `chosen` queries (Q,), which raises the floor."""
        place = np.arange(len(self.query)) - np.searchsorted(self.query, self.query)
        self._decide(chosen[self.query] & (place < self.k))
        self._raise_floor()

    def _decide(self, pairs: npt.NDArray[np.bool_]) -> None:
        """Score those of the `pairs` (P,) that are not yet."""
        pairs = pairs & np.isnan(self.score)
        scores = self._score(self.query[pairs], self.row[pairs])
        self.scored += np.bincount(self.query[pairs], minlength=len(self.queries))
        if self.most_scored is not None:  # of int8 rows that a file says are these
            wrong = (scores < self.lowest[pairs] - DECIDED) | (
                scores > self.highest[pairs] + DECIDED
            )
            for row in self.row[pairs][wrong][:1]:
                raise DataError(
                    f"gallery row {row} (from 0) is not what its int8 row says: the gallery or its "
                    "index is damaged; make the index again with `airnet index`"
                )
        self.score[pairs] = scores
        self.lowest[pairs], self.highest[pairs] = scores - DECIDED, scores + DECIDED

    def _settle(self, settled: npt.NDArray[np.bool_]) -> None:
        """Keep the best k, by float64, of the queries that are `settled` (Q,)."""
        self._decide(settled[self.query])
        order = np.lexsort((self.row, -self.score, self.query))
        place = np.arange(len(order)) - np.searchsorted(self.query, self.query)
        self._keep(order[(place < self.k) | ~settled[self.query]])

    def _keep(self, chosen: npt.NDArray[Any]) -> None:
        self.query, self.row = self.query[chosen], self.row[chosen]
        self.lowest, self.highest = self.lowest[chosen], self.highest[chosen]
        self.score = self.score[chosen]

    def _score(self, query: Rows, row: Rows) -> npt.NDArray[np.float64]:
        """The float64 cosines of pairs (P,), ascending by query."""
        scores = np.empty(len(query))
        begin = 0
        for end in (np.flatnonzero(np.diff(query, append=-1)) + 1).tolist():
            vector = self.queries[query[begin]]  # (D,)
            by_row = begin + np.argsort(row[begin:end])  # neighbours share a page
            for at in range(0, end - begin, SCORED_ROWS):
                near = by_row[at : at + SCORED_ROWS]
                values = self.reader.take(row[near])
                products, squared = np.zeros(len(near)), np.zeros(len(near))
                for part, place in self.parts:
                    # C order whatever the indexing gave: each row is then added up in the same way.
                    piece = values[:, part].astype(np.float64, order="C")
                    products += _dots(piece, vector[place])
                    squared += _dots(piece, piece)
                scores[near] = products / np.sqrt(squared)
            begin = end
        return np.clip(scores, -1, 1)


def _unit_queries(queries: Matrix, compared: Rows) -> npt.NDArray[np.float64]:
    """The compared columns of the queries as float64 vectors of length 1, or an error."""
    # C order, which choosing columns does not give: products with a vector that lies apart in
    # memory are slow, and add up in another order.
    vectors = queries[:, compared].astype(np.float64, order="C")
    squared = (vectors * vectors).sum(axis=1)
    for query in np.flatnonzero(~(np.isfinite(squared) & (squared >= SHORTEST_SQUARED)))[:1]:
        raise DataError(
            f"query {query} (from 0) has an embedding without direction: zero, NaN or infinity; "
            "compute it again"
        )
    unit: npt.NDArray[np.float64] = vectors / np.sqrt(squared)[:, None]
    return unit


def _dots(rows: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> Any:
    """The dot products (..., R) of `rows` (..., R, d) with `vectors`, of that shape or one (d,).

    By the library's dot product of two vectors: it is faster than einsum, and depends on nothing
    but the two vectors.
    """
    return np.matmul(rows[..., None, :], vectors[..., :, None])[..., 0, 0]


def _squared(rows: npt.NDArray[np.float32]) -> Any:
    """The squared lengths (R,) of `rows` (R, d), while other threads run.

    Each row is cut into pieces where there are too few rows for NumPy to let go of Python.
    """
    count, width = rows.shape
    cuts = max(1, min(-(-UNLOCKED_PRODUCTS // count), width))
    whole = width - width % cuts
    pieces = rows[:, :whole].reshape(count, cuts, whole // cuts)
    squared = _dots(pieces, pieces).sum(axis=1)
    if whole < width:
        squared += _dots(rows[:, whole:], rows[:, whole:])
    return squared


def _blocks(num_rows: int, block: int, allowed: npt.NDArray[np.bool_] | None) -> Iterator[Rows]:
    """Yield the allowed rows, ascending, up to `block` at a time."""
    rows = np.arange(num_rows) if allowed is None else np.flatnonzero(allowed)
    for begin in range(0, len(rows), block):
        yield rows[begin : begin + block]


ALONE = 2**15 - 1
"""Values that torch copies in the caller's thread: waking others costs more than it saves."""


class _Reader:
    """Rows of a matrix as float32; each thread has its own."""

    def __init__(self, matrix: Matrix | JoinedRows, room: "_Room | None" = None) -> None:
        self.width = matrix.shape[1]
        self.room = room or _Room(self.width)
        self.joined: JoinedRows | None = None
        if isinstance(matrix, JoinedRows):
            shared = _Room(self.width)  # one after the other is read, and copied where it must be
            self.joined, self.parts = matrix, [_Reader(part, shared) for part in matrix.parts]
            return
        self.matrix = np.asarray(matrix)
        self.half: torch.Tensor | None = None
        if matrix.dtype == np.float16:  # torch makes float32 of it ten times as fast as NumPy
            with warnings.catch_warnings():  # that the map can't be written to: nobody does
                warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
                self.half = torch.from_numpy(matrix)

    def take(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return `rows` (R, D), valid until the next call: a view where the matrix allows it."""
        if self.joined is not None:
            return self._take_joined(self.joined, rows)
        first, last = int(rows[0]), int(rows[-1])
        is_adjacent = last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all())
        adjacent = slice(first, last + 1)
        is_single = self.matrix.dtype == np.float32
        if self.half is None and (is_adjacent or not is_single):
            return np.asarray(self.matrix[adjacent if is_adjacent else rows], dtype=np.float32)
        values = self.room.take(len(rows))
        if self.half is None:
            np.take(self.matrix, rows, axis=0, out=values, mode="clip")  # "raise" takes a copy
            return values
        taken = self.half[adjacent] if is_adjacent else self.half[torch.from_numpy(rows)]
        # One call, in which other threads run, of many copies that each stay in this thread.
        torch.cat(torch.split(taken, max(1, ALONE // self.width)), out=torch.from_numpy(values))
        return values

    def _take_joined(self, joined: JoinedRows, rows: Rows) -> npt.NDArray[np.float32]:
        values = self.room.take(len(rows))
        for part, span, inside in joined.spans(rows):
            taken = self.parts[part].take(inside)
            if len(taken) == len(rows):
                return taken
            values[span] = taken
        return values


class _Room:
    """Kept: a new array of this size is taken from the system and cleared, page by page."""

    def __init__(self, width: int) -> None:
        self._values = np.empty((0, width), np.float32)

    def take(self, count: int) -> npt.NDArray[np.float32]:
        """`count` rows of it, with whatever is in them."""
        if len(self._values) < count:
            self._values = np.empty((count, self._values.shape[1]), np.float32)
        return self._values[:count]


def _places(parts: Sequence[slice], width: int) -> Iterator[tuple[slice, slice]]:
    """Yield each part with its place among the compared columns."""
    start = 0
    for part in parts:
        stop = start + len(range(width)[part])
        yield part, slice(start, stop)
        start = stop
