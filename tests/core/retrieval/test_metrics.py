"""Scores of a ranking, judged by a slow reference, by public code and by hand-made cases."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from airnet_cli.core.data.records import DISTRACTOR, JUNK
from airnet_cli.core.retrieval import metrics
from airnet_cli.core.retrieval.metrics import (
    CMC_RANKS,
    QueriesNotCounted,
    average_precision,
    average_precision_trapezoid,
    evaluate_retrieval,
    match_ranks,
)
from airnet_cli.core.retrieval.rerank import Reranking
from airnet_cli.errors import EvaluationError

METRICS = ["cosine", "euclidean"]
CASES = ["p1_tiny", "p2_clean", "p3_junk", "p4_nomatch", "p5_ties", "p6_market"]


# The obvious implementation, which judges the fast one.


@dataclass
class Reference:
    mAP: float
    mAP_trapezoid: float
    mINP: float
    cmc: list[float]
    ranks: list[list[int]]


def reference(
    *,
    query_embeddings,
    gallery_embeddings,
    query_person_ids,
    query_camera_ids,
    gallery_person_ids,
    gallery_camera_ids,
    metric,
    camera_filter,
):
    """Sort the gallery for each query in float64, walk down the list, and write the ranks down."""
    kept = [row for row, person in enumerate(gallery_person_ids) if person != JUNK]
    ranks = []
    for query, person, camera in zip(
        query_embeddings.double().numpy(), query_person_ids, query_camera_ids, strict=True
    ):
        ranked = []
        for row in kept:
            gallery = gallery_embeddings[row].double().numpy()
            if metric == "cosine":
                cosine = query @ gallery / np.linalg.norm(query) / np.linalg.norm(gallery)
                distance = 1 - cosine
            else:
                distance = np.sum((query - gallery) ** 2)
            is_same_person = gallery_person_ids[row] == person
            if camera_filter and is_same_person and gallery_camera_ids[row] == camera:
                continue
            ranked.append((distance, row, is_same_person))
        ranked.sort()  # by distance, then by row
        ranks.append([rank for rank, (_, _, right) in enumerate(ranked, start=1) if right])
    counted = [found for found in ranks if found]
    precisions, trapezoids, penalties = [], [], []
    for found in counted:
        at = [place / rank for place, rank in enumerate(found, start=1)]
        before = [
            1.0 if rank == 1 else (place - 1) / (rank - 1)
            for place, rank in enumerate(found, start=1)
        ]
        precisions.append(np.mean(at))
        trapezoids.append(np.mean([(a + b) / 2 for a, b in zip(at, before, strict=True)]))
        penalties.append(len(found) / found[-1])
    return Reference(
        mAP=np.mean(precisions),
        mAP_trapezoid=np.mean(trapezoids),
        mINP=np.mean(penalties),
        cmc=[np.mean([found[0] <= k for found in counted]) for k in range(1, len(kept) + 1)],
        ranks=ranks,
    )


def problem(
    seed, *, queries=12, gallery=60, people=8, cameras=3, size=16, junk=0.1, distractors=0.2, tied
):
    """Return a random problem; `tied`: rows of +1 and -1, many at equal and exact distances."""
    random = np.random.default_rng(seed)
    gallery_person_ids = random.integers(1, people + 1, gallery)
    kinds = random.random(gallery)
    gallery_person_ids[kinds < junk + distractors] = DISTRACTOR
    gallery_person_ids[kinds < junk] = JUNK
    gallery_person_ids[:2] = 1  # two cameras: at least one right answer
    gallery_camera_ids = random.integers(0, cameras, gallery)
    gallery_camera_ids[:2] = 0, 1
    query_person_ids = random.integers(1, people + 1, queries)
    query_person_ids[0] = 1

    def features(rows):
        values = random.standard_normal((rows, size))
        return torch.from_numpy(np.where(values > 0, 1, -1) if tied else values).float()

    return {
        "query_embeddings": features(queries),
        "gallery_embeddings": features(gallery),
        "query_person_ids": query_person_ids,
        "query_camera_ids": random.integers(0, cameras, queries),
        "gallery_person_ids": gallery_person_ids,
        "gallery_camera_ids": gallery_camera_ids,
    }


def small(**changes):
    """Return a problem of two queries and three gallery rows, with `changes`."""
    return {
        "query_embeddings": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "gallery_embeddings": torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.7, 0.7]]),
        "query_person_ids": np.array([1, 2]),
        "query_camera_ids": np.array([1, 1]),
        "gallery_person_ids": np.array([1, 2, 1]),
        "gallery_camera_ids": np.array([2, 2, 2]),
        "metric": "cosine",
    } | changes


# Values


@pytest.mark.parametrize("camera_filter", [True, False], ids=["filter", "no filter"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"tied": False}, id="plain"),
        pytest.param({"tied": True}, id="ties"),
        pytest.param({"tied": True, "size": 4}, id="mostly ties"),
        pytest.param({"tied": False, "people": 60}, id="queries without a match"),
        pytest.param({"tied": False, "junk": 0.5, "distractors": 0.4}, id="hardly any people"),
        pytest.param({"tied": False, "junk": 0.0, "distractors": 0.0}, id="people only"),
        pytest.param({"tied": False, "queries": 1, "gallery": 2}, id="one query"),
        pytest.param({"tied": False, "people": 1, "gallery": 200}, id="many matches"),
        pytest.param({"tied": True, "people": 1, "gallery": 200}, id="many matches, ties"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_reference(seed, shape, metric, camera_filter):
    """Every score, the whole CMC curve and the first ranks are those of sorting in float64."""
    given = problem(seed, **shape) | {"metric": metric, "camera_filter": camera_filter}

    ours = evaluate_retrieval(**given, query_block=5)

    judge = reference(**given)
    assert ours.mAP == pytest.approx(judge.mAP, abs=1e-12)
    assert ours.mAP_trapezoid == pytest.approx(judge.mAP_trapezoid, abs=1e-12)
    assert ours.mINP == pytest.approx(judge.mINP, abs=1e-12)
    np.testing.assert_allclose(ours.cmc, judge.cmc, atol=1e-12)
    assert ours.num_matches.tolist() == [len(found) for found in judge.ranks]
    assert [ranks.tolist() for ranks in ours.match_ranks] == judge.ranks
    np.testing.assert_array_equal(
        ours.first_match_ranks, [found[0] if found else np.nan for found in judge.ranks]
    )
    assert ours.queries_total == len(judge.ranks)
    assert ours.queries_counted == sum(bool(found) for found in judge.ranks)


def golden_case(folder: Path):
    labels = np.load(folder / "labels.npz")
    given = {
        "query_embeddings": torch.from_numpy(np.load(folder / "query_features.npy")),
        "gallery_embeddings": torch.from_numpy(np.load(folder / "gallery_features.npy")),
        "query_person_ids": labels["query_ids"],
        "query_camera_ids": labels["query_cams"],
        "gallery_person_ids": labels["gallery_ids"],
        "gallery_camera_ids": labels["gallery_cams"],
    }
    return given, json.loads((folder / "expected.json").read_text())["expected"]


@pytest.mark.parametrize("query_block", [None, 7], ids=["one block", "blocks of 7"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES)
def test_equals_public_reference_code(golden_dir, case, metric, query_block):
    """On the golden cases every score and per-query value is that of the field's reference code."""
    folder = golden_dir / "cases" / case
    given, expected = golden_case(folder)
    standard = expected[metric]["standard"]

    ours = evaluate_retrieval(**given, metric=metric, query_block=query_block)

    assert ours.mAP == pytest.approx(standard["mAP"], abs=1e-9)
    assert ours.mINP == pytest.approx(standard["mINP"], abs=1e-9)
    assert ours.queries_counted == standard["n_valid"]
    for rank in CMC_RANKS:
        assert ours.cmc_at(rank) == pytest.approx(standard["cmc"][str(rank)], abs=1e-9)
    official = expected[metric]["official_market1501"]["mAP_trapezoid_valid_queries"]
    assert ours.mAP_trapezoid == pytest.approx(official, abs=1e-9)

    with np.load(folder / "expected.npz") as arrays:
        for name, values in {
            "AP": ours.average_precisions,
            "trapAP": ours.average_precisions_trapezoid,
            "INP": ours.inverse_negative_penalties,
            "first_match_rank": np.nan_to_num(ours.first_match_ranks, nan=-1),
            "n_pos": ours.num_matches,
            "cmc": ours.cmc,
        }.items():
            np.testing.assert_allclose(values, arrays[f"{metric}/{name}"], atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [pytest.param(case, 0.02 if case == "p5_ties" else 1e-6, id=case) for case in CASES],
)
def test_reranked_scores_are_those_of_public_code(golden_dir, case, tolerance):
    """The authors' re-ranking, junk left out before it, then the same protocol; ties are looser."""
    folder = golden_dir / "cases" / case
    given, _ = golden_case(folder)
    variants = json.loads((folder / "expected.json").read_text())["rerank"]
    expected = variants["zhong_ranklist_f64/euclidean_l2norm"]

    ours = evaluate_retrieval(**given, metric="cosine", reranking=Reranking())

    assert ours.mAP == pytest.approx(expected["mAP"], abs=tolerance)
    assert ours.queries_counted == expected["n_valid"]
    if case != "p5_ties":
        assert ours.mINP == pytest.approx(expected["mINP"], abs=tolerance)
        for rank in CMC_RANKS:
            assert ours.cmc_at(rank) == pytest.approx(expected["cmc"][str(rank)], abs=tolerance)


