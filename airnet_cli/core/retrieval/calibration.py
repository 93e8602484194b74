"""What a score means: how often two people, or one, reach it. Measured on a labelled data set.

Every query is compared with every gallery image by cosine; pairs of one person (by two cameras) and
pairs of two people are counted on a grid of scores, so memory does not grow with the pairs.
From the counts: for chosen false-accept rates the threshold and its true-accept rate, and the
equal-error rate. A threshold holds for the model that it was measured with, and for images like
those of the data set.

    calibration.json   beside the checkpoint; `Calibration` as JSON

Letters: Q queries, G gallery rows, D embedding size, S grid points.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airnet_cli.core.data.records import JUNK
from airnet_cli.core.files import read_json, write_json
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.product import (
    Floats,
    Integers,
    checked_squared_lengths,
    nearness_blocks,
)
from airnet_cli.core.retrieval.protocol import LabelledFeatures, right_answers
from airnet_cli.errors import CheckpointError, EvaluationError

FORMAT = "airnet-calibration"
FORMAT_VERSION = 1

STEPS = 2**20
"""Grid points between cosines 0 and 1: a threshold is a multiple of 1 / STEPS, a millionth."""

RATES = tuple(
    float(f"{digit}e{power}") for power in range(-6, 0) for digit in (1, 2, 5)
)  # 1e-06, 2e-06, 5e-06, 1e-05 ... 0.5
"""The false-accept rates of the points of an operating curve."""

NAMED_RATES = (1e-2, 1e-3, 1e-4)
"""The rates that are shown to people."""

COUNTED_AT_ONCE = 2**21
"""Pairs whose grid points are in memory at a time."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold, and what it lets through."""

    far: float
    """The false-accept rate that was asked for."""
    threshold: float
    """The lowest score on the grid at which no more than this share of two-people pairs pass."""
    false_accept_rate: float
    """The share of pairs of two people that reach the threshold: at most `far`."""
    true_accept_rate: float
    """The share of pairs of one person that reach it."""


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """What the scores of one kind (the whole embedding, or one head) mean."""

    same_person_pairs: int
    """Of one person, taken by two cameras."""
    different_person_pairs: int
    equal_error_rate: float
    """Where the false-accept rate and the false-reject rate are nearest each other: their mean."""
    equal_error_threshold: float
    points: tuple[OperatingPoint, ...]
    """By rising `far`: those of `RATES` for which there are enough pairs of two people, that is, at
    which one of them at least would pass."""

    def at(self, far: float) -> OperatingPoint | None:
        """The point of this false-accept rate; None if it was not, or could not be, measured."""
        return next((point for point in self.points if point.far == far), None)

    def named_points(self) -> list[OperatingPoint]:
        """The points of `NAMED_RATES` that could be measured."""
        return [point for rate in NAMED_RATES if (point := self.at(rate)) is not None]


@dataclass(frozen=True)
class Calibration:
    """The file: what the scores of a checkpoint mean."""

    fingerprint: str
    """SHA-256 of the checkpoint file."""
    data: str
    """The data set on which it was measured."""
    camera_filter: bool
    """Whether pairs of one person by one camera were left out."""
    precision: str
    normalize_heads: bool
    flip: bool
    whole: ScoreCalibration
    heads: dict[str, ScoreCalibration]

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}


def calibrate(
    query: LabelledFeatures,
    gallery: LabelledFeatures,
    *,
    camera_filter: bool = True,
    progress: Progress = silent,
    query_block: int | None = None,
) -> ScoreCalibration:
    """Count the cosines of all pairs, and read thresholds off the counts.

    Which pairs count follows the evaluation protocol (method: "Evaluation"): junk (id -1) is left
    out; pairs of one person by one camera are left out; distractors (id 0) are other people.

    Args:
        query: Q images, neither junk nor distractors.
        gallery: G images.
        camera_filter: whether pairs of one person by one camera are left out; off only for data of
            one camera, where the rates are then better than they would be across cameras.
        progress: told after each block of queries.
        query_block: queries per matrix product; None picks as many as about 100 MB hold.

    Raises:
        EvaluationError: there is no pair of one person, or none of two.
        DataError: an embedding is not finite, or has no direction.
    """
    answers = right_answers(query.labels, gallery.labels, camera_filter=camera_filter)
    rows = np.arange(len(query.labels))
    lengths = np.sqrt(
        checked_squared_lengths(query.embeddings, rows, metric="cosine", name="query")
    )
    same = np.zeros(2 * STEPS + 1, np.int64)  # (S,) grid points from -1 to 1
    different = np.zeros_like(same)
    progress("calibrating", 0, len(rows), "queries")
    for first, cosines in nearness_blocks(
        query.embeddings,
        gallery.embeddings,
        query_rows=rows,
        gallery_rows=np.flatnonzero(gallery.labels.person_ids != JUNK),
        metric="cosine",
        query_block=query_block,
    ):
        done = first + len(cosines)
        cosines /= lengths[first:done, None]
        # All pairs are counted; those of one person are few, and are taken out again.
        different += _counts(cosines)
        pairs = list(zip(cosines, answers[first:done], strict=True))
        matches = _counts(np.concatenate([row[own.matches] for row, own in pairs]))
        same += matches
        different -= matches + _counts(np.concatenate([row[own.ignored] for row, own in pairs]))
        progress("calibrating", done, len(rows), "queries")
    return read_off(same, different)


