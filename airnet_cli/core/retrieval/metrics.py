"""How good a ranking is: mAP, its trapezoid form, mINP and CMC, under the field's protocol.

`evaluate_retrieval` is the whole of it. Scores need the ranks of the right answers only, so nothing
is sorted: ranks are found by counting. Protocol choices (junk, same camera, ties, queries without a
right answer) are stated there.

Letters: Q queries, G gallery rows, D embedding size, K gallery rows kept (not junk), n right
answers of a query.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from airnet_cli.core.data.records import DISTRACTOR, JUNK
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.distance import Metric, nearness_blocks, squared_lengths
from airnet_cli.core.retrieval.rerank import Reranking, k_reciprocal_blocks
from airnet_cli.errors import EvaluationError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Nearness = npt.NDArray[np.floating[Any]]

CMC_RANKS = (1, 5, 10, 20)
"""The ranks at which papers report CMC."""

SORTED_PER_MATCH = 300
"""Values that are sorted in the time of one pass for a right answer (measured: 1,000 to 80,000)."""


@dataclass(frozen=True, slots=True)
class QueriesNotCounted:
    """How many queries have no right answer to find, and why."""

    no_gallery_image: int
    """The gallery has no image of the query's identity at all."""
    same_camera_only: int
    """The gallery has some, but all were taken by the query's own camera and are ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalScores:
    """The scores of one ranking: fractions from 0 to 1, means over the queries that count."""

    mAP: float
    """Mean of `average_precision`: the field's usual number, and the paper's."""
    mAP_trapezoid: float
    """Mean of `average_precision_trapezoid`: the rule of the data sets' official MATLAB code."""
    mINP: float
    """Mean of n / (rank of the last right answer), after Ye et al. 2021."""
    cmc: Floats
    """(K,) the share of queries with a right answer among the first 1, 2, ... K; see `cmc_at`."""
    queries_total: int
    queries_counted: int
    queries_not_counted: QueriesNotCounted
    average_precisions: Floats
    """(Q,) for each query; NaN where it does not count."""
    average_precisions_trapezoid: Floats
    """(Q,) for each query; NaN where it does not count."""
    inverse_negative_penalties: Floats
    """(Q,) n / (rank of the last right answer) for each query; NaN where it does not count."""
    first_match_ranks: Floats
    """(Q,) rank of each query's first right answer, from 1; NaN where it does not count."""
    num_matches: Integers
    """(Q,) n for each query; 0 where it does not count."""
    match_ranks: tuple[Integers, ...]
    """For each query the ranks (n,) of its right answers, from 1 and ascending."""

    def cmc_at(self, rank: int) -> float:
        """Return CMC at `rank` (from 1); beyond the rows kept it stays at its last value."""
        if rank < 1:
            raise ValueError(f"ranks start at 1, got {rank}")
        return float(self.cmc[min(rank, len(self.cmc)) - 1])


