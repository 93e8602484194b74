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
import numpy.typing as npt
import torch
from torch import Tensor

from airnet_cli.core.data.records import DISTRACTOR, JUNK
from airnet_cli.core.files import read_json, write_json
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.distance import BLOCK_BYTES, product, squared_lengths
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

COUNTED_AT_ONCE = 2**22
"""Pairs: many beside the grid, whose counts are added up each time."""

CONVERTED_AT_ONCE = 2**16
"""Pairs that stay in a cache while they become grid points."""

Integers = npt.NDArray[np.int64]


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
    *,
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_person_ids: Integers,
    query_camera_ids: Integers,
    gallery_person_ids: Integers,
    gallery_camera_ids: Integers,
    heads: Mapping[str, slice],
    camera_filter: bool = True,
    progress: Progress = silent,
    query_block: int | None = None,
) -> tuple[ScoreCalibration, dict[str, ScoreCalibration]]:
    """Count the scores of all pairs and read thresholds off the counts: of the whole, of each head.

    Which pairs count follows the evaluation protocol (method: "Evaluation"): junk (id -1) is left
    out; pairs of one person by one camera are left out; distractors (id 0) are other people.

    Every pair is counted. The product of the whole embeddings is the sum of the heads' products, so
    that one pass over the embeddings serves all.

    Args:
        query_embeddings: (Q, D), floats.
        gallery_embeddings: (G, D), floats, on the same device; may be memory-mapped.
        query_person_ids: (Q,) whom each query shows; neither junk nor distractor.
        query_camera_ids: (Q,) which camera took it.
        gallery_person_ids: (G,) whom each gallery image shows.
        gallery_camera_ids: (G,) which camera took it.
        heads: the columns of each head: no column is left out or belongs to two. May be empty.
        camera_filter: whether pairs of one person by one camera are left out; off only for data of
            one camera, where the rates are then better than they would be across cameras.
        progress: told after each block of queries.
        query_block: queries per matrix product; None picks as many as about 100 MB hold.

    Raises:
        EvaluationError: there is no pair of one person, or none of two; an embedding is not finite,
            or a head's part of it has no direction.
    """
    rows = np.flatnonzero(gallery_person_ids != JUNK)
    if not len(rows) or not len(query_person_ids):
        raise EvaluationError("there is no pair to calibrate on; queries and gallery are needed")
    same_person = _SamePerson(
        gallery_person_ids[rows], gallery_camera_ids[rows] if camera_filter else None
    )
    parts = list(heads.values()) or [slice(None)]
    whole, alone = _Counts(), [_Counts() for _ in heads]
    squared = [
        [
            squared_lengths(embeddings[:, part], rows=of, metric="cosine", name=name)
            for part in parts
        ]
        for name, embeddings, of in (
            ("query", query_embeddings, np.arange(len(query_embeddings))),
            ("gallery", gallery_embeddings, rows),
        )
    ]
    query_squared, gallery_squared = squared
    whole_query = torch.stack(query_squared).sum(dim=0).sqrt()  # (Q,)
    whole_gallery = torch.stack(gallery_squared).sum(dim=0).sqrt()  # (G,)
    size = query_block or max(1, BLOCK_BYTES // (4 * len(rows)))
    total = len(query_person_ids)
    device = gallery_embeddings.device
    products, cosines = torch.empty(2, min(size, total), len(rows), device=device)
    progress("calibrating", 0, total, "queries")
    for first in range(0, total, size):
        block = slice(first, min(first + size, total))
        own = same_person.of(query_person_ids[block], query_camera_ids[block])
        summed, scores = products[: block.stop - first], cosines[: block.stop - first]  # (B, G)
        for number, part in enumerate(parts):
            product(
                query_embeddings[block, part], gallery_embeddings[:, part], rows=rows, out=scores
            )
            if number:
                summed += scores
            else:
                summed.copy_(scores)
            if heads:
                scores /= query_squared[number][block, None].sqrt()
                scores /= gallery_squared[number].sqrt()
                alone[number].add(scores.cpu().numpy(), own)
        summed /= whole_query[block, None]
        summed /= whole_gallery
        whole.add(summed.cpu().numpy(), own)
        progress("calibrating", block.stop, total, "queries")
    return whole.read_off(), {
        name: counts.read_off() for name, counts in zip(heads, alone, strict=True)
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """The P pairs of one person in a block of queries."""

    rows: Integers
    """(P,) in the block."""
    columns: Integers
    """(P,) among the gallery rows that are compared."""
    is_counted: npt.NDArray[np.bool_]
    """(P,) whether two cameras took them, where that matters."""


class _SamePerson:
    """The gallery's images of each query's person, without a table of all pairs."""

    def __init__(self, person_ids: Integers, camera_ids: Integers | None) -> None:
        self.by_person = np.argsort(person_ids, kind="stable")
        self.person_ids = person_ids[self.by_person]
        self.camera_ids = camera_ids
        """None: the camera does not matter."""

    def of(self, person_ids: Integers, camera_ids: Integers) -> _Pairs:
        """The pairs of a block of queries (B,), distractors excepted: they are nobody."""
        begin = self.person_ids.searchsorted(person_ids, side="left")
        counts = self.person_ids.searchsorted(person_ids, side="right") - begin
        counts[person_ids == DISTRACTOR] = 0
        rows = np.repeat(np.arange(len(person_ids)), counts)
        ends = counts.cumsum()
        columns = self.by_person[np.arange(ends[-1]) + np.repeat(begin - ends + counts, counts)]
        is_counted = np.ones(len(rows), np.bool_)
        if self.camera_ids is not None:
            is_counted = self.camera_ids[columns] != camera_ids[rows]
        return _Pairs(rows, columns, is_counted)


class _Counts:
    """How many pairs of one person, and of two, there are at each grid point."""

    def __init__(self) -> None:
        self.same = np.zeros(2 * STEPS + 1, np.int64)  # (S,) S = grid points from -1 to 1
        self.different = np.zeros_like(self.same)

    def add(self, scores: npt.NDArray[np.float32], own: _Pairs) -> None:
        """Count the scores (B, G) of a block of queries."""
        places = np.empty(min(COUNTED_AT_ONCE, scores.size), np.intp)
        flat = scores.reshape(-1)
        for begin in range(0, len(flat), len(places)):
            part = flat[begin : begin + len(places)]
            for start in range(0, len(part), CONVERTED_AT_ONCE):
                piece = slice(start, start + CONVERTED_AT_ONCE)
                places[piece][: len(part[piece])] = grid_places(part[piece])
            self.different += np.bincount(places[: len(part)], minlength=len(self.different))
        # All pairs were counted: those of one person are few, and are taken out again.
        places = grid_places(scores[own.rows, own.columns])
        self.different -= np.bincount(places, minlength=len(self.different))
        self.same += np.bincount(places[own.is_counted], minlength=len(self.same))

    def read_off(self) -> ScoreCalibration:
        """Thresholds and rates; see `read_off`."""
        return read_off(self.same, self.different)


def grid_places(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """The grid point at or under each score (cosines, -1 to 1), counted from -1.

    >>> grid_places(np.array([-1, 0, 1], dtype=np.float32)) / STEPS - 1
    array([-1.,  0.,  1.])
    """
    # A power of two, so scaling rounds nothing; rounding errors beyond 1 belong to 1. Whole numbers
    # up to 2 * STEPS are exact in float32.
    steps = scores * np.float32(STEPS)
    np.floor(steps, out=steps)
    np.clip(steps, -STEPS, STEPS, out=steps)
    steps += STEPS
    return steps.astype(np.intp)


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
        flags = {key: record[key] for key in ("camera_filter", "normalize_heads", "flip")}
        if any(type(flag) is not bool for flag in flags.values()):
            raise ValueError(f"{', '.join(flags)} must be true or false")
        return Calibration(
            fingerprint=str(record["fingerprint"]),
            data=str(record["data"]),
            precision=str(record["precision"]),
            whole=_scores(record["whole"]),
            heads={name: _scores(scores) for name, scores in record["heads"].items()},
            **flags,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"calibration '{path}' can't be read ({type(error).__name__}: {error}); write it again "
            "with `airnet evaluate --calibrate`"
        ) from None


def _scores(record: Mapping[str, Any]) -> ScoreCalibration:
    points = tuple(OperatingPoint(**point) for point in record["points"])
    scores = ScoreCalibration(**{**record, "points": points})
    pairs = (scores.same_person_pairs, scores.different_person_pairs)
    if any(type(count) is not int or count < 1 for count in pairs):
        raise ValueError(f"pairs {pairs}")
    rates = [scores.equal_error_rate]
    rates += [rate for p in points for rate in (p.far, p.false_accept_rate, p.true_accept_rate)]
    thresholds = [scores.equal_error_threshold, *(point.threshold for point in points)]
    if not all(_is_number(rate) and 0 <= rate <= 1 for rate in rates):
        raise ValueError("a rate is not between 0 and 1")
    # The highest is one step above 1, which no score reaches.
    if not all(_is_number(each) and -1 <= each <= 1 + 1 / STEPS for each in thresholds):
        raise ValueError("a threshold is no cosine")
    return scores


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
