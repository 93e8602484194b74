"""Rows of several matrices as one: a gallery of many files, which are not copied together.

Letters: N rows in total, D numbers in each, R rows that are asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class JoinedRows:
    """A read-only matrix (N, D): the rows of several matrices, without those that are deleted.

    It has `shape`, `dtype` and `len`; slices and arrays of row numbers give copies.
    """

    def __init__(
        self, parts: Sequence[npt.NDArray[np.floating[Any]]], kept: Sequence[Rows | None]
    ) -> None:
        """Join matrices (n, D) of one type, at least one.

        Args:
            parts: the matrices.
            kept: for each, the rows that count, ascending; None for all.
        """
        self.parts = tuple(parts)
        self._kept = tuple(kept)
        counts = [
            len(part) if rows is None else len(rows)
            for part, rows in zip(self.parts, self._kept, strict=True)
        ]
        self._starts: Rows = np.cumsum([0, *counts], dtype=np.int64)
        self.shape = (int(self._starts[-1]), self.parts[0].shape[1])
        self.dtype: np.dtype[Any] = self.parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(
        self, key: slice | int | Sequence[int] | npt.NDArray[Any]
    ) -> npt.NDArray[np.floating[Any]]:
        """A copy of a row (D,), or of several (R, D)."""
        if isinstance(key, slice):
            return self._take(np.arange(*key.indices(len(self)), dtype=np.int64))
        chosen = np.arange(len(self))[key]  # bounds, negative numbers and masks as in NumPy
        return self._take(chosen.reshape(-1)).reshape(*chosen.shape, self.shape[1])

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """All rows, copied into memory."""
        if copy is False:
            raise ValueError("the rows are in several matrices: an array of them is a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def spans(self, rows: Rows) -> Iterator[tuple[int, slice, Rows]]:
        """Where `rows` (R,) are: as few runs of one part as their order allows.

        Yields the part's place in `parts`, the run's place in `rows`, and its rows in that part.
        """
        part = np.searchsorted(self._starts, rows, "right") - 1  # (R,)
        begin = 0
        for end in (np.flatnonzero(np.diff(part, append=-1)) + 1).tolist():
            index = int(part[begin])
            inside = rows[begin:end] - self._starts[index]
            kept = self._kept[index]
            yield index, slice(begin, end), inside if kept is None else kept[inside]
            begin = end

    def _take(self, rows: Rows) -> npt.NDArray[np.floating[Any]]:
        values = np.empty((len(rows), self.shape[1]), self.dtype)
        for index, span, inside in self.spans(rows):
            values[span] = self.parts[index][inside]
        return values
