"""Ranked lists of labeled queries: what a network finds by the whole embedding and by each head.

The gallery is that of a data set, which is embedded, or one that `airnet embed` wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.data.manifest import Manifest
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.gallery import Gallery, open_gallery
from airnet_cli.core.gallery.rows import JoinedRows
from airnet_cli.core.progress import Progress
from airnet_cli.core.ranked import NOT_RANKED, RankedList, RankedMatch, describe, judge
from airnet_cli.core.retrieval.search import search
from airnet_cli.errors import CheckpointError, DataError
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.runs import Model

JSON_FORMAT = "airnet-ranking"
JSON_VERSION = 1

WHOLE = "whole"
"""The name in JSON of the ranking by the whole embedding; the others are named by their heads."""


@dataclass(frozen=True)
class Rankings:
    """The ranked lists of some queries."""

    gallery: str
    """What was ranked, in words."""
    lists: tuple[RankedList, ...]
    """For each query, by the whole embedding and by each head."""
    data: dict[str, Any]
    """The same as JSON."""


def rank(
    embedder: Embedder,
    images: Sequence[Path],
    *,
    manifest: Manifest | None,
    gallery: Path | None,
    allow_partial: bool,
    model: Model,
    top: int,
    progress: Progress,
) -> Rankings:
    """Rank a gallery for each image.

    Args:
        embedder: embeds the images, and the data set's gallery.
        images: the queries.
        manifest: a data set that labels the images; its gallery is ranked if `gallery` is None.
        gallery: a gallery file or folder of this very model.
        allow_partial: rank a folder although parts of its job are missing.
        model: for the record.
        top: length of the lists, including images that are ignored or junk.
        progress: told about embedding the gallery.

    Raises:
        CheckpointError: the gallery was embedded by another model.
        DataError: the gallery is empty or broken.
    """
    if gallery is None:
        assert manifest is not None, "loaded by the caller, or an error"
        ranked = _gallery_of_data(embedder, manifest, progress)
    else:
        ranked = _gallery_of_file(embedder, open_gallery(gallery, allow_partial=allow_partial))
    parts = {WHOLE: slice(None)}
    if len(embedder.heads) > 1:  # a single head is the whole embedding
        parts |= embedder.heads
    queries = embedder(list(images))
    known = {} if manifest is None else _labels_by_path(manifest)
    labels = [known.get(path.resolve(), {}) for path in images]
    lists: dict[str, list[RankedList]] = {}
    for name, part in parts.items():
        found = search(
            queries=queries,
            gallery_embeddings=ranked.embeddings,
            k=top,
            parts=(part,),
        )
        by = "whole embedding" if name == WHOLE else f"head {name}"
        lists[name] = [
            RankedList(str(path), path, f"{_query_words(path, label)}  ·  {by}", matches)
            for path, label, matches in zip(
                images,
                labels,
                [
                    _matches(label, ranked, rows, scores)
                    for label, rows, scores in zip(labels, found.rows, found.scores, strict=True)
                ],
                strict=True,
            )
        ]
    data = {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "model": {
            "checkpoint": str(model.checkpoint),
            "fingerprint": embedder.fingerprint,
            "variant": embedder.network.variant,
            "backbone": embedder.preset.model.backbone,
        },
        "gallery": {"name": ranked.name, "rows": len(ranked.paths)},
        "queries": [
            {
                "query": str(path),
                **_ids(label),
                "rankings": {
                    name: [_match_dict(match) for match in of_part[index].matches]
                    for name, of_part in lists.items()
                },
            }
            for index, (path, label) in enumerate(zip(images, labels, strict=True))
        ],
    }
    in_order = [of_part[index] for index in range(len(images)) for of_part in lists.values()]
    return Rankings(ranked.name, tuple(in_order), data)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The images that are ranked."""

    name: str
    paths: Sequence[str]
    """N, as seen from the current folder."""
    labels: Sequence[Mapping[str, str]]
    """N, with `person_id` and `camera_id` where they are known."""
    embeddings: npt.NDArray[np.floating[Any]] | JoinedRows
    """(N, D)."""


