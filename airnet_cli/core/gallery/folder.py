"""Open a folder of parts (`parts.py`) as one gallery, add rows, delete some, and compact it."""

import errno
import posixpath
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import is_folder
from airnet_cli.core.gallery.files import (
    DTYPES,
    Gallery,
    Matrix,
    blocks,
    map_matrix,
    read_gallery,
    without_links,
    write_matrix,
    write_table,
)
from airnet_cli.core.gallery.parts import (
    ALL,
    OLD_FILES,
    TRIES,
    Snapshot,
    check_agreement,
    check_complete,
    check_exists,
    clean,
    publish,
    read_snapshot,
)
from airnet_cli.core.gallery.rows import JoinedRows
from airnet_cli.core.gallery.storage import DiskFolder
from airnet_cli.core.gallery.table import CsvFile, Table
from airnet_cli.errors import DataError


def open_gallery(path: Path, *, allow_partial: bool = False) -> Gallery:
    """Open a gallery on disk: a .npy file, or a folder of parts.

    Args:
        path: where it is.
        allow_partial: whether parts of its job may be missing.

    Raises:
        DataError: it doesn't exist, is damaged, or lacks parts.
    """
    if path.suffix == ".npy" and not is_folder(path):
        return read_gallery(path)
    return _open_folder(path, allow_partial=allow_partial)[1]


def _open_folder(path: Path, *, allow_partial: bool = False) -> tuple[Snapshot, Gallery]:
    """The records of a folder, and the gallery that they describe."""
    folder = Path(without_links(path))
    missing = ""
    for _ in range(TRIES):
        snapshot = read_snapshot(DiskFolder(folder))
        check_exists(snapshot, path)
        if not allow_partial:
            check_complete(snapshot)
        try:
            return snapshot, _open(path, folder, snapshot)
        except FileNotFoundError as error:  # another process changed the gallery meanwhile
            missing = str(error.filename)
    raise DataError(f"gallery '{path}' lacks the file '{missing}'; copy the folder again")


def _open(path: Path, folder: Path, snapshot: Snapshot) -> Gallery:
    """Open the files of a snapshot.

    Raises:
        FileNotFoundError: one was removed since.
        DataError: one is damaged, or they don't belong together.
    """
    shared = snapshot.shared
    matrices, tables, kept = [], [], []
    try:
        for number, rows in snapshot.kept.items():
            record = snapshot.records[number]
            check_agreement(record, shared, f"{path}")
            matrices.append(map_matrix(folder / record["files"]["npy"], record))
            tables.append(CsvFile(folder / record["files"]["csv"], record["rows"]))
            kept.append(rows)
    except FileNotFoundError:
        raise
    except OSError as error:
        many = "; join its parts: `ulimit -n 100000; airnet gallery compact`"
        raise DataError(
            f"gallery '{path}' can't be read: {error.strerror or error}"
            + (many if error.errno == errno.EMFILE else "")
        ) from None
    is_whole = [len(rows) == len(matrix) for rows, matrix in zip(kept, matrices, strict=True)]
    if len(matrices) == 1 and is_whole[0]:
        embeddings: Matrix = matrices[0]
    elif matrices:
        chosen = [None if w else rows for w, rows in zip(is_whole, kept, strict=True)]
        embeddings = JoinedRows(matrices, chosen)
    else:
        embeddings = np.empty((0, shared["dimensions"]), DTYPES[shared["dtype"]])
    return Gallery(
        path=path,
        embeddings=embeddings,
        columns=Table(tables, kept),
        heads={name: slice(*part) for name, part in shared["heads"].items()},
        record={**shared, "rows": len(embeddings), "parts": len(matrices)},
        folder=folder,
    )


def append(folder: Path, source: Gallery, record: Mapping[str, Any]) -> tuple[int, int]:
    """Add all rows of `source`; images that have a row already get the new one instead.

    Args:
        folder: of the gallery; it is created if it doesn't exist.
        source: rows whose paths are relative to `folder`.
        record: what made them, with the keys `MUST_AGREE`, and `skipped`.

    Returns:
        The number of the part, and how many old rows were replaced.

    Raises:
        DataError: the gallery is incomplete, damaged, or of another model.
        OutputError: it can't be written.
    """
    images = set(image_keys(source.columns["path"]))

    def choose(gallery: Gallery) -> npt.NDArray[np.bool_]:
        keys = image_keys(gallery.columns["path"])
        return np.fromiter((key in images for key in keys), np.bool_, len(keys))

    number, chosen = _change(folder, choose, source, record)
    return number, int(chosen.sum())


