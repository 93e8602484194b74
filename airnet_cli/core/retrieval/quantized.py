"""A gallery's rows as int8: a quarter of the bytes, and cosines whose error is known.

A row x is written as scale * y, y of int8, and what is left over is measured, for each head h:
error_h = |x_h - scale y_h|. For a query u of length 1 over the heads that are compared, by Cauchy
and Schwarz,

    |u . x / |x|  -  scale u . y / |x||  <=  sqrt(sum_h error_h^2) / |x|

whatever the numbers are. A query is int8 too, twice: a high part, and a low part, what the high one
leaves over, 254 times finer. With the high part alone its own rounding counts as much as the
row's; with both it is next to nothing.

One scale for all heads of a row, so that a product takes whole rows: in three parts it takes twice
the time. A head of small numbers beside large ones has wide bounds when it is compared alone.

Letters: Q queries, N gallery rows, D embedding size, C columns that are compared, B rows of a
block, H heads.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from airnet_cli.core.retrieval.directions import check_directions
from airnet_cli.core.retrieval.kernels import Kernel, choose_kernel

Rows = npt.NDArray[np.int64]
Errors = npt.NDArray[np.float32]

FEW_QUERIES = 4
"""Up to so many, the low parts come with the high ones: reading the rows is most of the work."""

PIECE_ROWS = 4096
"""Rows that are multiplied at once."""

ROUNDING = 2.0**-24
"""Of a float32."""

LOW = 254
"""Steps of the low part in one of the high part: half a step to either side is -127 to 127."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedRows:
    """The int8 rows of a gallery and what is known of each."""

    values: npt.NDArray[np.int8]
    """(N, D), -127 to 127; may be mapped into memory."""
    sizes: npt.NDArray[np.float32]
    """(N, 1 + 2H): scale; each head's length; each head's error, rounded up."""
    parts: tuple[slice, ...]
    """The columns of each head: H slices that follow each other and fill D."""


