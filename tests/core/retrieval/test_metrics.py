"""Scores of a ranking, judged by a slow reference, by public code and by hand-made cases."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from airnet_cli.core.data.records import DISTRACTOR, JUNK
from airnet_cli.core.retrieval import product
from airnet_cli.core.retrieval.metrics import (
    CMC_RANKS,
    PER_QUERY_COLUMNS,
    QueriesNotCounted,
    average_precision,
    average_precision_trapezoid,
    evaluate_retrieval,
    match_ranks,
    write_per_query,
)
from airnet_cli.core.retrieval.protocol import LabelledFeatures, Labels
from airnet_cli.core.retrieval.rerank import Reranking
from airnet_cli.errors import AirnetError, OutputError

METRICS = ["cosine", "euclidean"]
CASES = ["p1_tiny", "p2_clean", "p3_junk", "p4_nomatch", "p5_ties", "p6_market"]


def features(embeddings, person_ids, camera_ids, paths=None):
    return LabelledFeatures(
        np.asarray(embeddings), Labels(np.asarray(person_ids), np.asarray(camera_ids), paths)
    )


# The obvious implementation, which judges the fast one.


@dataclass
class Reference:
    mAP: float
    mAP_trapezoid: float
    mINP: float
    cmc: list[float]
    ranks: list[list[int]]


def reference(query, gallery, *, metric, camera_filter):
    """Sort the gallery for each query in float64, walk down the list, and write the ranks down."""
    labels = gallery.labels
    kept = np.flatnonzero(labels.person_ids != JUNK)
    ranks = []
    for vector, person, camera in zip(
        query.embeddings.astype(float),
        query.labels.person_ids,
        query.labels.camera_ids,
        strict=True,
    ):
        ranked = []
        for row in kept:
            image = gallery.embeddings[row].astype(float)
            if metric == "cosine":
                distance = 1 - vector @ image / np.linalg.norm(vector) / np.linalg.norm(image)
            else:
                distance = np.sum((vector - image) ** 2)
            is_same_person = labels.person_ids[row] == person
            if camera_filter and is_same_person and labels.camera_ids[row] == camera:
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

    def draw(rows):
        values = random.standard_normal((rows, size))
        return (np.where(values > 0, 1, -1) if tied else values).astype(np.float32)

    return (
        features(draw(queries), query_person_ids, random.integers(0, cameras, queries)),
        features(draw(gallery), gallery_person_ids, gallery_camera_ids),
    )


QUERY = {"embeddings": [[1.0, 0.0], [0.0, 1.0]], "person_ids": [1, 2], "camera_ids": [1, 1]}
GALLERY = {
    "embeddings": [[0.9, 0.1], [0.1, 0.9], [0.7, 0.7]],
    "person_ids": [1, 2, 1],
    "camera_ids": [2, 2, 2],
}


def small(query=(), gallery=(), metric="cosine", **settings):
    """Score two queries in three gallery rows, with changes to either."""
    return evaluate_retrieval(
        features(**QUERY | dict(query)),
        features(**GALLERY | dict(gallery)),
        metric=metric,
        **settings,
    )


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
    given = problem(seed, **shape)
    settings = {"metric": metric, "camera_filter": camera_filter}

    ours = evaluate_retrieval(*given, **settings, query_block=5)

    judge = reference(*given, **settings)
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
    given = [
        features(
            np.load(folder / f"{name}_features.npy"), labels[f"{name}_ids"], labels[f"{name}_cams"]
        )
        for name in ("query", "gallery")
    ]
    return given, json.loads((folder / "expected.json").read_text())["expected"]


@pytest.mark.parametrize("query_block", [None, 7], ids=["one block", "blocks of 7"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES)
def test_equals_public_reference_code(golden_dir, case, metric, query_block):
    """On the golden cases every score and per-query value is that of the field's reference code."""
    folder = golden_dir / "cases" / case
    given, expected = golden_case(folder)
    standard = expected[metric]["standard"]

    ours = evaluate_retrieval(*given, metric=metric, query_block=query_block)

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

    ours = evaluate_retrieval(*given, metric="cosine", reranking=Reranking())

    assert ours.mAP == pytest.approx(expected["mAP"], abs=tolerance)
    assert ours.queries_counted == expected["n_valid"]
    if case != "p5_ties":
        assert ours.mINP == pytest.approx(expected["mINP"], abs=tolerance)
        for rank in CMC_RANKS:
            assert ours.cmc_at(rank) == pytest.approx(expected["cmc"][str(rank)], abs=tolerance)


