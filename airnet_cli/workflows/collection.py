"""Count and delete rows of a gallery, and compact one: `airnet gallery`. Collections in Milvus and
folders of segments can lose rows; a gallery of one file is written once, and only counted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airnet_cli.core import segments
from airnet_cli.core.data.sources import path_key, relative_to_folder
from airnet_cli.core.files import is_folder
from airnet_cli.core.milvus import MilvusPlace, gallery_place, open_collection
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.conditions import Condition, allowed_rows, parse_condition
from airnet_cli.errors import DataError, UsageError

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class GalleryRows:
    """How many rows a gallery has."""

    gallery: Path | MilvusPlace
    where: tuple[str, ...]
    rows: int
    """All of them; after a deletion, those that are left."""
    chosen: int
    """Those that fulfil the conditions; of a deletion, those that were deleted."""

    def to_dict(self, chosen: str) -> dict[str, Any]:
        """The JSON shape of `gallery count` and `gallery delete` (docs/how-to/milvus.md)."""
        return {
            "version": JSON_VERSION,
            "gallery": str(self.gallery),
            "where": list(self.where),
            "rows": self.rows,
            chosen: self.chosen,
        }


@dataclass(frozen=True, kw_only=True)
class CompactedGallery:
    """What compacting a folder of segments did."""

    gallery: Path
    rows: int
    """That are left, all in one segment."""
    segments: int
    """How many there were."""
    deleted: int
    """Deleted rows whose room is free now."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `gallery compact` (docs/formats.md)."""
        return {
            "version": JSON_VERSION,
            "gallery": str(self.gallery),
            "rows": self.rows,
            "segments": self.segments,
            "deleted": self.deleted,
        }


def milvus_token() -> str:
    """USER:PASSWORD or an API key from the environment: it has no place on a command line."""
    return os.environ.get("AIRNET_MILVUS_TOKEN", "")


def count_rows(gallery: Path | str, *, where: Sequence[str]) -> GalleryRows:
    """Count the rows of a gallery, and those that fulfil conditions.

    Raises:
        UsageError: a condition that can't be read, or on a column that is not there.
        DataError: the gallery is not there or broken, or no row of a file fulfils the conditions.
    """
    conditions = [parse_condition(text) for text in where]
    place = gallery_place(gallery)
    if isinstance(place, MilvusPlace):
        collection = open_collection(place, token=milvus_token())
        rows = collection.count()
        chosen = collection.count(conditions) if conditions else rows
    else:
        opened = segments.open_gallery(place)
        rows = len(opened.embeddings)
        chosen = int(allowed_rows(opened.columns, conditions).sum()) if conditions else rows
    told = tuple(str(condition) for condition in conditions)
    return GalleryRows(gallery=place, where=told, rows=rows, chosen=chosen)


def delete_rows(
    gallery: Path | str, *, images: Sequence[Path], where: Sequence[str]
) -> GalleryRows:
    """Delete the rows of some images, or those that fulfil conditions, from a gallery.

    Args:
        gallery: a folder of segments, or milvus://HOST:PORT/COLLECTION.
        images: paths of images, which need not be there any more.
        where: conditions, all of which a row must fulfil. Either images or these are given.

    Raises:
        UsageError: the gallery is a file; neither images nor conditions are given, or both.
        DataError: there is no such row; the folder, the server or the collection is not there;
            another process writes the folder.
    """
    if bool(images) == bool(where):
        raise UsageError("what is to be deleted? give images, or conditions with --where")
    conditions = [parse_condition(text) for text in where]
    place = gallery_place(gallery)
    if not isinstance(place, MilvusPlace):
        return _delete_from_folder(_folder_of_segments(place, "delete"), images, conditions)
    collection = open_collection(place, token=milvus_token())
    if conditions:
        deleted = collection.delete_where(conditions)
    else:
        deleted = collection.delete([path_key(image) for image in images])
    if not deleted:
        told = " and ".join(map(str, conditions)) or f"of these images ('{images[0]}')"
        raise DataError(
            f"'{place}' has no row {told}; its key is the image's absolute path, and its columns "
            f"are {', '.join(('path', *collection.columns))}"
        )
    return GalleryRows(
        gallery=place,
        where=tuple(str(condition) for condition in conditions),
        rows=collection.count(),
        chosen=deleted,
    )


def compact_gallery(gallery: Path | str, *, progress: Progress = silent) -> CompactedGallery:
    """Bring the rows of a folder of segments into one, without those that are deleted.

    Raises:
        UsageError: the gallery is a file, or a collection.
        DataError: the folder is not there or broken; another process writes it; there is no room.
        OutputError: the manifest can't be written.
    """
    place = gallery_place(gallery)
    if isinstance(place, MilvusPlace):
        raise UsageError(f"'{place}' is a collection in Milvus, which compacts itself")
    folder = _folder_of_segments(place, "compact")
    with segments.changing(folder) as before:
        assert before is not None, "it has a manifest"
        after = segments.compact(folder, before, progress=progress)
    return CompactedGallery(
        gallery=folder,
        rows=after.rows,
        segments=len(before.segments),
        deleted=sum(segment.rows - segment.left for segment in before.segments),
    )


def _folder_of_segments(place: Path, verb: str) -> Path:
    """`place`, or an error that says what it is instead."""
    if place.suffix == ".npy" and not is_folder(place):
        raise UsageError(
            f"'{place}' is a gallery of one file, which is written once: there is nothing to "
            f"{verb}; add images to a folder instead (`airnet embed IMAGES -o people/ --append`), "
            "or embed again what is to stay"
        )
    segments.read_manifest(place)
    return place


def _delete_from_folder(
    folder: Path, images: Sequence[Path], conditions: Sequence[Condition]
) -> GalleryRows:
    with segments.changing(folder) as manifest:
        assert manifest is not None, "it has a manifest"
        columns = segments.read_columns(folder, manifest)
        if conditions:
            gone = allowed_rows(columns, conditions)
        else:
            keys = set(segments.image_keys(relative_to_folder(images, folder)))
            there = segments.image_keys(columns["path"])
            gone = np.fromiter((key in keys for key in there), np.bool_, len(there))
            if not gone.any():
                raise DataError(
                    f"'{folder}' has no row of these images ('{images[0]}'); its table names "
                    + (f"'{there[0]}' and others, as seen from the folder" if there else "none")
                )
        left = segments.delete_rows(folder, manifest, gone)
    return GalleryRows(
        gallery=folder,
        where=tuple(str(condition) for condition in conditions),
        rows=left.rows,
        chosen=int(gone.sum()),
    )