def test_reranking_is_by_cosine():
    """Another distance would be another method."""
    with pytest.raises(ValueError, match="for cosine, got euclidean"):
        evaluate_retrieval(**small(metric="euclidean"), reranking=Reranking())


@pytest.mark.parametrize("metric", METRICS)
def test_camera_filter_off(golden_dir, metric):
    """Without the camera filter every gallery image of the identity is a right answer."""
    given, expected = golden_case(golden_dir / "cases" / "p2_clean")
    standard = expected[metric]["camera_filter_off"]["reference"]

    ours = evaluate_retrieval(**given, metric=metric, camera_filter=False)

    assert ours.mAP == pytest.approx(standard["mAP"], abs=1e-9)
    assert ours.mINP == pytest.approx(standard["mINP"], abs=1e-9)
    for rank in CMC_RANKS:
        assert ours.cmc_at(rank) == pytest.approx(standard["cmc"][str(rank)], abs=1e-9)


@pytest.mark.parametrize(
    ("relevance", "mean_precision", "trapezoid"),
    [
        pytest.param([1, 1, 0, 1, 0, 0, 1], 0.830, 0.811, id="spread"),
        pytest.param([0, 0, 1], 0.333, 0.167, id="late"),
        pytest.param([1, 1, 1], 1.0, 1.0, id="perfect"),
        pytest.param([0, 1], 0.5, 0.25, id="second"),
    ],
)
def test_both_average_precisions(relevance, mean_precision, trapezoid):
    """The two rules that are in use give their known values."""
    ranks = np.flatnonzero(relevance) + 1
    assert average_precision(ranks) == pytest.approx(mean_precision, abs=5e-4)
    assert average_precision_trapezoid(ranks) == pytest.approx(trapezoid, abs=5e-4)


