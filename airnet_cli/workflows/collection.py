"""Count and delete rows of a gallery: `airnet gallery`. Collections in Milvus can lose rows; a
gallery on disk is written once, and its rows are counted alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airnet_cli.core.data.sources import path_key
from airnet_cli.core.gallery import read_gallery
from airnet_cli.core.milvus import MilvusPlace, gallery_place, open_collection
from airnet_cli.core.retrieval.conditions import allowed_rows, parse_condition
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
        opened = read_gallery(place)
        rows = len(opened.embeddings)
        chosen = int(allowed_rows(opened.columns, conditions).sum()) if conditions else rows
    told = tuple(str(condition) for condition in conditions)
    return GalleryRows(gallery=place, where=told, rows=rows, chosen=chosen)


def delete_rows(
    gallery: Path | str, *, images: Sequence[Path], where: Sequence[str]
) -> GalleryRows:
    """Delete the rows of some images, or those that fulfil conditions, from a collection.

    Args:
        gallery: milvus://HOST:PORT/COLLECTION.
        images: paths of images, which need not be there any more.
        where: conditions, all of which a row must fulfil. Either images or these are given.

    Raises:
        UsageError: the gallery is a file; neither images nor conditions are given, or both.
        DataError: there is no such row; the server or the collection is not there.
    """
    if bool(images) == bool(where):
        raise UsageError("what is to be deleted? give images, or conditions with --where")
    conditions = [parse_condition(text) for text in where]
    place = gallery_place(gallery)
    if not isinstance(place, MilvusPlace):
        raise UsageError(
            f"rows are deleted from collections in Milvus, and '{place}' is a file; embed again "
            "what is to stay"
        )
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
