"""Thresholds and rates, judged by trying every score of every pair as a threshold."""

import json

import numpy as np
import pytest
import torch

from airnet_cli.core.data.records import DISTRACTOR, JUNK
from airnet_cli.core.retrieval import calibration
from airnet_cli.core.retrieval.calibration import (
    RATES,
    STEPS,
    Calibration,
    OperatingPoint,
    ScoreCalibration,
    calibrate,
    calibration_path,
    grid_places,
    read_calibration,
    write_calibration,
)
from airnet_cli.errors import CheckpointError, EvaluationError, OutputError


def problem(seed, *, queries=15, gallery=80, people=6, cameras=3, size=12):
    """Return people around centres of their own, with junk and distractors among them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((people + 1, size))
    query_people = random.integers(1, people + 1, queries)
    gallery_people = random.choice([JUNK, *range(people + 1)], gallery)

    def embed(who):
        return torch.from_numpy(centres[who] + 0.7 * random.standard_normal((len(who), size)))

    return {
        "query_embeddings": embed(query_people).float(),
        "gallery_embeddings": embed(np.maximum(gallery_people, 0)).float(),
        "query_person_ids": query_people,
        "query_camera_ids": random.integers(0, cameras, queries),
        "gallery_person_ids": gallery_people,
        "gallery_camera_ids": random.integers(0, cameras, gallery),
    }


def pairs(given):
    """Walk over all pairs: the scores of pairs of one person, and of two, on the grid."""
    same, different = [], []
    queries, images = (
        given[f"{name}_embeddings"].double().numpy() for name in ("query", "gallery")
    )
    for q, who in enumerate(given["query_person_ids"]):
        for g, other in enumerate(given["gallery_person_ids"]):
            query, image = queries[q], images[g]
            score = query @ image / np.sqrt((query @ query) * (image @ image))
            score = np.floor(score * STEPS) / STEPS
            if other == JUNK:
                continue
            if who != other:
                different.append(score)
            elif given["query_camera_ids"][q] != given["gallery_camera_ids"][g]:
                same.append(score)
    return np.array(same), np.array(different)


@pytest.mark.parametrize("block", [None, 4], ids=["one block", "blocks of 4"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_trying_every_threshold(monkeypatch, seed, block):
    """Each threshold is the lowest that keeps its rate; rates are shares of the pairs."""
    monkeypatch.setattr(calibration, "COUNTED_AT_ONCE", 200)
    monkeypatch.setattr(calibration, "CONVERTED_AT_ONCE", 7)
    given = problem(seed)
    same, different = pairs(given)

    ours, _ = calibrate(**given, heads={}, query_block=block)

    assert (ours.same_person_pairs, ours.different_person_pairs) == (len(same), len(different))
    assert [point.far for point in ours.points] == [
        far for far in RATES if far * len(different) >= 1
    ]
    step = 1 / STEPS
    for point in ours.points:
        kept = [t for t in [-1, *(different + step)] if np.mean(different >= t) <= point.far]
        assert point.threshold == pytest.approx(min(kept), abs=1.5 * step)
        assert point.false_accept_rate == np.mean(different >= min(kept))
        assert point.true_accept_rate == pytest.approx(np.mean(same >= min(kept)), abs=1e-12)
    tried = np.unique([-1, *same, *different, *(same + step), *(different + step)])
    accepted = np.array([np.mean(different >= t) for t in tried])
    rejected = np.array([np.mean(same < t) for t in tried])
    best = np.abs(accepted - rejected).argmin()
    assert ours.equal_error_rate == pytest.approx((accepted + rejected)[best] / 2, abs=1e-12)
    assert ours.equal_error_threshold == pytest.approx(tried[best], abs=1.5 * step)


def test_rates_are_those_of_the_threshold_that_is_written(tmp_path):
    """Applying a threshold to the scores gives the rates that stand beside it, exactly."""
    given = problem(9, queries=40, gallery=300)
    ours, _ = calibrate(**given, heads={})
    query, gallery = (
        torch.nn.functional.normalize(given[f"{name}_embeddings"].double(), dim=1)
        for name in ("query", "gallery")
    )
    scores = (query @ gallery.T).numpy()
    is_kept = given["gallery_person_ids"] != JUNK
    is_different = (given["query_person_ids"][:, None] != given["gallery_person_ids"]) & is_kept
    for point in ours.points:
        passed = scores[is_different] >= point.threshold
        assert passed.mean() == pytest.approx(point.false_accept_rate)
        assert passed.mean() <= point.far


def test_heads_and_whole_in_one_pass():
    """The whole is what it is without heads, and each head what its columns alone are."""
    given = problem(5)
    heads = {"A1": slice(0, 5), "I": slice(5, 12)}
    whole, alone = calibrate(**given, heads=heads, query_block=4)

    def near(ours, expected):
        assert ours.same_person_pairs == expected.same_person_pairs
        assert ours.different_person_pairs == expected.different_person_pairs
        assert ours.equal_error_rate == pytest.approx(expected.equal_error_rate)
        for point, other in zip(ours.points, expected.points, strict=True):
            assert point.threshold == pytest.approx(other.threshold, abs=2.5 / STEPS)
            assert point.true_accept_rate == pytest.approx(other.true_accept_rate)

    near(whole, calibrate(**given, heads={})[0])
    assert list(alone) == list(heads)
    for name, part in heads.items():
        columns = {f"{side}_embeddings": given[f"{side}_embeddings"][:, part]
                   for side in ("query", "gallery")}  # fmt: skip
        near(alone[name], calibrate(**given | columns, heads={})[0])


def test_without_the_camera_filter():
    """Pairs of one person by one camera count too, and nothing else changes."""
    given = problem(3)
    strict, loose = (
        calibrate(**given, heads={}, camera_filter=choice)[0] for choice in (True, False)
    )
    people, others = given["query_person_ids"], given["gallery_person_ids"]
    assert loose.same_person_pairs == sum((others == person).sum() for person in people)
    assert loose.same_person_pairs > strict.same_person_pairs
    assert [point.threshold for point in loose.points] == [p.threshold for p in strict.points]


@pytest.mark.parametrize(
    ("same", "different", "expected"),
    [
        pytest.param([0.8, 0.9], [0.1] * 99 + [0.2], 0.0, id="apart"),
        pytest.param([0.5] * 4, [0.5] * 4, 0.5, id="the same scores"),
        pytest.param([0.9] * 9 + [0.1], [0.8] + [0.0] * 9, 0.1, id="one in ten each"),
    ],
)
def test_equal_error_rate(same, different, expected):
    """Known values: nothing in common, no difference, one of ten on either side."""
    counts = [
        np.bincount(grid_places(np.array(scores, np.float32)), minlength=2 * STEPS + 1)
        for scores in (same, different)
    ]
    assert calibration.read_off(*counts).equal_error_rate == pytest.approx(expected)


def test_a_threshold_exists_where_everybody_looks_alike():
    """If all pairs score 1, the threshold lies just above: nobody passes."""
    counts = np.bincount(grid_places(np.ones(200, np.float32)), minlength=2 * STEPS + 1)
    point = calibration.read_off(counts, counts).at(0.01)
    assert (point.false_accept_rate, point.true_accept_rate) == (0, 0)
    assert point.threshold > 1


def test_rates_without_enough_pairs_are_left_out():
    """A rate of one in a thousand can't be read from a hundred pairs."""
    counts = np.bincount(grid_places(np.zeros(100, np.float32)), minlength=2 * STEPS + 1)
    measured = calibration.read_off(counts, counts)
    assert measured.at(0.01) is not None
    assert measured.at(0.001) is None
    assert measured.at(0.03) is None, "not on the list"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"query_camera_ids": np.zeros(15, int),
                      "gallery_camera_ids": np.zeros(80, int)},
                     r"two cameras \(there are 0\)", id="one camera"),
        pytest.param({"query_person_ids": np.ones(15, int),
                      "gallery_person_ids": np.ones(80, int)},
                     r"two people \(there are 0\)", id="one person"),
        pytest.param({"gallery_person_ids": np.full(80, JUNK)}, "no pair", id="junk only"),
        pytest.param({"gallery_person_ids": np.full(80, DISTRACTOR)}, r"\(there are 0\)",
                     id="distractors only"),
    ],
)  # fmt: skip
def test_pairs_of_both_kinds_are_needed(changes, message):
    """Without pairs of one person, or of two, there is nothing to measure."""
    with pytest.raises(EvaluationError, match=message):
        calibrate(**problem(0) | changes, heads={})


