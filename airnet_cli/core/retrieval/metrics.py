"""How good a ranking is: mAP, its trapezoid form, mINP and CMC, under the field's protocol.

`evaluate_retrieval` is the whole of it. Scores need the ranks of the right answers only, so nothing
is sorted: ranks are found by counting. Protocol choices (junk, same camera, ties, queries without a
right answer) are stated there.

Letters: Q queries, G gallery rows, D embedding size, K gallery rows kept (not junk), n right
answers of a query.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.data.records import JUNK
from airnet_cli.core.files import write_rows, write_text
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.product import (
    Integers,
    Metric,
    checked_squared_lengths,
    nearness_blocks,
)
from airnet_cli.core.retrieval.protocol import (
    LabelledFeatures,
    Labels,
    RightAnswers,
    check_features,
    right_answers,
)
from airnet_cli.core.retrieval.rerank import Reranking, k_reciprocal_blocks

Scores = npt.NDArray[np.float64]
Nearness = npt.NDArray[np.floating[Any]]

CMC_RANKS = (1, 5, 10, 20)
"""The ranks at which papers report CMC."""

CURVE_RANKS = 50
"""The recorded CMC curve goes from rank 1 to this one."""

PER_QUERY_COLUMNS = (
    "path",
    "person_id",
    "camera_id",
    "AP",
    "AP_trapezoid",
    "INP",
    "first_match_rank",
    "num_matches",
    "match_ranks",
)
"""Of the table of single queries (docs/formats.md)."""


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
    cmc: Scores
    """(K,) the share of queries with a right answer among the first 1, 2, ... K; see `cmc_at`."""
    queries_total: int
    queries_counted: int
    queries_not_counted: QueriesNotCounted
    average_precisions: Scores
    """(Q,) for each query; NaN where it does not count."""
    average_precisions_trapezoid: Scores
    """(Q,) for each query; NaN where it does not count."""
    inverse_negative_penalties: Scores
    """(Q,) n / (rank of the last right answer) for each query; NaN where it does not count."""
    first_match_ranks: Scores
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

    def to_dict(self) -> dict[str, Any]:
        """The means, in the JSON shape (docs/formats.md)."""
        return {
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            "cmc": {str(rank): self.cmc_at(rank) for rank in CMC_RANKS},
            "cmc_curve": [self.cmc_at(rank) for rank in range(1, CURVE_RANKS + 1)],
            "queries": {
                "total": self.queries_total,
                "counted": self.queries_counted,
                "not_counted": asdict(self.queries_not_counted),
            },
        }


def evaluate_retrieval(
    query: LabelledFeatures,
    gallery: LabelledFeatures,
    *,
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
        query: Q images, neither junk nor distractors; compared in float32.
        gallery: G images.
        metric: the distance.
        camera_filter: whether images by the query's own camera are ignored; off only for data of
            one camera.
        reranking: rank by k-reciprocal neighbours, with these parameters; cosine only.
        progress: told after each block of queries.
        query_block: queries per matrix product; None picks as many as about 100 MB hold. For
            speed and memory only; re-ranking has blocks of its own.

    Raises:
        EvaluationError: the sizes do not fit, a set is empty, a query is junk or a distractor, or
            no query has a right answer; the message says why.
        DataError: embeddings are not finite, or zero under cosine.
    """
    if reranking is not None and metric != "cosine":
        raise ValueError(f"re-ranking is defined here for cosine, got {metric}")
    check_features(query, gallery)
    kept = np.flatnonzero(gallery.labels.person_ids != JUNK)
    answers = right_answers(query.labels, gallery.labels, camera_filter=camera_filter)
    counted = np.flatnonzero([len(each.matches) for each in answers])
    rows = np.arange(len(query.labels))
    checked_squared_lengths(query.embeddings, rows, metric=metric, name="query")

    blocks: Iterator[tuple[int, Nearness]]
    if reranking is None:
        rows = counted
        progress("ranking", 0, len(rows), "queries")
        blocks = nearness_blocks(
            query.embeddings,
            gallery.embeddings,
            query_rows=rows,
            gallery_rows=kept,
            metric=metric,
            query_block=query_block,
        )
    else:
        distances = k_reciprocal_blocks(
            queries=query.embeddings.astype(np.float32, copy=False),
            gallery=gallery.embeddings,
            gallery_rows=kept,
            reranking=reranking,
            progress=progress,
        )
        blocks = ((first, np.negative(block, out=block)) for first, block in distances)
    found: list[Integers] = [np.empty(0, np.int64)] * len(query.labels)
    for first, block in blocks:
        for number, nearness in zip(rows[first:].tolist(), block, strict=False):
            if len(answers[number].matches):
                nearness[answers[number].ignored] = -np.inf
                found[number] = match_ranks(nearness, answers[number].matches)
        if reranking is None:  # which tells its own progress
            progress("ranking", first + len(block), len(rows), "queries")
    return _scores(found, answers, num_kept=len(kept))


