"""The table of a gallery: CSV files whose cells are parsed when they are asked for.

Opening a file finds where its rows begin, with NumPy, and parses the header. Ten rows of a million
cost ten parsed lines. A whole column is parsed some thousand rows at a time.
"""

import bisect
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from airnet_cli.core.gallery.rows import Rows
from airnet_cli.errors import DataError

SCANNED_BYTES = 2**24
"""Bytes that are scanned for the ends of rows at a time."""

MAPPED_BYTES = 2**22
"""Smaller files are read instead of mapped: a mapped file stays open, and a folder has many."""

PARSED_ROWS = 8192
"""Rows that are parsed together."""

NEWLINE, QUOTE = 10, 34


class CsvFile:
    """One CSV file with a header and N rows."""

    def __init__(self, path: Path, num_rows: int) -> None:
        """Find the rows of `path`, of which there must be `num_rows`.

        Raises:
            OSError: it can't be read.
            DataError: it is not a table, or has another number of rows.
        """
        self.path, self.num_rows = path, num_rows
        if path.stat().st_size < MAPPED_BYTES:
            self._bytes: npt.NDArray[np.uint8] = np.fromfile(path, np.uint8)
        else:
            self._bytes = np.memmap(path, np.uint8, mode="r")
        ends = _row_ends(self._bytes)
        is_cut = len(self._bytes) == 0 or self._bytes[-1] != NEWLINE
        if is_cut or len(ends) != num_rows + 1:
            found = "is cut off" if is_cut else f"has {len(ends) - 1} rows under its header"
            raise DataError(
                f"'{path}' {found}, and the gallery has {num_rows} rows; embed the images again "
                "with `airnet embed`"
            )
        self._starts: Rows = np.concatenate([[0], ends + 1])
        self.header = next(self._parse(0, 1))
        if self.header[:1] != ["path"] or len(set(self.header)) != len(self.header):
            raise DataError(
                f"'{path}' is not the table of a gallery: its first line must name different "
                "columns, path first; embed the images again with `airnet embed`"
            )

    def cells(self, column: int, first: int, stop: int) -> list[str]:
        """The cells of a column (its place in the header) in the rows from `first` to `stop`."""
        cells = []
        for number, row in enumerate(self._parse(first + 1, stop + 1), start=first):
            if len(row) != len(self.header):
                raise DataError(
                    f"'{self.path}' has {len(row)} cells in row {number} (from 0) and "
                    f"{len(self.header)} in its header; embed the images again"
                )
            cells.append(row[column])
        return cells

    def _parse(self, first: int, stop: int) -> Iterator[list[str]]:
        """Parse lines, the header being line 0."""
        content = self._bytes[self._starts[first] : self._starts[stop]].tobytes()
        try:
            yield from csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"'{self.path}' can't be read as a table ({error}); embed the images again"
            ) from None


def _row_ends(content: npt.NDArray[np.uint8]) -> Rows:
    """The places of the newlines that end rows: those outside of quotes."""
    ends = [np.empty(0, np.int64)]
    num_quotes = 0
    for begin in range(0, len(content), SCANNED_BYTES):
        block = content[begin : begin + SCANNED_BYTES]
        newlines = np.flatnonzero(block == NEWLINE)
        quotes = np.flatnonzero(block == QUOTE)
        # A quote inside of quotes is written twice, which changes nothing.
        is_outside = (np.searchsorted(quotes, newlines) + num_quotes) % 2 == 0
        ends.append(newlines[is_outside] + begin)
        num_quotes += len(quotes)
    return np.concatenate(ends)


class Table(Mapping[str, Sequence[str]]):
    """The columns of one or several CSV files, one after the other, as texts.

    A cell that a file lacks is empty.
    """

    def __init__(self, files: Sequence[CsvFile], kept: Sequence[Rows]) -> None:
        """Join files; of each, the rows that count, ascending."""
        self.files, self.kept = tuple(files), tuple(kept)
        self.names = tuple(dict.fromkeys(["path", *(n for file in files for n in file.header)]))
        self.starts = np.cumsum([0, *(len(rows) for rows in kept)]).tolist()

    def __getitem__(self, name: str) -> Sequence[str]:
        if name not in self.names:
            raise KeyError(name)
        return Column(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Column(Sequence[str]):
    """One column of a table: N texts."""

    def __init__(self, table: Table, name: str) -> None:
        self._table, self._name = table, name

    def __len__(self) -> int:
        return int(self._table.starts[-1])

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # an IndexError outside of the table
        starts = self._table.starts
        index = bisect.bisect_right(starts, row) - 1
        file, inside = self._table.files[index], self._table.kept[index][row - starts[index]]
        if self._name not in file.header:
            return ""
        return file.cells(file.header.index(self._name), inside, inside + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for file, kept in zip(self._table.files, self._table.kept, strict=True):
            if self._name not in file.header:
                yield from [""] * len(kept)
                continue
            column = file.header.index(self._name)
            for begin in range(0, file.num_rows, PARSED_ROWS):
                stop = min(begin + PARSED_ROWS, file.num_rows)
                first, last = np.searchsorted(kept, [begin, stop])
                if first < last:
                    cells = file.cells(column, begin, stop)
                    yield from (cells[row - begin] for row in kept[first:last].tolist())
