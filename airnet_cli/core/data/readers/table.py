"""A CSV table with the columns path, person_id, camera_id and split becomes image records.

For the user's own images: any further columns are ignored, paths are relative to a folder of
images. All bad rows are reported at once, each with its line number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.data.tables import read_table
from airnet_cli.errors import DataError, listed, quoted

COLUMNS = ("path", "person_id", "camera_id", "split")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One valid row and its line."""

    line: int
    """Counted from 1, as editors do; the header is line 1."""
    record: ImageRecord


def read(path: Path) -> tuple[TableRow, ...]:
    """Read the labels of a table.

    `person_id` is an integer from -1 on: -1 is junk and in the gallery only; 0 is a distractor in
    the gallery, an identity like any other in train, and nothing that a query can have.
    `camera_id` is an integer from 0 on. `split` is train, query or gallery.

    Raises:
        DataError: columns are missing, there are no rows, or some are bad; the first are listed.
    """
    table = read_table(path, required=COLUMNS)
    rows: list[TableRow] = []
    problems = list(table.problems)
    lines: dict[tuple[Split, str], int] = {}
    for row in table.rows:
        record = _parse(row.cells)
        if isinstance(record, str):
            problems.append(f"line {row.line}: {record}")
        elif (first := lines.setdefault((record.split, record.path), row.line)) != row.line:
            problems.append(
                f"line {row.line}: path {quoted(record.path)} is in {record.split} already, "
                f"line {first}"
            )
        else:
            rows.append(TableRow(row.line, record))
    if problems:
        raise DataError(
            f"{path} has {len(problems):,} bad {'row' if len(problems) == 1 else 'rows'}: "
            f"{listed(problems, separator='; ')} - correct or remove them"
        )
    if not rows:
        raise DataError(f"{path} has no rows under its header; write one row for each image")
    return tuple(rows)


def _parse(cells: Mapping[str, str]) -> ImageRecord | str:
    """Read one row: the record, or what is wrong with it."""
    split = next((split for split in SPLITS if split == cells["split"]), None)
    if split is None:
        return f"split {quoted(cells['split'])} is none of {', '.join(SPLITS)}"
    person_id, camera_id = _as_integer(cells["person_id"]), _as_integer(cells["camera_id"])
    if person_id is None or person_id < JUNK:
        return f"person_id {quoted(cells['person_id'])} is not an integer from -1 on"
    if camera_id is None or camera_id < 0:
        return f"camera_id {quoted(cells['camera_id'])} is not an integer from 0 on"
    if person_id == JUNK and split != "gallery":
        return f"person_id -1 is junk, which {split} can't have"
    if person_id == DISTRACTOR and split == "query":
        return "person_id 0 is a distractor, which query can't have; number people from 1 on"
    path = PurePosixPath(cells["path"].replace("\\", "/"))
    if not path.parts or "\0" in cells["path"]:
        return f"path {quoted(cells['path'])} is not a file's"
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)):
        return f"path {quoted(cells['path'])} is not relative to the folder of the images"
    return ImageRecord(str(path), person_id, camera_id, split)


def _as_integer(text: str) -> int | None:
    """Read a plain integer; `int` alone would also take `1_000`."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
