"""The curves of runs: losses by epoch, scores by epoch, CMC, ROC. Read from the run folders.

One run has a line for each head, several runs a line each, those of one setting alike. What a run
has not (it is not finished, it was not calibrated) has no line, and a panel without lines is left
out.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airnet_cli.core.plots import Line, Panel, check_plottable, draw_panels
from airnet_cli.core.retrieval.calibration import (
    ScoreCalibration,
    calibration_path,
    read_calibration,
)
from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.runs import (
    CHECKPOINT,
    SCORES,
    SEED,
    RecordedRun,
    find_runs,
    labels,
    read_log,
    read_object,
    settings_of,
)

MOST_RUNS = 24
"""More lines than this can't be told apart."""

WHOLE = "whole embedding"


@dataclass(frozen=True)
class DrawnCurves:
    """What was drawn, and what was left out."""

    picture: Path
    notes: tuple[str, ...]
    """A line for each run that lacks something."""


def draw_curves(runs: Sequence[Path], *, output: Path) -> DrawnCurves:
    """Draw the curves of `runs` (run folders, or folders of them) into the picture `output`.

    Raises:
        UsageError: no run or too many, matplotlib is missing, or `output` is no picture's name.
        CheckpointError: a path holds no run, or no epoch of any is finished.
    """
    if not runs:
        raise UsageError("--curves needs run folders, as in: airnet visualize --curves runs/*")
    check_plottable(output)
    found, broken = find_runs(runs)
    notes = [f"left out: {each.run}: {each.reason}" for each in broken]
    curves = [_read(run) for run in found]
    notes += [f"left out: {each.run.run}: no epoch is finished" for each in curves if not each.log]
    notes += [f"{each.run.run} is {each.run.state()}" for each in curves if not each.scores]
    curves = [each for each in curves if each.log]
    if not curves:
        raise CheckpointError(
            f"no epoch of {', '.join(map(str, runs))} is finished: there is nothing to draw yet"
        )
    if len(curves) > MOST_RUNS:
        raise UsageError(
            f"{len(curves)} runs are too many for one figure; give {MOST_RUNS} at most"
        )
    if len(curves) == 1:
        title, panels = curves[0].run.run.resolve().name, _of_one(curves[0])
    else:
        title, panels = f"{len(curves)} runs", _of_several(curves)
    draw_panels(output, [panel for panel in panels if panel.lines], title=title)
    return DrawnCurves(output, tuple(notes))


@dataclass(frozen=True)
class _Curves:
    """All that a run folder knows."""

    run: RecordedRun
    log: list[dict[str, Any]]
    scores: dict[str, Any] | None
    whole_roc: ScoreCalibration | None
    head_rocs: dict[str, ScoreCalibration]


def _read(run: RecordedRun) -> _Curves:
    calibration = read_calibration(calibration_path(run.run / CHECKPOINT))
    return _Curves(
        run,
        read_log(run.run),
        read_object(run.run / SCORES) if run.is_finished else None,
        None if calibration is None else calibration.whole,
        {} if calibration is None else dict(calibration.heads),
    )


def _of_one(curves: _Curves) -> list[Panel]:
    """A line for each head."""
    heads = [head["name"] for head in curves.log[0]["heads"]]

    def of_head(place: int, key: str) -> Line:
        return _by_epoch(
            f"head {heads[place]}", curves.log, lambda line: float(line["heads"][place][key])
        )

    def of_heads(key: str) -> tuple[Line, ...]:
        return tuple(of_head(place, key) for place in range(len(heads)))

    scores = curves.scores or {}
    cmc = {WHOLE: scores, **{f"head {k}": v for k, v in scores.get("heads", {}).items()}}
    rocs = {f"head {name}": roc for name, roc in curves.head_rocs.items()}
    if curves.whole_roc is not None:
        rocs = {WHOLE: curves.whole_roc, **rocs}
    return [
        Panel("Identity loss", "epoch", "cross-entropy", of_heads("identity_loss")),
        Panel("Triplet loss", "epoch", "loss", of_heads("triplet_loss")),
        Panel("Active triplets", "epoch", "share", of_heads("active_triplets")),
        Panel("mAP", "epoch", "mAP, %", _points(_map_line(WHOLE, curves.log))),
        Panel("CMC", "rank", "found, %", tuple(_cmc(n, s) for n, s in cmc.items() if "cmc" in s)),
        _roc_panel(rocs),
    ]


