"""Thresholds and rates, judged by trying every score of every pair as a threshold."""

import json

import numpy as np
import pytest

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
    read_calibration,
    write_calibration,
)
from airnet_cli.core.retrieval.protocol import LabelledFeatures, Labels
from airnet_cli.errors import CheckpointError, EvaluationError


def problem(seed, *, num_queries=15, num_gallery=80, people=6, **changes):
    """Query and gallery: people around centres of their own, junk and distractors among them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((people + 1, 12))
    shown = {
        "query": random.integers(1, people + 1, num_queries),
        "gallery": random.choice([JUNK, *range(people + 1)], num_gallery),
    }
    noise = {name: random.standard_normal((len(who), 12)) for name, who in shown.items()}
    sides = []
    for name, who in shown.items():
        labels = {"person_ids": who, "camera_ids": random.integers(0, 3, len(who))}
        labels |= {key: np.full(len(who), each) for key, each in changes.get(name, {}).items()}
        embeddings = centres[np.maximum(who, 0)] + 0.7 * noise[name]
        sides.append(LabelledFeatures(embeddings.astype(np.float32), Labels(**labels)))
    return sides


def pairs(query, gallery):
    """The float64 cosines of all pairs of one person, and of two."""
    queries, images = (
        side.embeddings / np.linalg.norm(side.embeddings.astype(float), axis=1, keepdims=True)
        for side in (query, gallery)
    )
    cosines = queries @ images.T
    is_same = query.labels.person_ids[:, None] == gallery.labels.person_ids
    other_camera = query.labels.camera_ids[:, None] != gallery.labels.camera_ids
    is_different = ~is_same & (gallery.labels.person_ids != JUNK)
    return cosines[is_same & other_camera], cosines[is_different]


@pytest.mark.parametrize("block", [None, 4], ids=["one block", "blocks of 4"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_trying_every_threshold(monkeypatch, seed, block):
    """Each threshold is the lowest that keeps its rate; rates are shares of the pairs."""
    monkeypatch.setattr(calibration, "COUNTED_AT_ONCE", 500)
    given = problem(seed)
    same, different = (np.floor(scores * STEPS) / STEPS for scores in pairs(*given))

    ours = calibrate(*given, query_block=block)

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


def test_rates_are_those_of_the_threshold_that_is_written():
    """Applying a threshold to the scores gives the rates that stand beside it, exactly."""
    given = problem(9, num_queries=40, num_gallery=300)
    _, different = pairs(*given)
    for point in calibrate(*given).points:
        passed = (different >= point.threshold).mean()
        assert passed == pytest.approx(point.false_accept_rate)
        assert passed <= point.far


def test_without_the_camera_filter():
    """Pairs of one person by one camera count too, and nothing else changes."""
    query, gallery = problem(3)
    strict, loose = (calibrate(query, gallery, camera_filter=choice) for choice in (True, False))
    others = gallery.labels.person_ids
    assert loose.same_person_pairs == sum((others == who).sum() for who in query.labels.person_ids)
    assert loose.same_person_pairs > strict.same_person_pairs
    assert [point.threshold for point in loose.points] == [p.threshold for p in strict.points]


def counts_of(*scores):
    """The counts of each kind's scores at the grid points."""
    return [
        np.bincount(calibration.grid_places(np.array(each, np.float32)), minlength=2 * STEPS + 1)
        for each in scores
    ]


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
    measured = calibration.read_off(*counts_of(same, different))
    assert measured.equal_error_rate == pytest.approx(expected)


def test_a_threshold_exists_where_everybody_looks_alike():
    """If all pairs score 1, the threshold lies just above: nobody passes."""
    point = calibration.read_off(*counts_of([1] * 200, [1] * 200)).at(0.01)
    assert (point.false_accept_rate, point.true_accept_rate) == (0, 0)
    assert point.threshold > 1


def test_rates_without_enough_pairs_are_left_out():
    """A rate of one in a thousand can't be read from a hundred pairs."""
    measured = calibration.read_off(*counts_of([0] * 100, [0] * 100))
    assert measured.at(0.01) is not None
    assert measured.at(0.001) is None
    assert measured.at(0.03) is None, "not on the list"


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        pytest.param({"camera_ids": 0}, {"camera_ids": 0}, "no query has a right", id="one camera"),
        pytest.param(
            {"person_ids": 1}, {"person_ids": 1}, r"two people \(there are 0\)", id="one person"
        ),
        pytest.param({}, {"person_ids": JUNK}, "all 80 gallery images are junk", id="junk only"),
        pytest.param({}, {"person_ids": DISTRACTOR}, "no query has a right", id="distractors"),
    ],
)
def test_pairs_of_both_kinds_are_needed(query, gallery, message):
    """Without pairs of one person, or of two, there is nothing to measure."""
    with pytest.raises(EvaluationError, match=message):
        calibrate(*problem(0, query=query, gallery=gallery))


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
    """What is written is read again, with the hash of older files too; None without a file."""
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    write_calibration(path, EXAMPLE)
    assert read_calibration(path) == EXAMPLE
    record = json.loads(path.read_text())
    assert record["format"] == "airnet-calibration"
    path.write_text(json.dumps(record | {"sha256": "ab" * 32}))
    assert read_calibration(path) == EXAMPLE


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "airnet-calibration", "format_version": 2}'],
    ids=["empty", "list", "no format", "version 2"],
)
def test_a_broken_file_is_an_error(tmp_path, content):
    """Nothing that is no calibration is taken for one, or for none."""
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="airnet evaluate --calibrate"):
        read_calibration(path)


def test_a_threshold_that_is_not_a_cosine(tmp_path):
    """Such as NaN, with which nobody would ever be the same person."""
    path = tmp_path / "calibration.json"
    write_calibration(path, EXAMPLE)
    path.write_text(path.read_text().replace("0.75", "NaN"))
    with pytest.raises(CheckpointError, match="threshold nan is not a cosine"):
        read_calibration(path)


def test_calibrations_of_two_checkpoints_in_a_folder_are_two_files(tmp_path):
    """A checkpoint outside of a run folder has a calibration of its own name."""
    names = {calibration_path(tmp_path / name).name for name in ("a.safetensors", "b.safetensors")}
    assert names == {"a.calibration.json", "b.calibration.json"}