def evaluate_retrieval(
    *,
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_person_ids: Integers,
    query_camera_ids: Integers,
    gallery_person_ids: Integers,
    gallery_camera_ids: Integers,
    metric: Metric,
    camera_filter: bool = True,
    reranking: Reranking | None = None,
    progress: Progress = silent,
    query_block: int | None = None,
) -> RetrievalScores:
    """Rank the gallery for each query and score the rankings.

    The protocol (method: "Evaluation"): junk (id -1) is not in the gallery; gallery images of the
    query's identity taken by the query's camera are ignored; distractors (id 0) are wrong answers;
    among equal distances the lower gallery row comes first; queries without a right answer do not
    count.

    Ranks by counting: a right answer's rank is one more than the number of rows ahead of it. Ahead
    are the earlier rows that are at least as near and the later rows that are nearer, which is the
    tie rule without a sort. Ignored rows are first put infinitely far away. So one matrix product
    per block of queries and a pass over a query's row for each of its few right answers give exact
    ranks, and everything else follows from them in float64.

    With `reranking` the gallery without junk is re-ranked first, among all queries (those that do
    not count, too); the same protocol then holds for the new distances.

    Args:
        query_embeddings: (Q, D), floats; compared in float32.
        gallery_embeddings: (G, D), floats, on the same device; may be memory-mapped.
        query_person_ids: (Q,) whom each query shows; neither junk nor distractor.
        query_camera_ids: (Q,) which camera took it.
        gallery_person_ids: (G,) whom each gallery image shows.
        gallery_camera_ids: (G,) which camera took it.
        metric: The distance.
        camera_filter: Whether images by the query's own camera are ignored; off only for data of
            one camera.
        reranking: Rank by k-reciprocal neighbours, with these parameters; cosine only.
        progress: Told after each block of queries.
        query_block: Queries per matrix product; None picks as many as about 100 MB hold. For
            speed and memory only; re-ranking has blocks of its own.

    Raises:
        EvaluationError: The sizes do not fit, a set is empty, a query is junk or a distractor,
            embeddings are not finite (or zero under cosine), or no query has a right answer; the
            message says why.
    """
    if query_block is not None and query_block < 1:
        raise ValueError(f"query_block is at least 1, got {query_block}")
    if reranking is not None and metric != "cosine":
        raise ValueError(f"re-ranking is defined here for cosine, got {metric}")
    _check_sizes("query", query_embeddings, query_person_ids, query_camera_ids)
    _check_sizes("gallery", gallery_embeddings, gallery_person_ids, gallery_camera_ids)
    _check_pair(query_embeddings, gallery_embeddings, query_person_ids)

    kept = np.flatnonzero(gallery_person_ids != JUNK)
    if len(kept) == 0:
        raise EvaluationError(
            f"all {len(gallery_person_ids)} gallery images are junk (person id {JUNK}), "
            "so there is nothing to rank; give the people in the gallery their own ids"
        )
    num_queries = len(query_person_ids)
    check_right_answers(
        query_person_ids=query_person_ids,
        query_camera_ids=query_camera_ids,
        gallery_person_ids=gallery_person_ids[kept],
        gallery_camera_ids=gallery_camera_ids[kept],
        camera_filter=camera_filter,
    )
    answers = _answers(
        query_person_ids,
        query_camera_ids,
        gallery_person_ids[kept],
        gallery_camera_ids[kept],
        camera_filter,
    )
    sizes = [(len(matches), len(ignored)) for matches, ignored in answers]
    num_matches, num_ignored = np.array(sizes, dtype=np.int64).T
    counted = np.flatnonzero(num_matches)
    squared_lengths(query_embeddings, rows=np.arange(num_queries), metric=metric, name="query")

    per_query = np.full((4, num_queries), np.nan)
    found: list[Integers] = [np.empty(0, np.int64)] * num_queries
    if reranking is None:
        rows = _nearness_rows(
            query_embeddings, gallery_embeddings, counted, kept, metric, query_block, progress
        )
    else:
        rows = _reranked_rows(query_embeddings, gallery_embeddings, kept, reranking, progress)
    for query, nearness in rows:
        matches, ignored = answers[query]
        if not len(matches):
            continue
        nearness[ignored] = -np.inf
        ranks = match_ranks(nearness, matches)
        found[query] = ranks
        per_query[:, query] = (
            average_precision(ranks),
            average_precision_trapezoid(ranks),
            len(ranks) / ranks[-1],
            ranks[0],
        )

    precisions, trapezoids, penalties, first_ranks = per_query
    hits = np.bincount(first_ranks[counted].astype(np.int64) - 1, minlength=len(kept))
    return RetrievalScores(
        mAP=float(precisions[counted].mean()),
        mAP_trapezoid=float(trapezoids[counted].mean()),
        mINP=float(penalties[counted].mean()),
        cmc=hits.cumsum() / len(counted),
        queries_total=num_queries,
        queries_counted=len(counted),
        queries_not_counted=QueriesNotCounted(
            no_gallery_image=int(((num_matches == 0) & (num_ignored == 0)).sum()),
            same_camera_only=int(((num_matches == 0) & (num_ignored > 0)).sum()),
        ),
        average_precisions=precisions,
        average_precisions_trapezoid=trapezoids,
        inverse_negative_penalties=penalties,
        first_match_ranks=first_ranks,
        num_matches=num_matches,
        match_ranks=tuple(found),
    )


def _nearness_rows(
    queries: Tensor,
    gallery: Tensor,
    counted: Integers,
    kept: Integers,
    metric: Metric,
    query_block: int | None,
    progress: Progress,
) -> Iterator[tuple[int, Nearness]]:
    """Yield each query that counts, and how near each kept gallery row (K,) is to it."""
    progress("ranking", 0, len(counted), "queries")
    for first, block in nearness_blocks(
        query_embeddings=queries,
        gallery_embeddings=gallery,
        query_rows=counted,
        gallery_rows=kept,
        metric=metric,
        query_block=query_block,
    ):
        yield from zip(counted[first:].tolist(), block.cpu().numpy(), strict=False)
        progress("ranking", first + len(block), len(counted), "queries")


