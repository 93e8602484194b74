"""Indexes of a gallery on disk: what makes searching it quicker, made by `airnet index`.

int8, with the answers of the exact search (`retrieval/quantized.py`):

    gallery.i8.npy         (N, D) int8, C order, plain NumPy
    gallery.i8.scales.npy  (N, 1 + 2H) float32: each row's scale; the length of each head's part;
                           and the length of what int8 leaves of it, rounded up
    gallery.i8.json        which gallery it is of, by the hash of its matrix; hashes of the two

hnsw, approximate (`hnsw.py`): `gallery.hnsw.usearch` and `gallery.hnsw.json`.

The record is removed first and written last: where it is, the index is whole. An index that is of
another gallery, or broken, is an error, never used and never left out silently.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from airnet_cli.core.arrays import map_array
from airnet_cli.core.files import (
    is_file,
    is_sealed,
    read_json,
    remove_parts,
    replacing,
    sealed,
    write_json,
)
from airnet_cli.core.gallery import Gallery
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.directions import check_directions
from airnet_cli.core.retrieval.quantized import QuantizedRows, quantize
from airnet_cli.errors import DataError

FORMAT = "airnet-index"
FORMAT_VERSION = 1

IndexKind = Literal["int8", "hnsw"]
RECORDS: dict[IndexKind, str] = {"int8": ".i8.json", "hnsw": ".hnsw.json"}

HASHED_BYTES = 256 * 2**20
INDEX_SUFFIXES = (".i8.json", ".i8.npy", ".i8.scales.npy", ".hnsw.json", ".hnsw.usearch")


def index_files(path: Path) -> tuple[Path, ...]:
    """Where the indexes of a gallery `path` are, if it has some."""
    return tuple(path.with_suffix(suffix) for suffix in INDEX_SUFFIXES)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ROWS_AT_ONCE = 256
"""In memory while an index is made."""


def has_index(gallery: Gallery, kind: IndexKind) -> bool:
    """Whether there is a record of an index of this kind, fitting or not."""
    return isinstance(gallery.path, Path) and is_file(gallery.path.with_suffix(RECORDS[kind]))


def make_int8_index(gallery: Gallery, *, progress: Progress = silent) -> dict[str, Any]:
    """Write the int8 index of a gallery; whoever calls holds its place. The complete record.

    Raises:
        DataError: the gallery is another than its record says, or a row has no direction.
        OutputError: the system refused to write.
    """
    path = check_indexable(gallery)
    parts = tuple(gallery.heads.values())
    rows, width = gallery.embeddings.shape
    record_file, values_file, sizes_file = index_files(path)[:3]
    record_file.unlink(missing_ok=True)
    with replacing(values_file) as values, replacing(sizes_file) as sizes:
        with (
            _written(values, (rows, width), np.int8) as into_values,
            _written(sizes, (rows, 1 + 2 * len(parts)), np.float32) as into_sizes,
        ):
            for begin, piece in pieces(gallery, progress):
                integers, measured = quantize(piece, parts)
                into_values.write(integers.tobytes())
                into_sizes.write(measured.tobytes())
                progress("indexing", begin + len(piece), rows, "rows")
        hashes = {"values_sha256": file_digest(values), "scales_sha256": file_digest(sizes)}
    return write_record(gallery, "int8", {"heads": gallery.record["heads"], **hashes})


def read_int8_index(gallery: Gallery) -> QuantizedRows:
    """Read and check the int8 index of a gallery; its rows stay on disk until they are used.

    Raises:
        DataError: it is missing, broken, or of another gallery.
    """
    record = read_record(gallery, "int8")
    path = check_indexable(gallery)
    _, values_file, sizes_file = index_files(path)[:3]
    rows, width = gallery.embeddings.shape
    if record.get("heads") != gallery.record["heads"]:
        raise DataError(f"index '{values_file}' has other heads than the gallery; {again(path)}")
    values = _map(path, values_file, (rows, width), np.int8, record.get("values_sha256"))
    sizes = _map(
        path,
        sizes_file,
        (rows, 1 + 2 * len(gallery.heads)),
        np.float32,
        record.get("scales_sha256"),
    )
    if not _are_sizes(sizes, len(gallery.heads)):
        raise DataError(
            f"'{sizes_file}' has scales, lengths or errors that no row has; {again(path)}"
        )
    return QuantizedRows(values=values, sizes=sizes, parts=tuple(gallery.heads.values()))


def _are_sizes(sizes: npt.NDArray[np.float32], heads: int) -> bool:
    """Whether (N, 1 + 2H) numbers can be what `quantize` measured: then no cosine overflows."""
    scale, lengths, errors = sizes[:, 0], sizes[:, 1 : 1 + heads], sizes[:, 1 + heads :]
    if not (np.isfinite(sizes) & (sizes >= 0)).all():
        return False
    # A number is off by half a step at most, and by no more than itself.
    longest = np.sqrt((lengths.astype(np.float64) ** 2).sum(axis=1))
    is_scale = 127 * scale.astype(np.float64) <= longest * 1.001 + 1e-40
    is_error = errors.astype(np.float64) <= lengths.astype(np.float64) * 1.001 + 1e-40
    return bool(is_scale.all() and is_error.all())


def check_indexable(gallery: Gallery) -> Path:
    """The .npy file of a gallery that an index can be tied to.

    Raises:
        DataError: its record has no hash of its matrix.
    """
    assert isinstance(gallery.path, Path), "collections in Milvus have indexes of their own"
    if not isinstance(gallery.record.get("npy_sha256"), str):
        raise DataError(
            f"the record of gallery '{gallery.path}' has no npy_sha256, by which an index would "
            "know it; write it again with `airnet embed`"
        )
    return gallery.path


def pieces(gallery: Gallery, progress: Progress) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the rows of a gallery in float32, some at a time, each with the first one's number.

    Raises:
        DataError: the matrix is another than its record says, or a row has no direction.
    """
    path, rows = gallery.path, len(gallery.embeddings)
    assert isinstance(path, Path)
    progress("indexing", 0, rows, "rows")
    if file_digest(path) != gallery.record["npy_sha256"]:
        raise DataError(
            f"gallery '{path}' was changed or damaged after it was written: its hash is another; "
            "get it again from where it came, or write it again with `airnet embed`"
        )
    for begin in range(0, rows, ROWS_AT_ONCE):
        piece = np.asarray(gallery.embeddings[begin : begin + ROWS_AT_ONCE], dtype=np.float32)
        exact = piece.astype(np.float64)
        check_directions((exact * exact).sum(axis=1), begin + np.arange(len(piece)))
        yield begin, piece


