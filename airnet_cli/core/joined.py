"""Rows of several matrices as one: a gallery of many files, none of which is copied together.

Letters: N rows in all, D numbers in each, R rows that are asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class JoinedRows:
    """A read-only matrix (N, D) over the rows of others, one after the other; some left out.

    It has `shape`, `dtype` and `len`, and takes rows, slices and arrays of rows in brackets, which
    gives copies. Whoever wants to do without them reads `parts` by `spans`.
    """

    def __init__(
        self,
        parts: Sequence[npt.NDArray[np.floating[Any]]],
        kept: Sequence[Rows | None],
        *,
        dimensions: int,
        dtype: npt.DTypeLike,
    ) -> None:
        """Join matrices (n, `dimensions`) of one type.

        Args:
            parts: the matrices; none is an empty matrix.
            kept: for each, the rows that count, ascending; None for all.
            dimensions: D.
            dtype: of all parts.
        """
        self.parts = tuple(parts)
        self._kept = tuple(kept)
        counts = [
            len(part) if rows is None else len(rows)
            for part, rows in zip(self.parts, self._kept, strict=True)
        ]
        self._starts: Rows = np.cumsum([0, *counts], dtype=np.int64)
        self.shape = (int(self._starts[-1]), dimensions)
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def spans(self, rows: Rows) -> Iterator[tuple[int, slice, Rows]]:
        """Where `rows` (R,) lie: as few runs of one part as their order allows.

        Yields the part's place in `parts`, the run's in `rows`, and its rows in that part.
        """
        part = np.searchsorted(self._starts, rows, "right") - 1  # (R,)
        begin = 0
        for end in (np.flatnonzero(np.diff(part, append=-1)) + 1).tolist():
            index = int(part[begin])
            inside = rows[begin:end] - self._starts[index]
            kept = self._kept[index]
            yield index, slice(begin, end), inside if kept is None else kept[inside]
            begin = end

    def __getitem__(self, key: int | slice | npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
        """A copy of a row (D,), or of several (R, D)."""
        if isinstance(key, slice):
            return self._take(np.arange(*key.indices(len(self)), dtype=np.int64))
        chosen = np.asarray(key)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise IndexError(f"{chosen.shape} of bool choose among {len(self)} rows")
            chosen = np.flatnonzero(chosen)
        elif chosen.size and not np.issubdtype(chosen.dtype, np.integer):
            raise IndexError(f"rows are chosen by integers, not by {chosen.dtype}")
        rows = chosen.reshape(-1).astype(np.int64)
        if ((rows < -len(self)) | (rows >= len(self))).any():
            raise IndexError(f"a row is out of bounds: there are {len(self)}")
        values = self._take(np.where(rows < 0, rows + len(self), rows))
        return values.reshape(*chosen.shape, self.shape[1])

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """All rows, copied into memory."""
        if copy is False:
            raise ValueError("the rows lie in several matrices: an array of them is a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _take(self, rows: Rows) -> npt.NDArray[np.floating[Any]]:
        values = np.empty((len(rows), self.shape[1]), self.dtype)
        for index, span, inside in self.spans(rows):
            values[span] = self.parts[index][inside]
        return values