def quantize(
    values: npt.NDArray[np.float32], parts: Sequence[slice]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rows (B, D), all finite, as int8 (B, D) and their sizes (B, 1 + 2H)."""
    exact = values.astype(np.float64)
    scale = (np.abs(values).max(axis=1).astype(np.float64) / 127).astype(np.float32)
    step = scale.astype(np.float64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(step > 0, exact / step, 0)
    integers = np.clip(np.rint(steps), -127, 127).astype(np.int8)  # beyond: scales of few digits
    left = exact - step * integers
    lengths = np.stack([_length(exact[:, part]) for part in parts], axis=1)  # (B, H)
    errors = np.stack([_length(left[:, part]) for part in parts], axis=1)
    # Float64 itself is wrong by far less than this.
    rounded = (errors * (1 + 1e-9) + lengths * 1e-12).astype(np.float32)
    above = np.nextafter(rounded, np.float32(np.inf))
    sizes = np.concatenate([scale[:, None], lengths.astype(np.float32), above], axis=1)
    return integers, sizes


class Screen:
    """Queries beside quantized rows: cosines with bounds of their errors, block by block."""

    def __init__(
        self,
        rows: QuantizedRows,
        queries: npt.NDArray[np.float64],
        compared: Rows,
        kernel: Kernel | None,
    ) -> None:
        """Prepare the queries.

        Args:
            rows: of the gallery.
            queries: (Q, C) of length 1.
            compared: (C,) the columns that they are compared by: those of whole heads.
            kernel: what multiplies; None: the quickest here.

        Raises:
            ValueError: a head is compared in part.
        """
        self.rows = rows
        self.is_fine = len(queries) <= FEW_QUERIES
        vectors = len(queries) * (2 if self.is_fine else 1)
        self.kernel = kernel or choose_kernel(rows.values.shape[1], vectors)
        place = np.full(rows.values.shape[1], -1)
        place[compared] = np.arange(len(compared))
        self.heads = [head for head, part in enumerate(rows.parts) if (place[part] >= 0).all()]
        chosen = [rows.parts[head] for head in self.heads]
        if sum(part.stop - part.start for part in chosen) != len(compared):
            raise ValueError("an int8 index compares whole heads")
        self.runs = _runs(chosen)
        # Of each run of columns, so that no product has to copy them.
        exact = [queries[:, place[run]] for run in self.runs]
        largest = np.max([np.abs(part).max(axis=1) for part in exact], axis=0)
        self.step = largest[:, None] / 127  # (Q, 1) of the high part
        self.high = [_integers(part / self.step) for part in exact]
        left = [part - self.step * high for part, high in zip(exact, self.high, strict=True)]
        self.low = [_integers(part / (self.step / LOW)) for part in left]
        lower = [part - self.step / LOW * low for part, low in zip(left, self.low, strict=True)]
        self.coarse_error = _length(np.concatenate(left, axis=1))  # (Q,)
        self.fine_error = _length(np.concatenate(lower, axis=1))  # (Q,)

    def compare(self, rows: Rows) -> tuple[npt.NDArray[np.float32], Errors]:
        """The cosines (Q, B) with `rows` (B,), and by how much each is wrong at most.

        Raises:
            DataError: a row has no direction.
        """
        if not self.is_fine:
            cosines = self._cosines(rows, self.high, self.step)
            return cosines, self._errors(rows, self.coarse_error)
        count = len(self.step)
        both = [np.concatenate(pair) for pair in zip(self.high, self.low, strict=True)]
        cosines = self._cosines(rows, both, np.concatenate([self.step, self.step / LOW]))
        return cosines[:count] + cosines[count:], self._errors(rows, self.fine_error)

    def refine(
        self, rows: Rows, queries: Rows, cosines: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], Errors]:
        """What `compare` gives for some `rows` (R,) and `queries` (V,), with the low parts too.

        `cosines` (V, R) are those of the high parts.
        """
        low = [part[queries] for part in self.low]
        finer = self._cosines(rows, low, self.step[queries] / LOW)
        finer += cosines
        return finer, self._errors(rows, self.fine_error[queries])

    def _cosines(
        self,
        rows: Rows,
        vectors: Sequence[npt.NDArray[np.int8]],
        step: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float32]:
        """(V, B) of int8 vectors, given for each run, and their steps (V, 1)."""
        cosines = np.empty((len(step), len(rows)), np.float32)
        threads = self.kernel.threads(len(step))
        piece = max(1, min(PIECE_ROWS, -(-len(rows) // threads)))

        def compare(begin: int) -> None:
            near = rows[begin : begin + piece]  # (R,)
            values = self._take(near)
            product = self.kernel.multiply(values[:, self.runs[0]], vectors[0])  # (R, V)
            for run, part in zip(self.runs[1:], vectors[1:], strict=True):
                product += self.kernel.multiply(values[:, run], part)
            scale = self.rows.sizes[near, 0] / self._lengths(near)
            # More than 2 where compared heads are next to nothing beside others: int8 has them as
            # zeros, which must not meet infinity.
            product *= np.minimum(scale, 2)[:, None].astype(np.float32)
            np.multiply(
                product.T, step.astype(np.float32), out=cosines[:, begin : begin + len(near)]
            )

        begins = range(0, len(rows), piece)
        if threads == 1:
            for begin in begins:
                compare(begin)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for finished in [pool.submit(compare, begin) for begin in begins]:
                    finished.result()
        return cosines

    def _lengths(self, rows: Rows) -> npt.NDArray[np.float64]:
        """(B,) of what is compared, or an error."""
        lengths = self.rows.sizes[rows][:, 1 + np.array(self.heads)].astype(np.float64)
        squared = (lengths * lengths).sum(axis=1)
        check_directions(squared, rows)
        found: npt.NDArray[np.float64] = np.sqrt(squared)
        return found

    def _errors(self, rows: Rows, of_queries: npt.NDArray[np.float64]) -> Errors:
        """(Q, B) from the queries' own (Q,).

        A row's int8 vector is no longer than 1 + its error, a query's no longer than 1 + its own;
        what is left of the query meets the row's int8 vector.
        """
        places = 1 + len(self.rows.parts) + np.array(self.heads)
        left = self.rows.sizes[rows][:, places].astype(np.float64)
        error = _length(left) / self._lengths(rows)  # (B,)
        longest = 1 + error
        # Of scales, steps, lengths and sums, here and where the bound is used.
        share = self.kernel.error(self.rows.values.shape[1]) + 2 * (16 + len(self.runs)) * ROUNDING
        multiplied = share * longest * (1 + 3 * float(self.coarse_error.max(initial=0)))
        by_row = (error + multiplied).astype(np.float32)
        by_query = (of_queries * float(longest.max())).astype(np.float32)
        return np.add(by_query[:, None], by_row[None, :], dtype=np.float32)

    def _take(self, rows: Rows) -> npt.NDArray[np.int8]:
        """The int8 values (B, D); a view where rows are adjacent."""
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):  # ascending, each once
            return np.asarray(self.rows.values[first : last + 1])
        return np.asarray(self.rows.values[rows])


def _runs(parts: Sequence[slice]) -> list[slice]:
    """Slices in ascending order, with those that touch made one."""
    runs: list[slice] = []
    for part in parts:
        if runs and runs[-1].stop == part.start:
            runs[-1] = slice(runs[-1].start, part.stop)
        else:
            runs.append(part)
    return runs


def _integers(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(values), -127, 127).astype(np.int8, order="C")


def _length(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.sqrt((vectors * vectors).sum(axis=1))
    return found
