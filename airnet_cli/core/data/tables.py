"""CSV tables that users give: the columns by name, each row with its line number."""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row that is not blank."""

    line: int
    """Where it begins, counted from 1, as editors do; the header is line 1."""
    cells: dict[str, str]
    """The text in each column that has a name, without spaces around it."""


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table."""

    rows: list[Row]
    problems: list[str]
    """Rows with fewer or more cells than the header, one line each."""


def read_table(path: Path, *, required: Collection[str]) -> Table:
    """Read a table in UTF-8 (with or without a mark at its start) with any line ends.

    Args:
        path: of the table.
        required: columns that it must have.

    Raises:
        DataError: it is not a CSV table, or its header lacks a column or has one twice.
    """
    rows: list[Row] = []
    problems: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, required)
            line = reader.line_num + 1
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    pass
                elif len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
                    problems.append(
                        f"line {line}: {len(cells)} cells, and the first line has {len(header)}"
                    )
                else:
                    named = zip(header, cells, strict=False)
                    rows.append(Row(line, {name: cell.strip() for name, cell in named if name}))
                # A quoted cell may have line ends: a row begins where the last one ended.
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"can't read the table {path}: {why}; give a CSV file in UTF-8, with commas"
        ) from error
    return Table(rows, problems)


def _check_header(path: Path, header: list[str], required: Collection[str]) -> None:
    shown = ", ".join(header) or "nothing"
    found = f"(found: {shown if len(shown) <= 200 else f'{shown[:200]}...'})"
    if missing := [name for name in required if name not in header]:
        raise DataError(
            f"{path} needs the columns {', '.join(required)}, separated by commas, in its first "
            f"line; missing: {', '.join(missing)} {found}"
        )
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(
            f"{path} has a column twice: {', '.join(twice)[:200]}; name each column once {found}"
        )
