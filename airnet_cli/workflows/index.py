"""Make an index of a gallery on disk: `airnet index`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airnet_cli.core.files import holding_output
from airnet_cli.core.gallery import Gallery, read_gallery
from airnet_cli.core.gallery.place import MilvusPlace, gallery_place
from airnet_cli.core.hnsw import make_hnsw_index
from airnet_cli.core.index import IndexKind, make_int8_index, remove_index_parts
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, UsageError

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class MadeIndex:
    """An index that was made."""

    gallery: Path
    kind: IndexKind
    record: dict[str, Any]
    """The .json file."""
    seconds: float

    @property
    def measured(self) -> dict[str, Any] | None:
        """What an approximate index was measured at; None where answers are exact."""
        found: dict[str, Any] | None = self.record.get("measured")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `index --json` (docs/formats.md)."""
        return {
            "version": JSON_VERSION,
            "gallery": str(self.gallery),
            "kind": self.kind,
            "rows": self.record["rows"],
            "dimensions": self.record["dimensions"],
            "measured": self.measured,
            "seconds": self.seconds,
        }


def make_index(gallery: Path | str, *, kind: IndexKind, progress: Progress = silent) -> MadeIndex:
    """Make an index of the gallery `gallery` (its .npy file), beside it.

    Raises:
        UsageError: the gallery is a collection in Milvus.
        DataError: the gallery is missing, broken or being written.
        OutputError: the index can't be written.
        RuntimeSetupError: usearch is not installed, which `kind` hnsw needs.
    """
    place = gallery_place(gallery)
    if isinstance(place, MilvusPlace):
        raise UsageError(
            f"'{place}' is a collection, whose index Milvus makes itself; give the .npy file of a "
            "gallery"
        )
    if place.is_dir():
        raise UsageError(
            f"'{place}' is a folder; an index is made of a gallery in one file: give its .npy file"
        )
    opened = read_gallery(place)
    with holding_output(place) as is_ours:
        if not is_ours:
            raise DataError(f"gallery '{place}' is being written by another process; wait for it")
        return make_index_of(opened, kind=kind, progress=progress)


def make_index_of(gallery: Gallery, *, kind: IndexKind, progress: Progress) -> MadeIndex:
    """Make an index of a gallery whose place the caller holds.

    Raises:
        DataError, OutputError, RuntimeSetupError: as for `make_index`.
    """
    assert isinstance(gallery.path, Path)
    remove_index_parts(gallery.path)
    started = time.perf_counter()
    make = make_int8_index if kind == "int8" else make_hnsw_index
    record = make(gallery, progress=progress)
    return MadeIndex(
        gallery=gallery.path, kind=kind, record=record, seconds=time.perf_counter() - started
    )