EXAMPLE = Calibration(
    fingerprint="ab" * 32,
    data="demo",
    camera_filter=True,
    precision="fp32",
    normalize_heads=False,
    flip=False,
    whole=ScoreCalibration(
        same_person_pairs=10,
        different_person_pairs=200,
        equal_error_rate=0.05,
        equal_error_threshold=0.5,
        points=(OperatingPoint(0.01, 0.75, 0.01, 0.9),),
    ),
    heads={},
)


def test_the_file_comes_back(tmp_path):
    """What is written is read again; where nothing was written there is None."""
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    write_calibration(path, EXAMPLE)
    assert read_calibration(path) == EXAMPLE
    assert json.loads(path.read_text())["format"] == "airnet-calibration"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "airnet-calibration", "format_version": 2}', "\x00"],
    ids=["empty", "list", "no format", "version 2", "binary"],
)
def test_a_broken_file_is_an_error(tmp_path, content):
    """Nothing that is no calibration is taken for one, or for none."""
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="airnet evaluate --calibrate"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["whole"].update(equal_error_rate=float("nan")), "a rate is"),
        (lambda record: record["whole"].update(equal_error_threshold=1.5), "is no cosine"),
        (lambda record: record["whole"].update(same_person_pairs=True), "pairs"),
        (lambda record: record.update(flip="false"), "must be true or false"),
    ],
    ids=["nan", "threshold", "pairs", "flag"],
)
def test_impossible_values_are_refused(tmp_path, change, message):
    """One line says which; a hash, which earlier versions wrote, is ignored."""
    path = tmp_path / "calibration.json"
    write_calibration(path, EXAMPLE)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"sha256": "0" * 64}))
    assert read_calibration(path) == EXAMPLE
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=message):
        read_calibration(path)


def test_a_folder_that_can_not_be_written(tmp_path):
    """A place where no file can be is told in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write '.*calibration\.json'"):
        write_calibration(tmp_path / "file" / "calibration.json", EXAMPLE)


def test_calibrations_of_two_checkpoints_in_a_folder_are_two_files(tmp_path):
    """A checkpoint outside of a run folder has a calibration of its own name."""
    names = {calibration_path(tmp_path / name).name for name in ("a.safetensors", "b.safetensors")}
    assert names == {"a.calibration.json", "b.calibration.json"}