def write_record(gallery: Gallery, kind: IndexKind, details: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of an index whose files are in place; the complete one."""
    assert isinstance(gallery.path, Path)
    rows, width = gallery.embeddings.shape
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "rows": rows,
        "dimensions": width,
        "npy_sha256": gallery.record["npy_sha256"],
        **details,
    }
    complete = sealed(json.loads(json.dumps(record)))
    write_json(gallery.path.with_suffix(RECORDS[kind]), complete)
    return complete


def read_record(gallery: Gallery, kind: IndexKind) -> dict[str, Any]:
    """The record of a gallery's index.

    Raises:
        DataError: it is missing or broken, or the index is of another gallery.
    """
    assert isinstance(gallery.path, Path)
    path = gallery.path
    side = path.with_suffix(RECORDS[kind])
    try:
        record = read_json(side)
    except FileNotFoundError:
        option = "" if kind == "int8" else f" --kind {kind}"
        raise DataError(
            f"gallery '{path}' has no {kind} index; `airnet index {path}{option}` makes it"
        ) from None
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"'{side}' can't be read: {told}; {again(path, kind)}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("kind") != kind:
        raise DataError(f"'{side}' does not describe an {kind} index; {again(path, kind)}")
    if record.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"'{side}' has format version {record.get('format_version')!a}, this airnet reads "
            f"{FORMAT_VERSION}; update airnet, or {again(path, kind)}"
        )
    if not is_sealed(record):
        raise DataError(f"'{side}' was changed after it was written; {again(path, kind)}")
    known = gallery.record.get("npy_sha256")
    if known is None or record.get("npy_sha256") != known:
        raise DataError(
            f"index '{side}' is of another gallery than '{path}', or of an older one of that name; "
            f"{again(path, kind)}"
        )
    return record


def again(path: Path, kind: IndexKind = "int8") -> str:
    """What to do about an index that can't be used."""
    option = "" if kind == "int8" else f" --kind {kind}"
    return f"`airnet index {path}{option}` makes it again, and `--index none` does without"


def remove_index_parts(path: Path) -> None:
    """Remove what making an index of the gallery `path` left behind when it was killed."""
    for file in index_files(path):
        remove_parts(file.parent, file.name)


@contextlib.contextmanager
def _written(path: Path, shape: tuple[int, int], dtype: npt.DTypeLike) -> Iterator[Any]:
    """A file for the bytes of an array (C order), after its header."""
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, described)
        yield file


def _map(
    path: Path, file: Path, shape: tuple[int, int], dtype: npt.DTypeLike, sha256: object
) -> npt.NDArray[Any]:
    """Map a file of an index; a small one is held against its hash, as the gallery is."""
    try:
        array = map_array(file, mode="r")
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"index '{file}' can't be read ({told}); {again(path)}") from None
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise DataError(
            f"index '{file}' holds {array.dtype} of the shape {array.shape}, not "
            f"{np.dtype(dtype)} of {shape}, row after row; {again(path)}"
        )
    if array.nbytes <= HASHED_BYTES and file_digest(file) != sha256:
        raise DataError(f"index '{file}' was changed or damaged; {again(path)}")
    return array