def _of_several(curves: Sequence[_Curves]) -> list[Panel]:
    """A line for each run."""
    names = _names([each.run for each in curves])
    named = list(zip(names, curves, strict=True))

    def mean(key: str) -> Callable[[dict[str, Any]], float]:
        return lambda line: sum(head[key] for head in line["heads"]) / len(line["heads"])

    return [
        Panel("Loss", "epoch", "eq. (7)", _each(named, lambda line: line["loss"])),
        Panel(
            "Active triplets, mean of heads",
            "epoch",
            "share",
            _each(named, mean("active_triplets")),
        ),
        Panel(
            "mAP", "epoch", "mAP, %", _points(*(_map_line(name, each.log) for name, each in named))
        ),
        Panel(
            "CMC",
            "rank",
            "found, %",
            tuple(_cmc(name, each.scores) for name, each in named if each.scores),
        ),
        _roc_panel({name: each.whole_roc for name, each in named if each.whole_roc is not None}),
    ]


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    """What differs between the runs: settings, seeds; the folder where nothing does.

    Where both settings and seeds differ, runs of one setting share a name, and so a colour: more
    lines could not be told apart, and what they spread over is what one wants to see.
    """
    by_settings = labels([settings_of(run.preset) for run in runs])
    sizes = Counter(by_settings)
    if len(sizes) > 1:
        return [
            name if sizes[name] == 1 else f"{name} ({sizes[name]} runs)" for name in by_settings
        ]
    with_seeds = labels([{**settings_of(run.preset), SEED: run.seed} for run in runs])
    if len(set(with_seeds)) == len(runs):
        return with_seeds
    return [f"{name}, {run.run.name}" for name, run in zip(with_seeds, runs, strict=True)]


def _each(
    named: Sequence[tuple[str, _Curves]], value: Callable[[dict[str, Any]], float]
) -> tuple[Line, ...]:
    return tuple(_by_epoch(name, each.log, value) for name, each in named)


def _by_epoch(
    name: str, log: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]
) -> Line:
    return Line(name, tuple(float(line["epoch"]) for line in log), tuple(map(value, log)))


def _map_line(name: str, log: Sequence[dict[str, Any]]) -> Line:
    scored = [line for line in log if "scores" in line]
    return _by_epoch(name, scored, lambda line: 100 * float(line["scores"]["mAP"]))


def _points(*lines: Line) -> tuple[Line, ...]:
    """The lines that have a point at all; none if no line has two: one point is no curve."""
    drawn = tuple(line for line in lines if line.x)
    return drawn if any(len(line.x) > 1 for line in drawn) else ()


def _cmc(name: str, scores: dict[str, Any]) -> Line:
    """Of every rank; of the few in the table where older scores have no more."""
    by_rank = {str(rank): share for rank, share in enumerate(scores.get("cmc_curve", ()), start=1)}
    found = sorted((int(rank), float(share)) for rank, share in (by_rank or scores["cmc"]).items())
    return Line(name, tuple(float(r) for r, _ in found), tuple(100 * share for _, share in found))


def _roc_panel(rocs: dict[str, ScoreCalibration]) -> Panel:
    lines = tuple(
        Line(
            name,
            tuple(point.false_accept_rate for point in roc.points),
            tuple(100 * point.true_accept_rate for point in roc.points),
        )
        for name, roc in rocs.items()
    )
    return Panel("ROC", "false-accept rate", "true-accept rate, %", lines, is_log=True)
