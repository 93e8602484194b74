"""A CSV table with the columns path, person_id, camera_id and split becomes image records.

For one's own images: any further columns are ignored, paths are relative to a folder of images.
All bad rows are reported at once, each with its line number.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.errors import DataError, quoted

COLUMNS = ("path", "person_id", "camera_id", "split")
LISTED = 10
"""How many bad rows an error spells out."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One valid row and where it stands."""

    line: int
    """Counted from 1, as editors do; the header is line 1."""
    record: ImageRecord


def read(table: Path) -> tuple[TableRow, ...]:
    """Read a table in UTF-8 (with or without a mark at its start) with any line ends.

    `person_id` is an integer from -1 on: -1 is junk and in the gallery only; 0 is a distractor in
    the gallery, an identity like any other in train, and nothing that a query can have.
    `camera_id` is an integer from 0 on. `split` is train, query or gallery.

    Raises:
        DataError: columns are missing, there are no rows, or some are bad; the first are listed.
    """
    rows: list[TableRow] = []
    problems: list[str] = []
    num_bad = 0
    lines: dict[tuple[Split, str], int] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            for line, cells in _cells(table, file):
                record, problem = _parse(cells)
                if record is not None:
                    earlier = lines.setdefault((record.split, record.path), line)
                    if earlier != line:
                        problem = (
                            f"path {quoted(record.path)} is in {record.split} already, "
                            f"line {earlier}"
                        )
                    rows.append(TableRow(line=line, record=record))
                if problem is not None:
                    num_bad += 1
                    problems += [f"line {line}: {problem}"] if num_bad <= LISTED else []
    except OSError as error:
        raise DataError(
            f"can't read the table {table}: {error.strerror or error}; give the path of a CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{table} is not a CSV table: {error}; save it as CSV in UTF-8") from error
    if problems:
        raise DataError(
            f"{table} has {num_bad:,} bad {'row' if num_bad == 1 else 'rows'}: "
            f"{'; '.join(problems)}"
            f"{f'; and {num_bad - LISTED:,} more' if num_bad > LISTED else ''}"
            " - correct or remove them"
        )
    if not rows:
        raise DataError(f"{table} has no rows under its header; write one row for each image")
    return tuple(rows)


def _cells(table: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, str] | str]]:
    """Give the four cells of each row that is not blank, with its line number.

    For a row in which they can't be told, as it has fewer or more than the first, what is wrong.
    """
    reader = csv.reader(file, strict=True)
    header = [cell.strip() for cell in next(reader, [])]
    missing = [column for column in COLUMNS if header.count(column) != 1]
    if missing:
        raise DataError(
            f"{table} needs one column each of {', '.join(COLUMNS)}, separated by commas, in its "
            f"first line; not so: {', '.join(missing)} (found: {_few(header) or 'nothing'})"
        )
    position = {column: header.index(column) for column in COLUMNS}
    line = reader.line_num + 1
    for row in reader:
        if any(cell.strip() for cell in row):
            if len(row) < len(header) or any(cell.strip() for cell in row[len(header) :]):
                yield line, f"{len(row)} cells, and the first line has {len(header)}"
            else:
                yield line, {column: row[index].strip() for column, index in position.items()}
        # A quoted cell may hold line ends: a row begins where the last one ended.
        line = reader.line_num + 1


def _few(header: Sequence[str]) -> str:
    """The names of columns, as far as they fit into a message."""
    names = ", ".join(header[:20])
    return names if len(names) <= 200 and len(header) <= 20 else f"{names[:200]}, ..."


def _parse(cells: Mapping[str, str] | str) -> tuple[ImageRecord | None, str | None]:
    """Check one row: the record, or what is wrong with it."""
    if isinstance(cells, str):
        return None, cells
    split = _as_split(cells["split"])
    if split is None:
        return None, f"split {quoted(cells['split'])} is none of {', '.join(SPLITS)}"
    person_id, camera_id = _as_integer(cells["person_id"]), _as_integer(cells["camera_id"])
    if person_id is None or person_id < JUNK:
        return None, f"person_id {quoted(cells['person_id'])} is no integer from -1 on"
    if camera_id is None or camera_id < 0:
        return None, f"camera_id {quoted(cells['camera_id'])} is no integer from 0 on"
    if person_id == JUNK and split != "gallery":
        return None, f"person_id -1 is junk, which {split} can't have"
    if person_id == DISTRACTOR and split == "query":
        return None, "person_id 0 is a distractor, which query can't have; number people from 1 on"
    path = PurePosixPath(cells["path"].replace("\\", "/"))
    if not path.parts:
        return None, "path is empty"
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)):
        return None, f"path {quoted(cells['path'])} is not relative to the folder of the images"
    if "\0" in cells["path"]:
        return None, f"path {quoted(cells['path'])} is no file's"
    record = ImageRecord(path=str(path), person_id=person_id, camera_id=camera_id, split=split)
    return record, None


def _as_split(text: str) -> Split | None:
    """Give the split of this name."""
    return next((split for split in SPLITS if split == text), None)


def _as_integer(text: str) -> int | None:
    """Read a plain integer; `int` alone would also take `1_000`."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
