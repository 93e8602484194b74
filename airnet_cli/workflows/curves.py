"""Loss and score curves of runs as one image, drawn by matplotlib (the extra `airnet[plots]`).

All values are read from the run folders. A run without scores has no line in the panels of scores.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airnet_cli.core.files import replacing
from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.runs import (
    SCORES,
    SEED,
    RecordedRun,
    find_runs,
    labels,
    read_log,
    read_object,
    settings_of,
)

Points = list[tuple[float, float]]
Epoch = dict[str, Any]

LONGEST_NAME = 50
"""In characters, so that two fit next to each other in the legend."""


@dataclass(frozen=True)
class DrawnCurves:
    """What was drawn, and what was left out."""

    image: Path
    notes: tuple[str, ...]
    """A line for each run that could not be read, or lacks epochs or scores."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes with a curve for each run."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[tuple[str, Points]]
    """The run's name and its points. Runs of one name share a color and a legend entry."""


def draw_curves(runs: Sequence[Path], *, output: Path) -> DrawnCurves:
    """Draw the curves of `runs` (run folders, or folders of them) into the PNG file `output`.

    Raises:
        UsageError: no run is given, matplotlib is missing, or `output` does not end in .png.
        CheckpointError: a path contains no run, or no run has a finished epoch.
        OutputError: `output` can't be written.
    """
    if not runs:
        raise UsageError("--curves needs run folders, as in: airnet visualize --curves runs/*")
    if output.suffix.lower() != ".png":
        raise UsageError(f"'{output}' does not end in .png, and curves are drawn as PNG only")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UsageError(
            "curves are drawn by matplotlib, which is not installed: pip install 'airnet[plots]'"
        ) from None
    found, broken = find_runs(runs)
    notes = [f"left out: {each.run}: {each.reason}" for each in broken]
    notes += [f"{run.run} is {run.state()}" for run in found if not run.is_finished]
    started = [run for run in found if run.finished_epochs]
    if not started:
        raise CheckpointError(
            f"no epoch of {', '.join(map(str, runs))} is finished, so there is nothing to draw yet"
        )
    _draw([panel for panel in panels_of(started) if panel.curves], output)
    return DrawnCurves(output, tuple(notes))


def panels_of(runs: Sequence[RecordedRun]) -> list[Panel]:
    """The curves of `runs`; a panel may be empty."""
    names = _names(runs)
    logs = [read_log(run.run) for run in runs]
    scored = [[epoch for epoch in log if "scores" in epoch] for log in logs]
    finished = [(name, run) for name, run in zip(names, runs, strict=True) if run.is_finished]

    def by_epoch(
        title: str, y_label: str, value: Callable[[Epoch], float], logs: list[list[Epoch]] = logs
    ) -> Panel:
        curves = [
            (name, [(float(epoch["epoch"]), value(epoch)) for epoch in log])
            for name, log in zip(names, logs, strict=True)
            if log
        ]
        return Panel(title, "epoch", y_label, curves)

    return [
        by_epoch("Loss", "eq. (7)", lambda epoch: epoch["loss"]),
        by_epoch("Identity loss, mean of heads", "cross-entropy", _mean("identity_loss")),
        by_epoch("Triplet loss, mean of heads", "loss", _mean("triplet_loss")),
        by_epoch("Active triplets, mean of heads", "share", _mean("active_triplets")),
        by_epoch("mAP", "mAP, %", lambda epoch: 100 * epoch["scores"]["mAP"], scored),
        Panel("CMC", "rank", "queries with a match, %", [(n, _cmc(run)) for n, run in finished]),
    ]


def _mean(key: str) -> Callable[[Epoch], float]:
    return lambda epoch: sum(head[key] for head in epoch["heads"]) / len(epoch["heads"])


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    """What differs between the runs: their settings, or their seeds where settings are equal.

    A run is named by its folder if it is the only one, or if its settings are too long to print.
    """
    names = labels([settings_of(run.preset) for run in runs])
    if len(set(names)) == 1:
        names = labels([{**settings_of(run.preset), SEED: run.seed} for run in runs])
    use_folder = len(runs) == 1 or max(map(len, names)) > LONGEST_NAME
    return [run.run.resolve().name for run in runs] if use_folder else names


def _cmc(run: RecordedRun) -> Points:
    """Rank and percentage; older scores have only the ranks of the table."""
    scores = read_object(run.run / SCORES)
    curve = dict(enumerate(scores.get("cmc_curve", ()), start=1)) or scores["cmc"]
    return sorted((float(rank), 100 * float(share)) for rank, share in curve.items())


def _draw(panels: Sequence[Panel], output: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows + 0.6), layout="constrained")
    names = list(dict.fromkeys(name for panel in panels for name, _ in panel.curves))
    handles = {}
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name, points in panel.curves:
            index = names.index(name)
            (handles[name],) = axes.plot(
                *zip(*points, strict=True),
                color=f"C{index % 10}",
                linestyle=("-", "--", ":")[index // 10 % 3],
                marker="." if len(points) <= 25 else None,
            )
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=2,
    )
    with replacing(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
