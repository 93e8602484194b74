"""Count the rows of a gallery, delete some, and compact a folder: `airnet gallery`.

A gallery in one file is written once: its rows can only be counted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.data.sources import path_key, relative_to_folder
from airnet_cli.core.files import is_folder
from airnet_cli.core.gallery import folder as folders
from airnet_cli.core.gallery.files import Gallery
from airnet_cli.core.gallery.milvus import open_collection
from airnet_cli.core.gallery.place import MilvusPlace, gallery_place
from airnet_cli.core.retrieval.conditions import allowed_rows, parse_condition
from airnet_cli.errors import DataError, UsageError

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class GalleryRows:
    """How many rows a gallery has."""

    gallery: Path | MilvusPlace
    where: tuple[str, ...]
    rows: int
    """All rows; after a deletion, those that are left."""
    chosen: int
    """Rows that fulfil the conditions, or that were deleted."""

    def to_dict(self, chosen: str) -> dict[str, Any]:
        """The JSON shape of `gallery count` and `gallery delete` (docs/formats.md)."""
        return {
            "version": JSON_VERSION,
            "gallery": str(self.gallery),
            "where": list(self.where),
            "rows": self.rows,
            chosen: self.chosen,
        }


@dataclass(frozen=True, kw_only=True)
class CompactedGallery:
    """What compacting a folder did."""

    gallery: Path
    rows: int
    """Rows that are left, all in one part."""
    parts: int
    """Parts before."""
    deleted: int
    """Deleted and replaced rows that were removed from the disk."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `gallery compact` (docs/formats.md)."""
        return {
            "version": JSON_VERSION,
            "gallery": str(self.gallery),
            "rows": self.rows,
            "parts": self.parts,
            "deleted": self.deleted,
        }


def milvus_token() -> str:
    """USER:PASSWORD or an API key, from the environment: other users can read command lines."""
    return os.environ.get("AIRNET_MILVUS_TOKEN", "")


def count_rows(gallery: Path | str, *, where: Sequence[str]) -> GalleryRows:
    """Count the rows of a gallery, and those that fulfil conditions.

    Raises:
        UsageError: a condition that can't be read, or on a column that doesn't exist.
        DataError: the gallery doesn't exist or is damaged, or no row on disk fulfils the
            conditions.
    """
    conditions = [parse_condition(text) for text in where]
    place = gallery_place(gallery)
    if isinstance(place, MilvusPlace):
        collection = open_collection(place, token=milvus_token())
        rows = collection.count()
        chosen = collection.count(conditions) if conditions else rows
    else:
        opened = folders.open_gallery(place)
        rows = len(opened.embeddings)
        chosen = int(allowed_rows(opened.columns, conditions).sum()) if conditions else rows
    told = tuple(str(condition) for condition in conditions)
    return GalleryRows(gallery=place, where=told, rows=rows, chosen=chosen)


def delete_rows(
    gallery: Path | str, *, images: Sequence[Path], where: Sequence[str]
) -> GalleryRows:
    """Delete the rows of some images, or those that fulfil conditions.

    Args:
        gallery: a folder, or milvus://HOST:PORT/COLLECTION.
        images: paths of images, which may have been removed from the disk.
        where: conditions, all of which a row must fulfil. Give either images or conditions.

    Raises:
        UsageError: the gallery is a file; neither images nor conditions are given, or both.
        DataError: there is no such row, or no such gallery.
        OutputError: the folder can't be written.
    """
    if bool(images) == bool(where):
        raise UsageError("nothing to delete; give images, or conditions with --where")
    conditions = [parse_condition(text) for text in where]
    told = tuple(str(condition) for condition in conditions)
    place = gallery_place(gallery)
    if isinstance(place, MilvusPlace):
        collection = open_collection(place, token=milvus_token())
        keys = [path_key(image) for image in images]
        deleted = collection.delete_where(conditions) if conditions else collection.delete(keys)
        rows = collection.count()
        key = "its key is the image's absolute path"
    else:

        def choose(opened: Gallery) -> npt.NDArray[np.bool_]:
            if conditions:
                return allowed_rows(opened.columns, conditions)
            named = set(folders.image_keys(relative_to_folder(images, place)))
            paths = folders.image_keys(opened.columns["path"])
            return np.fromiter((path in named for path in paths), np.bool_, len(paths))

        deleted, rows = folders.delete(_folder(place, "delete"), choose)
        key = "its paths are relative to the folder"
    if not deleted:
        what = f"with {' and '.join(told)}" if told else f"of these images ('{images[0]}')"
        raise DataError(f"'{place}' has no row {what}; {key}")
    return GalleryRows(gallery=place, where=told, rows=rows, chosen=deleted)


def compact_gallery(gallery: Path | str) -> CompactedGallery:
    """Join the parts of a folder into one, without deleted rows.

    Raises:
        UsageError: the gallery is a file, or a collection.
        DataError: the folder doesn't exist or is damaged.
        OutputError: it can't be written.
    """
    place = gallery_place(gallery)
    if isinstance(place, MilvusPlace):
        raise UsageError(f"'{place}' is a collection in Milvus, which compacts itself")
    rows, parts, deleted = folders.compact(_folder(place, "compact"))
    return CompactedGallery(gallery=place, rows=rows, parts=parts, deleted=deleted)


def _folder(place: Path, verb: str) -> Path:
    """`place`, if it can be a folder."""
    if place.suffix == ".npy" and not is_folder(place):
        raise UsageError(
            f"'{place}' is a gallery in one file, which is written once: you can't {verb} it; add "
            "images to a folder instead (`airnet embed IMAGES -o people/ --append`), or embed "
            "again what is to stay"
        )
    return place