def _scores(
    match_ranks: list[Integers], answers: list[RightAnswers], *, num_kept: int
) -> RetrievalScores:
    """The scores that follow from the ranks of each query's right answers among K rows."""
    per_query = np.full((4, len(match_ranks)), np.nan)
    for query, ranks in enumerate(match_ranks):
        if len(ranks):
            per_query[:, query] = (
                average_precision(ranks),
                average_precision_trapezoid(ranks),
                len(ranks) / ranks[-1],
                ranks[0],
            )
    num_matches = np.array([len(each.matches) for each in answers], np.int64)
    num_ignored = np.array([len(each.ignored) for each in answers], np.int64)
    is_counted = num_matches > 0
    precisions, trapezoids, penalties, first_ranks = per_query
    hits = np.bincount(first_ranks[is_counted].astype(np.int64) - 1, minlength=num_kept)
    return RetrievalScores(
        mAP=float(precisions[is_counted].mean()),
        mAP_trapezoid=float(trapezoids[is_counted].mean()),
        mINP=float(penalties[is_counted].mean()),
        cmc=hits.cumsum() / is_counted.sum(),
        queries_total=len(answers),
        queries_counted=int(is_counted.sum()),
        queries_not_counted=QueriesNotCounted(
            no_gallery_image=int((~is_counted & (num_ignored == 0)).sum()),
            same_camera_only=int((~is_counted & (num_ignored > 0)).sum()),
        ),
        average_precisions=precisions,
        average_precisions_trapezoid=trapezoids,
        inverse_negative_penalties=penalties,
        first_match_ranks=first_ranks,
        num_matches=num_matches,
        match_ranks=tuple(match_ranks),
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
    ahead = [
        np.count_nonzero(nearness[:match] >= threshold)
        + np.count_nonzero(nearness[match + 1 :] > threshold)
        for match, threshold in zip(matches, thresholds, strict=True)
    ]
    return np.sort(np.array(ahead, dtype=np.int64)) + 1


def write_per_query(path: Path, *, scores: RetrievalScores, queries: Labels) -> None:
    """Write a CSV table to `path`, replacing it: what each of Q queries found, in their order.

    Cells are empty where the path is not known or the query does not count. `match_ranks` has the
    ranks of all right answers, ascending, with spaces between them.

    Raises:
        OutputError: it can't be written.
    """
    rows: list[tuple[object, ...]] = [PER_QUERY_COLUMNS]
    for query, ranks in enumerate(scores.match_ranks):
        measured: tuple[object, ...] = ("", "", "", "")
        if len(ranks):
            measured = (
                float(scores.average_precisions[query]),
                float(scores.average_precisions_trapezoid[query]),
                float(scores.inverse_negative_penalties[query]),
                ranks[0],
            )
        image = "" if queries.paths is None else queries.paths[query]
        labels = (queries.person_ids[query], queries.camera_ids[query])
        rows.append((image, *labels, *measured, len(ranks), " ".join(map(str, ranks.tolist()))))
    text = io.StringIO(newline="")
    write_rows(text, rows)
    write_text(path, text.getvalue())