@pytest.mark.parametrize("sorted_per_match", [0, 1000], ids=["by counting", "by sorting"])
@pytest.mark.parametrize("share", [0.3, 0.03], ids=["answers far behind", "few answers"])
def test_both_ways_to_ranks_agree_on_ties(monkeypatch, sorted_per_match, share):
    """Ranks among many equal values follow the order of the rows, whichever way they are found."""
    monkeypatch.setattr(metrics, "SORTED_PER_MATCH", sorted_per_match)
    random = np.random.default_rng(0)
    for _ in range(50):
        nearness = random.integers(0, 6, 30).astype(np.float32)
        matches = np.flatnonzero(random.random(30) < share)
        if len(matches):
            order = np.argsort(-nearness, kind="stable").tolist()
            expected = sorted(order.index(match) + 1 for match in matches)
            assert match_ranks(nearness, matches).tolist() == expected


def test_cmc_stays_at_its_last_value():
    """Ranks beyond the gallery give the last value of the curve; rank 0 does not exist."""
    scores = evaluate_retrieval(**small(query_embeddings=torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
    assert scores.cmc.tolist() == [0.5, 0.5, 1.0]
    assert [scores.cmc_at(rank) for rank in (1, 3, 20)] == [0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="start at 1"):
        scores.cmc_at(0)


def test_says_why_queries_do_not_count():
    """A query without any gallery image and one with the same camera's only are told apart."""
    scores = evaluate_retrieval(
        **small(
            query_embeddings=torch.eye(3, 2) + 0.1,
            query_person_ids=np.array([1, 2, 9]),
            query_camera_ids=np.array([1, 2, 1]),
        )
    )
    assert scores.queries_total == 3
    assert scores.queries_counted == 1
    assert scores.queries_not_counted == QueriesNotCounted(no_gallery_image=1, same_camera_only=1)
    assert np.isnan(scores.average_precisions).tolist() == [False, True, True]
    assert scores.num_matches.tolist() == [2, 0, 0]


def test_junk_rows_are_never_looked_at():
    """A junk row changes nothing, even if its embedding is not a number."""
    plain = evaluate_retrieval(**small())
    junk = small(
        gallery_embeddings=torch.tensor([[0.9, 0.1], [torch.nan] * 2, [0.1, 0.9], [0.7, 0.7]]),
        gallery_person_ids=np.array([1, JUNK, 2, 1]),
        gallery_camera_ids=np.array([2, 2, 2, 2]),
    )
    scores = evaluate_retrieval(**junk)
    assert (scores.mAP, scores.mINP) == (plain.mAP, plain.mINP)
    assert scores.cmc.tolist() == plain.cmc.tolist()


def test_inputs_are_left_as_they_are():
    """Neither embeddings nor ids are changed."""
    given = problem(0, tied=False)
    before = {name: value.copy() if isinstance(value, np.ndarray) else value.clone()
              for name, value in given.items()}  # fmt: skip
    evaluate_retrieval(**given, metric="cosine")
    assert all((given[name] == before[name]).all() for name in given)


def test_progress_reaches_its_total():
    """Progress is told after each block and ends at the number of queries that count."""
    calls = []
    evaluate_retrieval(**small(), query_block=1, progress=lambda *call: calls.append(call))
    assert calls == [("ranking", done, 2, "queries") for done in (0, 1, 2)]


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"query_person_ids": np.array([7, 8])},
            "of 2 query and 2 gallery person ids, 0 are shared, 0 of them seen by one camera only; "
            "queries show 7, 8, the gallery 1, 2: give one person the same number",
            id="no shared ids",
        ),
        pytest.param(
            {"query_person_ids": np.array([11, 11]),
             "gallery_person_ids": np.array([JUNK, DISTRACTOR, DISTRACTOR])},
            "queries show 11, the gallery distractors only: give one person the same number",
            id="distractors only",
        ),
        pytest.param(
            {"query_camera_ids": np.array([2, 2])},
            "2 are shared, 2 of them seen by one camera only; all images are by camera 2, and "
            "images by the query's own camera are ignored: evaluate with --no-camera-filter",
            id="one camera",
        ),
        pytest.param(
            {"query_camera_ids": np.array([2, 4]), "gallery_camera_ids": np.array([2, 4, 2])},
            "2 are shared, 2 of them seen by one camera only; images by the query's own camera "
            "are ignored: check the camera ids, add images of the same people by other cameras",
            id="each seen by one camera",
        ),
        pytest.param(
            {"gallery_person_ids": np.array([JUNK] * 3)}, "all 3 gallery images are junk", id="junk"
        ),
        pytest.param(
            {"query_person_ids": np.array([1, DISTRACTOR])}, "query row 1 has the person id 0",
            id="query is a distractor",
        ),
        pytest.param(
            {"query_person_ids": np.array([JUNK, 1])}, "query row 0 has the person id -1",
            id="query is junk",
        ),
        pytest.param(
            {"query_embeddings": torch.ones(2, 3)},
            "query embeddings have 3 columns and gallery embeddings 2", id="widths",
        ),
        pytest.param(
            {"gallery_camera_ids": np.array([1])},
            "gallery: 3 embeddings, 3 person ids and 1 camera ids", id="lengths",
        ),
        pytest.param(
            {"query_embeddings": torch.ones(0, 2), "query_person_ids": np.array([], dtype=int),
             "query_camera_ids": np.array([], dtype=int)},
            r"query embeddings have the shape \(0, 2\)", id="empty",
        ),
        pytest.param(
            {"gallery_embeddings": torch.ones(3)}, r"gallery embeddings have the shape \(3,\)",
            id="not a matrix",
        ),
        pytest.param(
            {"query_embeddings": torch.tensor([[1, 0], [torch.nan, 1]])},
            "query embeddings: row 1 holds NaN", id="query not finite",
        ),
        pytest.param(
            {"gallery_embeddings": torch.tensor([[1, 0], [0, 1], [torch.inf, 1]])},
            "gallery embeddings: row 2 holds NaN", id="gallery not finite",
        ),
        pytest.param(
            {"gallery_embeddings": torch.tensor([[1.0, 0], [0, 1], [0, 0]])},
            r"gallery embeddings: row 2 is \(nearly\) zero", id="zero gallery row",
        ),
        pytest.param(
            {"query_embeddings": torch.tensor([[0.0, 0], [0, 1]])},
            r"query embeddings: row 0 is \(nearly\) zero", id="zero query row",
        ),
    ],
)  # fmt: skip
def test_impossible_problems_are_refused(changes, message):
    """A problem that has no score gives one line that says what is wrong, never a number."""
    with pytest.raises(EvaluationError, match=message) as raised:
        evaluate_retrieval(**small(**changes))
    assert "\n" not in str(raised.value)


def test_zero_rows_have_a_euclidean_distance():
    """Only cosine needs a direction."""
    zero = small(gallery_embeddings=torch.tensor([[1.0, 0], [0, 1], [0, 0]]), metric="euclidean")
    assert evaluate_retrieval(**zero).mAP == 1.0


def test_query_block_is_positive():
    """A block of no queries would never end."""
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate_retrieval(**small(), query_block=0)
