"""Which images count: the field's protocol for queries and gallery (method: "Evaluation").

Scores, calibration and training all ask here what a query's right answers are.

Letters: Q queries, G gallery rows, N images of either, D embedding size, n right answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.data.manifest import Manifest
from airnet_cli.core.data.records import DISTRACTOR, JUNK, ImageRecord
from airnet_cli.core.retrieval.product import Integers
from airnet_cli.errors import DataError, EvaluationError


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What is known about N images."""

    person_ids: Integers
    """(N,) whom each image shows."""
    camera_ids: Integers
    """(N,) which camera took it."""
    paths: tuple[str, ...] | None = None
    """The N images, as a manifest or table names them; None where they are not known."""

    def __len__(self) -> int:
        return len(self.person_ids)


def labels_of(records: Sequence[ImageRecord]) -> Labels:
    """The labels of a data set's images."""
    return Labels(
        person_ids=np.array([record.person_id for record in records], np.int64),
        camera_ids=np.array([record.camera_id for record in records], np.int64),
        paths=tuple(record.path for record in records),
    )


def without_junk(manifest: Manifest) -> list[ImageRecord]:
    """The gallery images of a data set that are ranked."""
    return [record for record in manifest.split("gallery") if record.person_id != JUNK]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """N embeddings of N labelled images."""

    embeddings: npt.NDArray[np.floating[Any]]
    """(N, D) of any float type; may be memory-mapped."""
    labels: Labels

    def part(self, columns: slice) -> "LabelledFeatures":
        """The same images with some columns of their embeddings, such as those of one head."""
        return LabelledFeatures(self.embeddings[:, columns], self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class RightAnswers:
    """Where one query's identity is in the gallery without junk, as rows (ascending) of it."""

    matches: Integers
    """(n,) the right answers."""
    ignored: Integers
    """Those that are ignored, because the query's own camera took them."""


def right_answers(query: Labels, gallery: Labels, *, camera_filter: bool) -> list[RightAnswers]:
    """What each query has to find; known from the labels, before anything is embedded.

    Args:
        query: Q images.
        gallery: G images; rows are counted without the junk among them.
        camera_filter: whether images by the query's own camera are ignored.

    Raises:
        EvaluationError: no query has a right answer; the message says how many ids are shared, how
            many of those were seen by one camera only, and what to do.
    """
    is_kept = gallery.person_ids != JUNK
    if not is_kept.any():
        raise EvaluationError(
            f"all {len(gallery)} gallery images are junk (person id {JUNK}), so there is nothing "
            "to rank; give the people in the gallery their own ids"
        )
    gallery = Labels(gallery.person_ids[is_kept], gallery.camera_ids[is_kept])
    by_person = np.argsort(gallery.person_ids, kind="stable")
    person_ids, camera_ids = gallery.person_ids[by_person], gallery.camera_ids[by_person]
    begin = person_ids.searchsorted(query.person_ids, side="left").tolist()
    end = person_ids.searchsorted(query.person_ids, side="right").tolist()
    answers = []
    for first, last, camera_id in zip(begin, end, query.camera_ids, strict=True):
        rows = by_person[first:last]
        is_ignored = (camera_ids[first:last] == camera_id) & camera_filter
        answers.append(RightAnswers(rows[~is_ignored], rows[is_ignored]))
    if not any(len(each.matches) for each in answers):
        raise EvaluationError(_why_none_counts(query, gallery))
    return answers


def check_scorable(manifest: Manifest, *, camera_filter: bool = True) -> None:
    """Refuse a data set on which nothing can be scored, before anything is embedded or trained.

    Raises:
        DataError: it has no query or no gallery images.
        EvaluationError: no query has a right answer.
    """
    queries, gallery = manifest.split("query"), without_junk(manifest)
    if not queries or not gallery:
        raise DataError(
            f"data set '{manifest.name}' has {len(queries)} query and {len(gallery)} gallery "
            "images; an evaluation needs both"
        )
    try:
        right_answers(labels_of(queries), labels_of(gallery), camera_filter=camera_filter)
    except EvaluationError as error:
        raise EvaluationError(f"data set '{manifest.name}': {error}") from error


def check_features(query: LabelledFeatures, gallery: LabelledFeatures) -> None:
    """Refuse features that can't be compared.

    Raises:
        EvaluationError: the sizes do not fit, a set is empty, or a query is junk or a distractor.
    """
    for name, features in (("query", query), ("gallery", gallery)):
        embeddings, labels = features.embeddings, features.labels
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            raise EvaluationError(
                f"{name} embeddings have the shape {embeddings.shape}; "
                "they are a matrix with at least one row per image and one column"
            )
        if not len(embeddings) == len(labels.person_ids) == len(labels.camera_ids):
            raise EvaluationError(
                f"{name}: {len(embeddings)} embeddings, {len(labels.person_ids)} person ids and "
                f"{len(labels.camera_ids)} camera ids; there must be one of each per image"
            )
    widths = query.embeddings.shape[1], gallery.embeddings.shape[1]
    if widths[0] != widths[1]:
        raise EvaluationError(
            f"query embeddings have {widths[0]} columns and gallery embeddings {widths[1]}; "
            "compute both with the same model"
        )
    person_ids = query.labels.person_ids
    for row in np.flatnonzero(np.isin(person_ids, (JUNK, DISTRACTOR)))[:1]:
        raise EvaluationError(
            f"query row {row} has the person id {person_ids[row]}, which marks junk ({JUNK}) "
            f"or distractors ({DISTRACTOR}) of the gallery; number people from 1, in both sets, or "
            "leave that query out"
        )


def _why_none_counts(query: Labels, gallery: Labels) -> str:
    query_people, people = set(query.person_ids.tolist()), set(gallery.person_ids.tolist())
    person_ids = np.concatenate([query.person_ids, gallery.person_ids])
    camera_ids = np.concatenate([query.camera_ids, gallery.camera_ids])
    shared = query_people & people
    one_camera = sum(len(np.unique(camera_ids[person_ids == person])) == 1 for person in shared)
    if shared:
        advice = (
            "images by the query's own camera are ignored: check the camera ids, add images of "
            "the same people by other cameras, or evaluate with --no-camera-filter (a training "
            "run: --set evaluation.camera_filter=false)"
        )
    else:
        advice = (
            f"queries show {_some(query_people)}, the gallery "
            f"{_some(people - {DISTRACTOR}) or 'distractors only'}: give one person the same "
            "number in both sets, and add other images of the queried people to the gallery"
        )
    return (
        f"no query has a right answer: of {len(query_people)} query and {len(people)} gallery "
        f"person ids, {len(shared)} are shared, {one_camera} of them seen by one camera only; "
        f"{advice}"
    )


def _some(person_ids: set[int]) -> str:
    """Name a few of some ids."""
    return ", ".join(map(str, sorted(person_ids)[:5])) + (", ..." if len(person_ids) > 5 else "")