def test_reranking_is_by_cosine():
    """Another distance would be another method."""
    with pytest.raises(ValueError, match="for cosine, got euclidean"):
        small(metric="euclidean", reranking=Reranking())


@pytest.mark.parametrize("metric", METRICS)
def test_camera_filter_off(golden_dir, metric):
    """Without the camera filter every gallery image of the identity is a right answer."""
    given, expected = golden_case(golden_dir / "cases" / "p2_clean")
    standard = expected[metric]["camera_filter_off"]["reference"]

    ours = evaluate_retrieval(*given, metric=metric, camera_filter=False)

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


@pytest.mark.parametrize("share", [0.3, 0.03], ids=["answers far behind", "few answers"])
def test_ranks_among_ties(share):
    """Ranks among many equal values follow the order of the rows."""
    random = np.random.default_rng(0)
    for _ in range(50):
        nearness = random.integers(0, 6, 30).astype(np.float32)
        matches = np.flatnonzero(random.random(30) < share)
        if len(matches):
            order = np.argsort(-nearness, kind="stable").tolist()
            expected = sorted(order.index(match) + 1 for match in matches)
            assert match_ranks(nearness, matches).tolist() == expected


@pytest.mark.parametrize("store", ["float16", "float64", "mapped", "Fortran order", "columns"])
@pytest.mark.parametrize("metric", METRICS)
def test_type_layout_and_pieces_do_not_matter(monkeypatch, tmp_path, metric, store):
    """A gallery of any float type and order of memory gives what float32 in one piece gives."""
    query, gallery = problem(0, tied=True)
    expected = evaluate_retrieval(query, gallery, metric=metric)
    embeddings = gallery.embeddings
    if store == "mapped":
        np.save(tmp_path / "g.npy", embeddings)
        embeddings = np.load(tmp_path / "g.npy", mmap_mode="r")
    elif store == "Fortran order":
        embeddings = np.asfortranarray(embeddings)
    elif store == "columns":
        embeddings = np.concatenate([embeddings, embeddings + 1], axis=1)[:, :16]
    else:
        embeddings = embeddings.astype(store)
    monkeypatch.setattr(product, "PIECE_BYTES", 7 * 4 * 16)
    monkeypatch.setattr(product, "BLOCK_BYTES", 4 * 4 * 60)
    found = evaluate_retrieval(query, LabelledFeatures(embeddings, gallery.labels), metric=metric)
    assert [each.tolist() for each in found.match_ranks] == [
        each.tolist() for each in expected.match_ranks
    ]


def test_cmc_stays_at_its_last_value():
    """Ranks beyond the gallery give the last value of the curve; rank 0 does not exist."""
    scores = small(query={"embeddings": [[1.0, 0.0], [1.0, 0.0]]})
    assert scores.cmc.tolist() == [0.5, 0.5, 1.0]
    assert [scores.cmc_at(rank) for rank in (1, 3, 20)] == [0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="start at 1"):
        scores.cmc_at(0)


THREE = {
    "embeddings": [[1.0, 0], [0, 1], [1, 1]],
    "person_ids": [1, 2, 9],
    "camera_ids": [1, 2, 1],
}


def test_says_why_queries_do_not_count():
    """A query without any gallery image and one with the same camera's only are told apart."""
    scores = small(query=THREE)
    assert scores.queries_total == 3
    assert scores.queries_counted == 1
    assert scores.queries_not_counted == QueriesNotCounted(no_gallery_image=1, same_camera_only=1)
    assert np.isnan(scores.average_precisions).tolist() == [False, True, True]
    assert scores.num_matches.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("paths", "shown"),
    [(None, ["", "", ""]), (("a,b.jpg", "c.jpg", "d.jpg"), ["a,b.jpg", "c.jpg", "d.jpg"])],
    ids=["paths unknown", "paths"],
)
def test_a_line_for_each_query(tmp_path, paths, shown):
    """Numbers come back as they are; what does not count has empty cells."""
    queries = features(**THREE | {"camera_ids": [1, 1, 1]}, paths=paths)
    images = features([[1.0, 0.1], [0.2, 0.9], [0.1, 0.9]], [1, 2, 1], [2, 2, 2])
    scores = evaluate_retrieval(queries, images, metric="cosine")
    path = tmp_path / "table.csv"
    write_per_query(path, scores=scores, queries=queries.labels)
    header, *rows = csv.reader(path.read_text().splitlines())
    assert tuple(header) == PER_QUERY_COLUMNS
    assert rows == [
        [shown[0], "1", "1", str((1 + 2 / 3) / 2), str((2 + 1 / 2 + 2 / 3) / 4), str(2 / 3),
         "1", "2", "1 3"],
        [shown[1], "2", "1", "0.5", "0.25", "0.5", "2", "1", "2"],
        [shown[2], "9", "1", "", "", "", "", "0", ""],
    ]  # fmt: skip
    with pytest.raises(OutputError, match=r"can't write .*x\.csv"):
        write_per_query(path / "x.csv", scores=scores, queries=queries.labels)