def _gallery_of_data(embedder: Embedder, manifest: Manifest, progress: Progress) -> _Ranked:
    """The data set's gallery, junk included, embedded now."""
    records = manifest.split("gallery")
    if not records:
        raise DataError(
            f"data set '{manifest.name}' has no gallery images to rank; give --gallery GALLERY.npy"
        )
    paths = [manifest.root / record.path for record in records]
    embeddings = np.empty((len(paths), embedder.dimensions), np.float32)
    for rows, values in embedder.embed_paths(paths, progress=progress):
        embeddings[rows] = values
    labels = [_labels(record) for record in records]
    return _Ranked(f"data set {manifest.name}", [str(path) for path in paths], labels, embeddings)


def _gallery_of_file(embedder: Embedder, gallery: Gallery) -> _Ranked:
    """A gallery that `airnet embed` wrote with this very model."""
    if gallery.fingerprint != embedder.fingerprint:
        raise CheckpointError(
            f"gallery '{gallery.path}' was embedded by another model "
            f"({gallery.record.get('checkpoint')}, {gallery.fingerprint[:12]}) than "
            f"'{embedder.checkpoint.path}' ({embedder.fingerprint[:12]}); give that one as "
            "--checkpoint, or embed the images again"
        )
    settings = (gallery.heads, gallery.flip, gallery.normalize_heads)
    if settings != (embedder.heads, False, embedder.normalize_heads):
        raise CheckpointError(
            f"gallery '{gallery.path}' was embedded with --heads or --flip; ranked lists need all "
            "heads and no flip: embed the images again without these"
        )
    columns = {name: gallery.columns.get(name) for name in ("person_id", "camera_id")}
    rows = range(len(gallery.embeddings))
    labels = [
        {name: _plain_id(cells[row]) for name, cells in columns.items() if cells is not None}
        for row in rows
    ]
    paths = [gallery.image_name(row) for row in rows]
    return _Ranked(f"gallery {gallery.path.name}", paths, labels, gallery.embeddings)


def _matches(
    query: Mapping[str, str],
    ranked: _Ranked,
    rows: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
) -> tuple[RankedMatch, ...]:
    matches: list[RankedMatch] = []
    rank = 0
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        state = judge(query, ranked.labels[row])
        rank += state not in NOT_RANKED
        matches.append(
            RankedMatch(
                rank=None if state in NOT_RANKED else rank,
                row=row,
                name=ranked.paths[row],
                score=score,
                state=state,
                columns=ranked.labels[row],
            )
        )
    return tuple(matches)


def _match_dict(match: RankedMatch) -> dict[str, Any]:
    return {
        "rank": match.rank,
        "row": match.row,
        "path": match.name,
        "score": match.score,
        "state": match.state,
        **_ids(match.columns),
    }


def _ids(labels: Mapping[str, str]) -> dict[str, int | str | None]:
    """Person and camera for JSON: numbers where they are numbers, null where they are unknown."""

    def value(text: str | None) -> int | str | None:
        return int(text) if text and text.lstrip("-").isdecimal() else text or None

    return {name: value(labels.get(name)) for name in ("person_id", "camera_id")}


def _labels(record: ImageRecord) -> dict[str, str]:
    return {"person_id": str(record.person_id), "camera_id": str(record.camera_id)}


def _labels_by_path(manifest: Manifest) -> dict[Path, dict[str, str]]:
    root = manifest.root.resolve()
    return {root / record.path: _labels(record) for record in manifest.records}


def _plain_id(text: str) -> str:
    """The text of a number as a manifest has it: 0007 is 7."""
    return str(int(text)) if text.lstrip("-").isdecimal() else text


def _query_words(path: Path, labels: Mapping[str, str]) -> str:
    known = describe(labels)
    return f"{path.name} ({known})" if known else path.name