def delete(folder: Path, choose: Callable[[Gallery], npt.NDArray[np.bool_]]) -> tuple[int, int]:
    """Delete the rows for which `choose`, which is given the gallery, returns True (N,).

    Returns:
        How many rows were deleted, and how many are left.

    Raises:
        as `append`, and what `choose` raises.
    """
    _, chosen = _change(folder, choose)
    return int(chosen.sum()), int((~chosen).sum())


def compact(folder: Path) -> tuple[int, int, int]:
    """Join all parts into one, without hidden rows, and remove the files of the old ones.

    Returns:
        The rows that are left, the parts that there were, and the hidden rows that they had.

    Raises:
        as `append`.
    """
    place = DiskFolder(folder)
    for _ in range(TRIES):
        snapshot, gallery = _open_folder(folder)
        parts = [snapshot.records[number]["rows"] for number in snapshot.kept]
        rows = len(gallery.embeddings)
        hidden = sum(parts) - rows
        make = partial(_copy, gallery, {**snapshot.shared, "skipped": []})
        is_done = len(parts) <= 1 and not hidden
        if is_done or publish(place, snapshot.last + 1, make, hides=ALL):
            clean(place)
            return rows, len(parts), hidden
    raise _too_busy(folder)


def check_appendable(snapshot: Snapshot, record: Mapping[str, Any], folder: Path) -> None:
    """Refuse to add rows to a gallery that is incomplete, old, or made in another way.

    Raises:
        DataError: what is wrong.
    """
    if snapshot.names & {*OLD_FILES}:
        check_exists(snapshot, folder)
    if snapshot.records:
        check_complete(snapshot)
        check_agreement(record, snapshot.shared, str(folder))


def _change(
    folder: Path,
    choose: Callable[[Gallery], npt.NDArray[np.bool_]],
    source: Gallery | None = None,
    record: Mapping[str, Any] | None = None,
) -> tuple[int, npt.NDArray[np.bool_]]:
    """Create one record that hides the chosen rows and adds those of `source`, if there are any.

    Returns:
        Its number, and which rows of the gallery before are hidden.
    """
    place = DiskFolder(folder)
    for _ in range(TRIES):
        snapshot = read_snapshot(place)
        chosen = np.zeros(0, np.bool_)
        if snapshot.records or source is None or snapshot.names & {*OLD_FILES}:
            snapshot, gallery = _open_folder(folder)
            chosen = choose(gallery)
            if record is not None:
                check_appendable(snapshot, record, folder)
        if source is None and not chosen.any():
            return snapshot.last, chosen
        make = partial(_copy, source, record or {**snapshot.shared, "skipped": []})
        if publish(place, snapshot.last + 1, make, hides=_hides(snapshot, chosen)):
            clean(place)
            return snapshot.last + 1, chosen
    raise _too_busy(folder)


def _hides(snapshot: Snapshot, chosen: npt.NDArray[np.bool_]) -> dict[str, list[int] | str]:
    """The chosen rows (N,) of a gallery, by part."""
    hides: dict[str, list[int] | str] = {}
    begin = 0
    for number, rows in snapshot.kept.items():
        mask = chosen[begin : begin + len(rows)]
        begin += len(rows)
        if mask.any():
            hides[f"{number:06}"] = ALL if mask.all() else rows[mask].tolist()
    return hides


def _copy(
    source: Gallery | None, record: Mapping[str, Any], npy: Path, csv: Path
) -> dict[str, Any]:
    """Write the rows and the table of `source`, if there is one; the record."""
    rows = 0 if source is None else len(source.embeddings)
    if source is not None and rows:
        write_matrix(npy, blocks(source.embeddings), record["dimensions"], record["dtype"])
        write_table(csv, source.columns)
    return {**record, "rows": rows}


def _too_busy(folder: Path) -> DataError:
    return DataError(
        f"gallery '{folder}' was changed by other processes {TRIES} times in a row; try again later"
    )


def image_keys(paths: Sequence[str]) -> list[str]:
    """What distinguishes images, of `paths` relative to the folder.

    >>> image_keys(["../crops/1.jpg", "a/../../crops/1.jpg"])
    ['../crops/1.jpg', '../crops/1.jpg']
    """
    return [path if "://" in path else posixpath.normpath(path) for path in paths]