def _reranked_rows(
    queries: Tensor, gallery: Tensor, kept: Integers, reranking: Reranking, progress: Progress
) -> Iterator[tuple[int, Nearness]]:
    """Yield each query, and how near each kept gallery row (K,) is to it after re-ranking."""
    blocks = k_reciprocal_blocks(
        queries=queries.detach().float().cpu().numpy(),
        gallery=gallery.detach().cpu().numpy(),
        gallery_rows=kept,
        reranking=reranking,
        progress=progress,
    )
    for first, distances in blocks:
        np.negative(distances, out=distances)
        yield from enumerate(distances, start=first)


def check_right_answers(
    *,
    query_person_ids: Integers,
    query_camera_ids: Integers,
    gallery_person_ids: Integers,
    gallery_camera_ids: Integers,
    camera_filter: bool,
) -> None:
    """Raise if no query has a right answer; known from the ids, before anything is embedded.

    Args:
        query_person_ids: (Q,) whom each query shows.
        query_camera_ids: (Q,) which camera took it.
        gallery_person_ids: (K,) whom each gallery image shows, junk left out.
        gallery_camera_ids: (K,) which camera took it.
        camera_filter: Whether images by the query's own camera are ignored.

    Raises:
        EvaluationError: None has; the message says how many ids are shared, how many of those one
            camera alone has seen, and what to do.
    """
    cameras: defaultdict[int, set[int]] = defaultdict(set)
    for person, camera in zip(
        gallery_person_ids.tolist(), gallery_camera_ids.tolist(), strict=True
    ):
        cameras[person].add(camera)
    for person, camera in zip(query_person_ids.tolist(), query_camera_ids.tolist(), strict=True):
        if cameras.get(person, set()) - ({camera} if camera_filter else set()):
            return
    raise EvaluationError(
        _why_none_counts(query_person_ids, query_camera_ids, gallery_person_ids, gallery_camera_ids)
    )


def average_precision(ranks: Integers) -> float:
    """Return the mean over the right answers of (right answers ranked no lower) / (its rank).

    Relevance 1,1,0,1,0,0,1, then 0,0,1:

    >>> round(average_precision(np.array([1, 2, 4, 7])), 3)
    0.83
    >>> round(average_precision(np.array([3])), 3)
    0.333

    Args:
        ranks: (n,) ranks of the right answers, from 1, ascending, at least one.
    """
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / len(ranks))


def average_precision_trapezoid(ranks: Integers) -> float:
    """Return the mean over the right answers of (precision before it + precision at it) / 2.

    The rule of the official Market-1501 code (`compute_AP.m`); before the first rank the precision
    is 1. It lies a little under `average_precision`. Relevance 1,1,0,1,0,0,1, then 0,0,1:

    >>> round(average_precision_trapezoid(np.array([1, 2, 4, 7])), 3)
    0.811
    >>> round(average_precision_trapezoid(np.array([3])), 3)
    0.167

    Args:
        ranks: (n,) ranks of the right answers, from 1, ascending, at least one.
    """
    place = np.arange(1, len(ranks) + 1)
    # Only the first rank can be 1; of a later first one the precision before it is 0.
    before = float(ranks[0] == 1) + (place[:-1] / (ranks[1:] - 1)).sum()
    return float((before + (place / ranks).sum()) / (2 * len(ranks)))


def match_ranks(nearness: Nearness, matches: Integers) -> Integers:
    """Return the ranks, from 1 and ascending, that `matches` have among all of `nearness`.

    >>> match_ranks(np.array([0.5, 0.9, 0.5, 0.1], dtype=np.float32), np.array([2]))
    array([3])

    Args:
        nearness: (K,) of one query, larger is nearer; of equal values the first is ranked first.
        matches: (n,) indices of the right answers in it, at least one.
    """
    thresholds = nearness[matches]
    (rows,) = (nearness >= thresholds.min()).nonzero()
    if 2 * len(rows) < len(nearness):  # the rest can't change a rank
        nearness, matches = nearness[rows], rows.searchsorted(matches)
    if len(nearness) > SORTED_PER_MATCH * len(matches):
        ahead = [
            np.count_nonzero(nearness[:match] >= threshold)
            + np.count_nonzero(nearness[match + 1 :] > threshold)
            for match, threshold in zip(matches, thresholds, strict=True)
        ]
        return np.sort(np.array(ahead, dtype=np.int64)) + 1
    values = np.sort(nearness)
    upper = values.searchsorted(thresholds, side="right")
    ahead_of = len(values) - upper
    for tied in np.flatnonzero(upper - values.searchsorted(thresholds, side="left") > 1):
        ahead_of[tied] += np.count_nonzero(nearness[: matches[tied]] == thresholds[tied])
    return np.sort(ahead_of) + 1