def test_junk_rows_are_never_looked_at():
    """A junk row changes nothing, even if its embedding is not a number."""
    plain = small()
    scores = small(
        gallery={
            "embeddings": [[0.9, 0.1], [np.nan] * 2, [0.1, 0.9], [0.7, 0.7]],
            "person_ids": [1, JUNK, 2, 1],
            "camera_ids": [2, 2, 2, 2],
        }
    )
    assert (scores.mAP, scores.mINP) == (plain.mAP, plain.mINP)
    assert scores.cmc.tolist() == plain.cmc.tolist()


# Errors


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        pytest.param(
            {"person_ids": [7, 8]}, {},
            "of 2 query and 2 gallery person ids, 0 are shared, 0 of them seen by one camera only; "
            "queries show 7, 8, the gallery 1, 2: give one person the same number",
            id="no shared ids",
        ),
        pytest.param(
            {"person_ids": [11, 11]}, {"person_ids": [JUNK, DISTRACTOR, DISTRACTOR]},
            "queries show 11, the gallery distractors only: give one person the same number",
            id="distractors only",
        ),
        pytest.param(
            {"camera_ids": [2, 4]}, {"camera_ids": [2, 4, 2]},
            "2 are shared, 2 of them seen by one camera only; images by the query's own camera "
            "are ignored: check the camera ids, add images of the same people by other cameras, "
            "or evaluate with --no-camera-filter",
            id="each seen by one camera",
        ),
        pytest.param({}, {"person_ids": [JUNK] * 3}, "all 3 gallery images are junk", id="junk"),
        pytest.param(
            {"person_ids": [1, DISTRACTOR]}, {}, "query row 1 has the person id 0",
            id="query is a distractor",
        ),
        pytest.param(
            {"embeddings": np.ones((2, 3))}, {},
            "query embeddings have 3 columns and gallery embeddings 2", id="widths",
        ),
        pytest.param(
            {}, {"camera_ids": [1]},
            "gallery: 3 embeddings, 3 person ids and 1 camera ids", id="lengths",
        ),
        pytest.param(
            {"embeddings": np.ones((0, 2)), "person_ids": [], "camera_ids": []}, {},
            r"query embeddings have the shape \(0, 2\)", id="empty",
        ),
        pytest.param(
            {}, {"embeddings": np.ones(3)}, r"gallery embeddings have the shape \(3,\)",
            id="not a matrix",
        ),
        pytest.param(
            {"embeddings": [[1, 0], [np.nan, 1]]}, {}, r"query row 1 \(from 0\) holds NaN",
            id="query not finite",
        ),
        pytest.param(
            {}, {"embeddings": [[1, 0], [0, 1], [1e30, 1]], "person_ids": [JUNK, 2, 1]},
            r"gallery row 2 \(from 0\) holds NaN, infinity or values too large",
            id="gallery too large",
        ),
        pytest.param(
            {}, {"embeddings": [[1.0, 0], [0, 1], [0, 0]]}, r"gallery row 2 \(from 0\) is zero",
            id="zero gallery row",
        ),
    ],
)  # fmt: skip
def test_impossible_problems_are_refused(query, gallery, message):
    """A problem that has no score gives one line that says what is wrong, never a number."""
    with pytest.raises(AirnetError, match=message) as raised:
        small(query, gallery)
    assert "\n" not in str(raised.value)


def test_zero_rows_have_a_euclidean_distance():
    """Only cosine needs a direction."""
    assert small(gallery={"embeddings": [[1.0, 0], [0, 1], [0, 0]]}, metric="euclidean").mAP == 1.0