def _counts(cosines: Floats) -> Integers:
    """How many `cosines` (of any shape) there are at each grid point, (S,)."""
    counts = np.zeros(2 * STEPS + 1, np.int64)
    flat = cosines.reshape(-1)
    for begin in range(0, len(flat), COUNTED_AT_ONCE):
        places = grid_places(flat[begin : begin + COUNTED_AT_ONCE])
        counts += np.bincount(places, minlength=len(counts))
    return counts


def grid_places(scores: Floats) -> Integers:
    """The grid point at or under each score (cosines, -1 to 1), counted from -1.

    >>> grid_places(np.array([-1, 0, 1], dtype=np.float32)) / STEPS - 1
    array([-1.,  0.,  1.])
    """
    # A power of two, so scaling rounds nothing; rounding errors beyond 1 belong to 1.
    steps = np.floor(scores * np.float32(STEPS))
    places: Integers = np.clip(steps, -STEPS, STEPS).astype(np.int64) + STEPS
    return places


def read_off(same: Integers, different: Integers) -> ScoreCalibration:
    """Thresholds and rates from counts (S,) of pairs at each grid point.

    Raises:
        EvaluationError: there is no pair of one person, or none of two.
    """
    num_same, num_different = int(same.sum()), int(different.sum())
    if not num_same or not num_different:
        raise EvaluationError(
            f"a calibration needs pairs of one person by two cameras (there are {num_same:,}) and "
            f"pairs of two people (there are {num_different:,}); check person and camera ids"
        )
    # A last point above 1, which no pair reaches: with it a threshold always exists.
    accepted_same = np.append(same[::-1].cumsum()[::-1], 0)  # (S + 1,)
    accepted_different = np.append(different[::-1].cumsum()[::-1], 0)
    points = []
    for far in RATES:
        if far * num_different < 1:
            continue  # fewer pairs than one in 1 / far: the rate can't be told from none at all
        place = int(np.argmax(accepted_different <= far * num_different))
        points.append(
            OperatingPoint(
                far=far,
                threshold=place / STEPS - 1,
                false_accept_rate=int(accepted_different[place]) / num_different,
                true_accept_rate=int(accepted_same[place]) / num_same,
            )
        )
    rejected = 1 - accepted_same / num_same
    gaps = np.abs(accepted_different / num_different - rejected)
    equal = int(gaps.argmin())
    return ScoreCalibration(
        same_person_pairs=num_same,
        different_person_pairs=num_different,
        equal_error_rate=float((accepted_different[equal] / num_different + rejected[equal]) / 2),
        equal_error_threshold=equal / STEPS - 1,
        points=tuple(points),
    )


def calibration_path(checkpoint: Path) -> Path:
    """Where a checkpoint's calibration lies: `calibration.json` in a run folder.

    >>> calibration_path(Path("runs/demo/model.safetensors")).as_posix()
    'runs/demo/calibration.json'
    >>> calibration_path(Path("best.safetensors")).as_posix()
    'best.calibration.json'
    """
    if checkpoint.name == "model.safetensors":
        return checkpoint.with_name("calibration.json")
    return checkpoint.with_suffix(".calibration.json")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    write_json(path, calibration.to_dict())


def read_calibration(path: Path) -> Calibration | None:
    """Read the file at `path`; None if there is none.

    Raises:
        CheckpointError: it can't be read, or is no calibration.
    """
    try:
        record = read_json(path)
        if record["format"] != FORMAT or record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {record['format']!r}, version {record['format_version']!r}")
        return Calibration(
            **{key: record[key] for key in _SETTINGS},
            whole=_scores(record["whole"]),
            heads={name: _scores(scores) for name, scores in record["heads"].items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"calibration '{path}' can't be read ({type(error).__name__}: {error}); write it again "
            "with `airnet evaluate --calibrate`"
        ) from None


_SETTINGS = ("fingerprint", "data", "camera_filter", "precision", "normalize_heads", "flip")


def _scores(record: Mapping[str, Any]) -> ScoreCalibration:
    points = tuple(OperatingPoint(**point) for point in record["points"])
    scores = ScoreCalibration(**{**record, "points": points})
    # The highest threshold is one step above 1, which no score reaches.
    for point in points:
        if not -1 <= point.threshold <= 1 + 1 / STEPS:
            raise ValueError(f"threshold {point.threshold} is not a cosine")
    return scores
