"""A gallery in one file: embeddings that outlive the process that computed them.

    gallery.npy     (N, D) float32 or float16, C order, plain NumPy: any tool can map it into memory
    gallery.csv     a header and N rows: `path` (relative to this folder, with forward slashes),
                    then any columns that were known, such as person_id and camera_id
    gallery.json    what made them: the model's fingerprint, heads, preprocessing, which images
                    were left out. It is written last: a gallery that has it is complete

Opening a gallery checks types, shapes and lengths. It reads neither the matrix nor the cells of
the table.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import (
    is_file,
    map_array,
    read_json,
    replacing,
    write_json,
    write_rows,
)
from airnet_cli.core.gallery.rows import JoinedRows
from airnet_cli.core.gallery.table import CsvFile, Table
from airnet_cli.errors import DataError

if TYPE_CHECKING:
    from airnet_cli.core.gallery.place import MilvusPlace

FORMAT = "airnet-gallery"
FORMAT_VERSION = 1

DTypeName = Literal["float32", "float16"]
DTYPES: dict[str, npt.DTypeLike] = {"float32": np.float32, "float16": np.float16}

AGAIN = "embed the images again with `airnet embed`"

COPIED_BYTES = 32 * 2**20
"""Rows that are copied at a time."""

MUST_AGREE = (
    "fingerprint",
    "heads",
    "dimensions",
    "flip",
    "normalize_heads",
    "preprocessing",
    "precision",
    "dtype",
)
"""Keys of a record that must be equal for all rows of a gallery."""

Matrix = npt.NDArray[np.floating[Any]] | JoinedRows


@dataclass(frozen=True, eq=False)
class Gallery:
    """An open gallery; embeddings and table stay on disk until they are used.

    It is one file, a folder of parts, or rows that were found in a Milvus collection.
    """

    path: "Path | MilvusPlace"
    """The .npy file or the folder, as the user named it, or the place of the collection."""
    embeddings: Matrix
    """(N, D) float32 or float16, read-only."""
    columns: Mapping[str, Sequence[str]]
    """The table: N texts for `path` and for each further column."""
    heads: dict[str, slice]
    """Each head's part of an embedding."""
    record: dict[str, Any]
    """What made the rows: the keys of the .json file."""
    folder: Path = field(default=Path())
    """What relative paths of the table are relative to."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the checkpoint that made the embeddings."""
        return str(self.record["fingerprint"])

    @property
    def normalize_heads(self) -> bool:
        """Whether each head's part has length 1."""
        return bool(self.record["normalize_heads"])

    @property
    def flip(self) -> bool:
        """Whether an embedding is the mean of those of image and mirror image."""
        return bool(self.record["flip"])

    def image_path(self, row: int) -> Path:
        """The image of `row`, as seen from the current folder.

        An image in object storage has no path: use `image_name`.
        """
        return Path(self.image_name(row))

    def image_name(self, row: int) -> str:
        """Like `image_path`, or the URL of an image in object storage."""
        image = self.columns["path"][row]
        if "://" in image or not isinstance(self.path, Path):
            return image
        return os.path.normpath(self.folder / image)


def read_gallery(path: Path) -> Gallery:
    """Open the gallery in the file `path` (.npy).

    Raises:
        DataError: one of the three files is missing or damaged, or they don't belong together.
    """
    if path.suffix != ".npy":
        raise DataError(f"'{path}' is not the .npy file of a gallery; give that file")
    if not is_file(path):
        raise DataError(
            f"gallery '{path}' does not exist; create it with `airnet embed IMAGES -o {path}`"
        )
    real = Path(without_links(path))
    record = _read_record(path, real.with_suffix(".json"))
    try:
        embeddings = map_matrix(real, record)
        table = CsvFile(real.with_suffix(".csv"), record["rows"])
    except FileNotFoundError as error:
        raise DataError(f"gallery '{path}' lacks the file '{error.filename}'; {AGAIN}") from None
    except OSError as error:
        raise DataError(f"gallery '{path}' can't be read: {error.strerror or error}") from None
    return Gallery(
        path=path,
        embeddings=embeddings,
        columns=Table([table], [np.arange(record["rows"])]),
        heads={name: slice(*part) for name, part in record["heads"].items()},
        record=record,
        folder=real.parent,
    )


def without_links(path: Path) -> str:
    """`path` without symbolic links, since ".." would lead somewhere else through a link.

    It stays as it is where it has none, so that relative paths stay short.
    """
    real = os.path.realpath(path)
    return str(path) if real == os.path.abspath(path) else real  # noqa: PTH100  keeps no ".."


