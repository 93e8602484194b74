"""Features that any tool computed: a NumPy matrix and a table that says what its rows show.

`Q.npy` holds N x D floats; `Q.csv` has a header and N rows, with the columns `person_id` and
`camera_id`; `path` is read where it is there, and others are allowed. Nothing is unpickled, and the
matrix stays on disk: it is mapped into memory.

A folder of segments (`segments.py`) is read too, and copied into memory: scores need one matrix.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from airnet_cli.core.arrays import map_array
from airnet_cli.core.files import is_folder
from airnet_cli.core.gallery import open_gallery
from airnet_cli.errors import DataError

LABEL_COLUMNS = ("person_id", "camera_id")
PATH_COLUMN = "path"
NAMED_COLUMNS = " and ".join(LABEL_COLUMNS)

CHECK_ROWS = 4096
"""Rows that are looked at together; so the check takes little memory."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """N embeddings, and who was seen by which camera."""

    embeddings: Tensor
    """(N, D) float16, float32 or float64, as in the file, from which it is read as it is used."""
    person_ids: npt.NDArray[np.int64]
    """(N,)"""
    camera_ids: npt.NDArray[np.int64]
    """(N,)"""
    paths: tuple[str, ...] | None
    """Of N images, as they stand in the table; None where it has no such column."""


def read_features(path: Path) -> LabelledFeatures:
    """Read `path` (.npy) and the .csv of the same name beside it, or a folder of segments.

    Raises:
        DataError: A file is missing or broken, or is not what this module's docstring says; with
            the row or line.
    """
    if is_folder(path):
        return _open_gallery(path)
    embeddings = _read_matrix(path)
    table = path.with_suffix(".csv")
    labels, paths = _read_labels(table, beside=path, rows=len(embeddings))  # (N, 2)
    if len(labels) != len(embeddings):
        raise DataError(
            f"{table} has {len(labels)} rows under its header and {path} has {len(embeddings)}; "
            "there must be one row of the table for each row of the matrix, in the same order"
        )
    return LabelledFeatures(
        embeddings=embeddings,
        person_ids=labels[:, 0].copy(),
        camera_ids=labels[:, 1].copy(),
        paths=paths,
    )


def _open_gallery(folder: Path) -> LabelledFeatures:
    gallery = open_gallery(folder)
    missing = [name for name in LABEL_COLUMNS if name not in gallery.columns]
    if missing or not len(gallery.embeddings):
        what = f"no column {' and no column '.join(missing)}" if missing else "no rows"
        raise DataError(
            f"gallery '{folder}' has {what}; embed a table with the columns {NAMED_COLUMNS} into it"
        )
    cells = zip(*(gallery.columns[name] for name in LABEL_COLUMNS), strict=True)
    labels = np.array(
        [
            _labels_of(dict(zip(LABEL_COLUMNS, row, strict=True)), f"{folder}, row {number}")
            for number, row in enumerate(cells)
        ],
        dtype=np.int64,
    )
    embeddings = torch.from_numpy(np.asarray(gallery.embeddings))
    _check_finite(embeddings, folder)
    return LabelledFeatures(
        embeddings=embeddings,
        person_ids=labels[:, 0].copy(),
        camera_ids=labels[:, 1].copy(),
        paths=tuple(gallery.columns[PATH_COLUMN]),
    )


def _read_matrix(path: Path) -> Tensor:
    try:
        # "c" (private) rather than "r": torch warns about memory that it may not write to.
        matrix = map_array(path, mode="c")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; give the path of a .npy file") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as a NumPy array ({_one_line(error)}); write it again with "
            "numpy.save(path, matrix), a matrix of floats"
        ) from None
    if (
        matrix.ndim != 2
        or 0 in matrix.shape
        or matrix.dtype not in (np.float16, np.float32, np.float64)
    ):
        raise DataError(
            f"{path} holds {matrix.dtype} of the shape {matrix.shape}; it must be a matrix of "
            "float16, float32 or float64, in this machine's byte order, with one row per image"
        )
    embeddings = torch.from_numpy(matrix)
    _check_finite(embeddings, path)
    return embeddings


def _check_finite(embeddings: Tensor, path: Path) -> None:
    for begin in range(0, len(embeddings), CHECK_ROWS):
        is_finite = embeddings[begin : begin + CHECK_ROWS].isfinite().all(dim=1)
        if not is_finite.all():
            row = begin + int((~is_finite).nonzero()[0])
            raise DataError(
                f"{path}: row {row} (from 0) holds NaN or infinity; compute the features again, "
                "or leave that row out"
            )


def _read_labels(
    table: Path, *, beside: Path, rows: int
) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            names = reader.fieldnames or ()
            twice = [name for name in (*LABEL_COLUMNS, PATH_COLUMN) if list(names).count(name) > 1]
            if twice:
                raise DataError(f"{table} has the column {twice[0]} twice; leave one of them out")
            missing = [name for name in LABEL_COLUMNS if name not in names]
            if missing:
                raise DataError(
                    f"{table} has no column {' and no column '.join(missing)}; "
                    f"its first line must name the columns, {NAMED_COLUMNS} among them"
                )
            paths: list[str] | None = [] if PATH_COLUMN in names else None
            labels: list[list[int]] = []
            for row in reader:
                if len(labels) == rows:
                    raise DataError(
                        f"{table} has more rows under its header than {beside}, which has {rows}; "
                        "there must be one row of the table for each row of the matrix, in the "
                        "same order"
                    )
                labels.append(_labels_of(row, f"{table}, line {reader.line_num}"))
                if paths is not None:
                    paths.append(row[PATH_COLUMN] or "")
    except FileNotFoundError:
        raise DataError(
            f"there is no {table} beside {beside}; write one with the columns {NAMED_COLUMNS}, "
            "a row for each row of the matrix"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table} can't be read as a table ({_one_line(error)}); "
            "write it as UTF-8 text with commas"
        ) from None
    found = np.array(labels, dtype=np.int64).reshape(-1, len(LABEL_COLUMNS))
    return found, None if paths is None else tuple(paths)


def _labels_of(row: dict[str | None, str | None], place: str) -> list[int]:
    if None in row or None in row.values():
        raise DataError(f"{place}: it has more or fewer cells than the first line; give it as many")
    labels = []
    for name in LABEL_COLUMNS:
        text = (row[name] or "").strip()
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise DataError(f"{place}: {name} is {text!r}; it must be a whole number such as 12")
        labels.append(int(text))
    return labels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
