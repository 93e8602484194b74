"""Runs as their folders record them: preset, scores, log. Read without torch, so it is quick.

What can't be taken into account (a run that is not finished, a file that is broken) is returned
with the reason: it is shown, never dropped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airnet_cli.config.presets import validate_preset
from airnet_cli.config.schema import Preset
from airnet_cli.errors import CheckpointError, PresetError
from airnet_cli.workflows.runs import LOG, PRESET, SCORES


@dataclass(frozen=True)
class RecordedRun:
    """A run folder whose preset could be read."""

    run: Path
    preset: Preset
    finished_epochs: int
    is_finished: bool
    """It has scores."""

    @property
    def seed(self) -> int:
        """The seed that it was trained with."""
        return self.preset.training.seed

    def state(self) -> str:
        """Finished or not, in words."""
        if self.is_finished:
            return "finished"
        return f"unfinished: {self.finished_epochs} of {self.preset.training.epochs} epochs"


@dataclass(frozen=True)
class NotCounted:
    """A run that was found and left out."""

    run: Path
    reason: str


@dataclass(frozen=True)
class FoundRuns:
    """What lies in the folders that were named."""

    runs: tuple[RecordedRun, ...]
    broken: tuple[NotCounted, ...]


def find_recorded(paths: Sequence[Path]) -> FoundRuns:
    """The runs at `paths`: run folders, or folders of run folders; each run once.

    Raises:
        CheckpointError: a path does not exist, or is neither.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        for folder in _run_folders(path):
            folders.setdefault(folder.resolve(), folder)
    runs: list[RecordedRun] = []
    broken: list[NotCounted] = []
    for folder in folders.values():
        try:
            runs.append(read_recorded(folder))
        except (CheckpointError, PresetError) as error:
            broken.append(NotCounted(folder, str(error).replace("\n", "; ")))
    return FoundRuns(tuple(runs), tuple(broken))


def runs_below(folder: Path) -> list[Path]:
    """The run folders directly below `folder`, by name; none where it does not exist."""
    return sorted(path.parent for path in folder.glob(f"*/{PRESET}"))


def read_recorded(run: Path) -> RecordedRun:
    """What the folder `run` says about its training.

    Raises:
        CheckpointError: its preset.json can't be read.
        PresetError: its preset is not one that this airnet understands.
    """
    record = read_object(run / PRESET)
    preset = validate_preset(record.get("preset", {}), source=str(run / PRESET))
    return RecordedRun(run, preset, len(read_log(run)), (run / SCORES).is_file())


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, one per finished epoch; none where there is no log yet.

    Raises:
        CheckpointError: it can't be read, or a line is no JSON object.
    """
    path = run / LOG
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a line may be under way
        lines = [json.loads(line) for line in whole.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from None
    if not all(isinstance(line, dict) for line in lines):
        raise CheckpointError(f"'{path}' can't be read: a line of it is no JSON object")
    return lines


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        CheckpointError: it can't be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' can't be read: it holds no JSON object")
    return value


def _run_folders(path: Path) -> list[Path]:
    if (path / PRESET).is_file():
        return [path]
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"'{path}' {what}; give run folders, or a folder of them")
    runs = runs_below(path)
    if not runs:
        raise CheckpointError(
            f"'{path}' is no run folder and holds none (a run folder has {PRESET}); train one with "
            "`airnet train --preset NAME`"
        )
    return runs