def _read_record(path: Path, side: Path) -> dict[str, Any]:
    try:
        record = read_json(side)
    except FileNotFoundError:
        raise DataError(
            f"gallery '{path}' has no {side.name} next to it, which is written last, so it is "
            "incomplete or not from airnet; finish it with `airnet embed --resume`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{side}' can't be read: {' '.join(str(error).split())}; {AGAIN}"
        ) from None
    return check_record(record, name=str(side), format_name=FORMAT)


def check_record(record: Any, *, name: str, format_name: str) -> dict[str, Any]:
    """The record of a gallery or of a part, if it has the keys that readers use.

    Raises:
        DataError: it has another format, or a key is missing or has a wrong type.
    """
    if not isinstance(record, dict) or record.get("format") != format_name:
        raise DataError(f"'{name}' does not describe a gallery of airnet; {AGAIN}")
    if record.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"'{name}' has format version {record.get('format_version')}, this airnet reads "
            f"{FORMAT_VERSION}; update airnet, or embed the images again"
        )
    kinds = {"rows": int, "dimensions": int, "dtype": str, "fingerprint": str, "heads": dict}
    kinds |= {"normalize_heads": bool, "flip": bool}
    # `type`, since True is an integer to isinstance.
    wrong = [key for key, kind in kinds.items() if type(record.get(key)) is not kind]
    if wrong or record["dtype"] not in DTYPES:
        raise DataError(f"'{name}' has no valid {', '.join(wrong) or 'dtype'}; {AGAIN}")
    ends = [0, *(part[1] for part in record["heads"].values())]
    starts = [*(part[0] for part in record["heads"].values()), record["dimensions"]]
    if starts != ends:
        raise DataError(
            f"'{name}' has heads that do not fill {record['dimensions']} dimensions; {AGAIN}"
        )
    return record


def map_matrix(path: Path, record: Mapping[str, Any]) -> npt.NDArray[np.floating[Any]]:
    """The matrix (N, D) in `path`, mapped into memory, if it is the one of the record.

    Raises:
        OSError: it can't be read.
        DataError: it is not a matrix, is cut off, or has another shape or type.
    """
    try:
        matrix = map_array(path)
    except ValueError as error:
        raise DataError(
            f"gallery '{path}' can't be read as a NumPy array ({' '.join(str(error).split())}); "
            f"{AGAIN}"
        ) from None
    shape = (record["rows"], record["dimensions"])
    if matrix.shape != shape or matrix.dtype != DTYPES[record["dtype"]]:
        raise DataError(
            f"gallery '{path}' has {matrix.dtype} of the shape {matrix.shape}, and its .json says "
            f"{record['dtype']} of {shape}: they belong to different galleries; {AGAIN}"
        )
    if not matrix.flags.c_contiguous:
        raise DataError(f"gallery '{path}' is in Fortran order; {AGAIN}")
    return matrix


def write_gallery(path: Path, source: Gallery, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write all rows of `source` as the gallery `path`; the record as it is on disk.

    An older gallery of that name is replaced. If the process is killed in between, there is no
    .json file, and the gallery can't be opened.

    Raises:
        OutputError: a file can't be written.
    """
    side = path.with_suffix(".json")
    with replacing(path.with_suffix(".csv")) as table, replacing(path) as matrix:
        write_matrix(matrix, blocks(source.embeddings), record["dimensions"], record["dtype"])
        write_table(table, source.columns)
        side.unlink(missing_ok=True)  # it would describe other files
    described = {"format": FORMAT, "format_version": FORMAT_VERSION, "rows": len(source.embeddings)}
    complete: dict[str, Any] = json.loads(json.dumps(described | dict(record)))
    write_json(side, complete)
    return complete


def blocks(matrix: Matrix) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """The rows of a matrix, some megabytes at a time."""
    count, width = matrix.shape
    step = max(1, COPIED_BYTES // (4 * width))
    for begin in range(0, count, step):
        yield matrix[begin : begin + step]


def write_matrix(
    file: Path, rows: Iterable[npt.NDArray[np.floating[Any]]], dimensions: int, dtype: str
) -> int:
    """Write blocks (B, D) of rows, as they come, as a .npy file; the number of rows."""
    count = 0
    with file.open("wb") as opened:
        opened.write(_header(0, dimensions, dtype))
        for block in rows:
            opened.write(np.ascontiguousarray(block, DTYPES[dtype]).data)
            count += len(block)
        opened.seek(0)
        opened.write(_header(count, dimensions, dtype))
        opened.flush()
        os.fsync(opened.fileno())
    return count


def _header(rows: int, dimensions: int, dtype: str) -> bytes:
    """What NumPy writes before a matrix; its length is the same for any number of rows."""
    file = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(DTYPES[dtype])),
        "fortran_order": False,
        "shape": (rows, dimensions),
    }
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def write_table(file: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write columns of N texts as a CSV file."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        write_rows(opened, [list(columns)])
        write_rows(opened, zip(*columns.values(), strict=True))
        opened.flush()
        os.fsync(opened.fileno())