def _answers(
    query_person_ids: Integers,
    query_camera_ids: Integers,
    gallery_person_ids: Integers,
    gallery_camera_ids: Integers,
    camera_filter: bool,
) -> list[tuple[Integers, Integers]]:
    """Return for each query the right answers, and the rows ignored for its camera; ascending."""
    by_person = np.argsort(gallery_person_ids, kind="stable")
    person_ids, camera_ids = gallery_person_ids[by_person], gallery_camera_ids[by_person]
    begin = person_ids.searchsorted(query_person_ids, side="left").tolist()
    end = person_ids.searchsorted(query_person_ids, side="right").tolist()
    answers = []
    for first, last, camera_id in zip(begin, end, query_camera_ids, strict=True):
        rows = by_person[first:last]
        is_ignored = (camera_ids[first:last] == camera_id) & camera_filter
        answers.append((rows[~is_ignored], rows[is_ignored]))
    return answers


def _check_sizes(name: str, embeddings: Tensor, person_ids: Integers, camera_ids: Integers) -> None:
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise EvaluationError(
            f"{name} embeddings have the shape {tuple(embeddings.shape)}; "
            "they are a matrix with at least one row per image and one column"
        )
    if not len(embeddings) == len(person_ids) == len(camera_ids):
        raise EvaluationError(
            f"{name}: {len(embeddings)} embeddings, {len(person_ids)} person ids and "
            f"{len(camera_ids)} camera ids; there must be one of each per image"
        )


def _check_pair(query: Tensor, gallery: Tensor, query_person_ids: Integers) -> None:
    if query.shape[1] != gallery.shape[1]:
        raise EvaluationError(
            f"query embeddings have {query.shape[1]} columns and gallery embeddings "
            f"{gallery.shape[1]}; compute both with the same model"
        )
    for row in np.flatnonzero(np.isin(query_person_ids, (JUNK, DISTRACTOR)))[:1]:
        raise EvaluationError(
            f"query row {row} has the person id {query_person_ids[row]}, which marks junk ({JUNK}) "
            f"or distractors ({DISTRACTOR}) of the gallery; number people from 1, in both sets, or "
            "leave that query out"
        )


def _why_none_counts(
    query_person_ids: Integers,
    query_camera_ids: Integers,
    gallery_person_ids: Integers,
    gallery_camera_ids: Integers,
) -> str:
    query_people, gallery_people = set(query_person_ids.tolist()), set(gallery_person_ids.tolist())
    cameras: dict[int, set[int]] = {person: set() for person in query_people & gallery_people}
    for people, seen_by in (
        (query_person_ids, query_camera_ids),
        (gallery_person_ids, gallery_camera_ids),
    ):
        for person, camera in zip(people.tolist(), seen_by.tolist(), strict=True):
            if person in cameras:
                cameras[person].add(camera)
    one_camera = sum(len(seen) == 1 for seen in cameras.values())
    all_cameras = {*query_camera_ids.tolist(), *gallery_camera_ids.tolist()}
    if not cameras:
        advice = (
            f"queries show {_some(query_people)}, the gallery "
            f"{_some(gallery_people - {DISTRACTOR}) or 'distractors only'}: give one person the "
            "same number in both sets, and put other images of the queried people into the gallery"
        )
    elif len(all_cameras) == 1:
        advice = (
            f"all images are by camera {all_cameras.pop()}, and images by the query's own camera "
            "are ignored: evaluate with --no-camera-filter (a training run: "
            "--set evaluation.camera_filter=false)"
        )
    else:
        advice = (
            "images by the query's own camera are ignored: check the camera ids, add images of "
            "the same people by other cameras, or evaluate with --no-camera-filter (a training "
            "run: --set evaluation.camera_filter=false)"
        )
    return (
        f"no query has a right answer: of {len(query_people)} query and {len(gallery_people)} "
        f"gallery person ids, {len(cameras)} are shared, {one_camera} of them seen by one camera "
        f"only; {advice}"
    )


def _some(person_ids: set[int]) -> str:
    """Name a few of some ids."""
    return ", ".join(map(str, sorted(person_ids)[:5])) + (", ..." if len(person_ids) > 5 else "")
