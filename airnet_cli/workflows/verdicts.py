"""From which score on two images are said to show one person: the user's threshold, or that of the
model's calibration (`airnet evaluate --calibrate`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airnet_cli.core.gallery import Gallery
from airnet_cli.core.retrieval.calibration import (
    Calibration,
    ScoreCalibration,
    calibration_path,
    read_calibration,
)
from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.runs import Model

DEFAULT_FAR = 1e-3
"""The default false-accept rate: one of a thousand pairs of two people scores so high."""


@dataclass(frozen=True)
class Decision:
    """A threshold, and where it comes from."""

    threshold: float
    far: float | None
    """The false-accept rate that was chosen; None for the user's own threshold."""
    calibration: Path | None
    """The calibration file; None for the user's own threshold."""
    data: str | None
    """The data set of the calibration; None for the user's own threshold."""

    def to_dict(self) -> dict[str, Any]:
        """The key `decision` of `match --json`."""
        return {
            "threshold": self.threshold,
            "far": self.far,
            "calibration": None if self.calibration is None else str(self.calibration),
            "data": self.data,
        }


def decide(
    gallery: Gallery,
    heads: Sequence[str],
    model: Model | None,
    *,
    threshold: float | None,
    far: float | None,
) -> tuple[Decision | None, str]:
    """The threshold for scores of `heads`; or None, and a note that says why there is none.

    Raises:
        UsageError: a threshold that is not a cosine, or a threshold and a rate.
        CheckpointError: `far` was asked for and the calibration does not have it.
    """
    if threshold is not None:
        return Decision(threshold, None, None, None), ""
    found, reason = _calibrated(gallery, heads, model, DEFAULT_FAR if far is None else far)
    if found is None and far is not None:
        raise CheckpointError(f"--far {far:g}: {reason}")
    return found, "" if found is not None else f"no verdict: {reason}"


def check_threshold(threshold: float | None, far: float | None) -> None:
    """Refuse, before any work, a threshold that can't be used.

    Raises:
        UsageError: it is not a cosine, or a rate was given too.
    """
    if threshold is not None and far is not None:
        raise UsageError("--threshold and --far both choose a threshold: give one of them")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UsageError(f"threshold {threshold:g} is not a cosine; give a number from -1 to 1")


def _calibrated(
    gallery: Gallery, heads: Sequence[str], model: Model | None, far: float
) -> tuple[Decision | None, str]:
    if model is None:
        return None, (
            "the gallery's model was not found, so there is no calibration; give it "
            "as --checkpoint, or give --threshold"
        )
    path = calibration_path(model.checkpoint)
    calibration = read_calibration(path)
    command = f"`airnet evaluate {model.run or model.checkpoint} --calibrate`"
    if calibration is None:
        return None, (
            "the model has no calibration, which says what a score means; "
            f"{command} measures it, or give --threshold"
        )
    if calibration.fingerprint != gallery.fingerprint:
        return None, f"calibration '{path}' is of another model; measure it again with {command}"
    for setting in ("flip", "normalize_heads"):
        if getattr(calibration, setting) != getattr(gallery, setting):
            return None, (
                f"calibration '{path}' and the gallery differ in {setting}, so its thresholds do "
                "not fit; give --threshold"
            )
    meaning = _meaning(calibration, heads)
    if meaning is None:
        return None, (
            f"heads {', '.join(heads)} together are not calibrated, only each alone and all of "
            f"{', '.join(calibration.heads)}; give --threshold"
        )
    point = meaning.at(far)
    if point is None:
        rates = ", ".join(f"{point.far:g}" for point in meaning.points)
        return None, (
            f"calibration '{path}' has no false-accept rate {far:g}; it was measured on "
            f"{meaning.different_person_pairs:,} pairs of two people and has {rates or 'none'}"
        )
    return Decision(point.threshold, far, path, calibration.data), ""


def _meaning(calibration: Calibration, heads: Sequence[str]) -> ScoreCalibration | None:
    if list(heads) == list(calibration.heads):
        return calibration.whole
    return calibration.heads.get(heads[0]) if len(heads) == 1 else None
