"""Features that any tool computed: a NumPy matrix and a table that says what its rows show.

`Q.npy` holds N x D floats; `Q.csv` has a header and N rows, with the columns `person_id` and
`camera_id`; `path` is read where it exists, and other columns are ignored. Nothing is unpickled,
and the matrix is memory-mapped.

A folder of segments (`segments.py`) is read too, and copied into memory.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import is_folder, map_array
from airnet_cli.core.gallery import open_gallery
from airnet_cli.core.retrieval.protocol import LabelledFeatures, Labels
from airnet_cli.errors import DataError

LABEL_COLUMNS = ("person_id", "camera_id")
NAMED_COLUMNS = " and ".join(LABEL_COLUMNS)


def read_features(path: Path) -> LabelledFeatures:
    """Read `path` (.npy) and the .csv of the same name beside it, or a folder of segments.

    Raises:
        DataError: a file is missing or broken, or is not what this module's docstring says; with
            the row or line.
    """
    if is_folder(path):
        gallery = open_gallery(path)
        labels = _labels(gallery.columns, name=str(path))
        return LabelledFeatures(np.asarray(gallery.embeddings), labels)
    table = path.with_suffix(".csv")
    embeddings = _read_matrix(path)
    labels = _labels(_read_table(table, beside=path), name=str(table))
    if len(labels) != len(embeddings):
        raise DataError(
            f"{table} has {len(labels)} rows under its header and {path} has {len(embeddings)}; "
            "there must be one row of the table for each row of the matrix, in the same order"
        )
    return LabelledFeatures(embeddings, labels)


def _read_matrix(path: Path) -> npt.NDArray[np.floating[Any]]:
    try:
        matrix = map_array(path)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; give the path of a .npy file") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as a NumPy array ({' '.join(str(error).split())}); write it "
            "again with numpy.save(path, matrix), a matrix of floats"
        ) from None
    is_float = matrix.dtype in (np.float16, np.float32, np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape or not is_float:
        raise DataError(
            f"{path} holds {matrix.dtype} of the shape {matrix.shape}; it must be a matrix of "
            "float16, float32 or float64, in this machine's byte order, with one row per image"
        )
    return matrix


def _read_table(table: Path, *, beside: Path) -> dict[str, list[str]]:
    """The columns of a CSV file, by name."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            names = next(reader, [])
            rows = []
            for row in reader:
                if row and len(row) != len(names):
                    raise DataError(
                        f"{table}, line {reader.line_num}: it has {len(row)} cells, the first line "
                        f"has {len(names)}; give it as many"
                    )
                if row:  # spreadsheets leave blank lines at the end
                    rows.append(row)
    except FileNotFoundError:
        raise DataError(
            f"there is no {table} beside {beside}; write one with the columns {NAMED_COLUMNS}, "
            "a row for each row of the matrix"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table} can't be read as a table ({' '.join(str(error).split())}); "
            "write it as UTF-8 text with commas"
        ) from None
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _labels(columns: Mapping[str, Sequence[str]], *, name: str) -> Labels:
    """The labels in a table's columns; `name` is that of the table, for messages."""
    missing = [f"no column {each}" for each in LABEL_COLUMNS if each not in columns]
    if missing:
        raise DataError(
            f"{name} has {' and '.join(missing)}; its columns must include {NAMED_COLUMNS}"
        )
    numbers = []
    for column in LABEL_COLUMNS:
        for row, cell in enumerate(columns[column]):
            if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", cell):
                raise DataError(
                    f"{name}, row {row + 1} under the header: {column} is {cell.strip()!r}; it "
                    "must be an integer such as 12"
                )
        numbers.append(np.array([int(cell) for cell in columns[column]], np.int64))
    person_ids, camera_ids = numbers
    paths = tuple(columns["path"]) if "path" in columns else None
    return Labels(person_ids, camera_ids, paths)
