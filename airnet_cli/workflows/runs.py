"""Run folders: their files, finding them, and what tells their settings apart. Needs no torch.

runs/PRESET-DATE-TIME/
  preset.json                  resolved preset, seed, library versions, device: written first
  log.jsonl                    one line per finished epoch
  model.safetensors            the checkpoint, written when the network is scored
  training-state.safetensors   for --resume
  scores.json                  written last: a run that has it is finished
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from airnet_cli.config.presets import validate_preset
from airnet_cli.config.schema import Preset, VariantName
from airnet_cli.errors import CheckpointError, PresetError

PRESET = "preset.json"
LOG = "log.jsonl"
CHECKPOINT = "model.safetensors"
STATE = "training-state.safetensors"
SCORES = "scores.json"

SEED = "training.seed"
VARIANT = "model.variant"

VARIANTS: tuple[str, ...] = get_args(VariantName)
"""In the order of Table 3."""


@dataclass(frozen=True)
class Model:
    """Where a command takes its network from."""

    checkpoint: Path
    run: Path | None
    """The run folder of the checkpoint; None for a checkpoint outside of one."""
    was_chosen: bool
    """True where the user named none, and the newest finished run was taken: worth a note."""


def find_model(path: Path | None, runs_root: Path) -> Model:
    """The checkpoint at `path` (a file or a run folder), or that of the newest finished run.

    Raises:
        CheckpointError: `path` does not exist or has no checkpoint; without `path`: no finished
            run.
    """
    if path is None:
        finished = [scores.parent / CHECKPOINT for scores in runs_root.glob(f"*/{SCORES}")]
        finished = [checkpoint for checkpoint in finished if checkpoint.is_file()]
        if not finished:
            raise CheckpointError(
                f"there is no finished run under '{runs_root}'; train one with "
                "`airnet train --preset NAME`, or give a run or checkpoint"
            )
        newest = max(finished, key=lambda each: (each.stat().st_mtime_ns, each.parent.name))
        return Model(newest, newest.parent, was_chosen=True)
    if path.is_dir():
        if not (path / CHECKPOINT).is_file():
            raise CheckpointError(
                f"'{path}' has no {CHECKPOINT}: it is not a run, or an unfinished one that was not "
                f"scored yet; finish it with `airnet train --resume {path}`"
            )
        return Model(path / CHECKPOINT, path, was_chosen=False)
    if not path.is_file():
        raise CheckpointError(
            f"'{path}' does not exist; give a run folder or a .safetensors checkpoint"
        )
    run = path.parent if path.name == CHECKPOINT and (path.parent / PRESET).is_file() else None
    return Model(path, run, was_chosen=False)


def new_run(runs_root: Path, preset_name: str) -> Path:
    """Make the folder of a new run, named by preset and time, and a number if that is taken.

    Raises:
        CheckpointError: the folder can't be made.
    """
    name = f"{preset_name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        run = runs_root / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise CheckpointError(f"can't make the run folder '{run}': {error.strerror}") from None
        return run


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
    """A run that was found and left out; it is shown with the reason."""

    run: str
    reason: str


def find_runs(paths: Sequence[Path]) -> tuple[list[RecordedRun], list[NotCounted]]:
    """The runs at `paths` (run folders, or folders of run folders), each once; and broken ones.

    Raises:
        CheckpointError: a path does not exist, or is neither.
    """
    folders = {folder.resolve(): folder for path in paths for folder in _run_folders(path)}
    runs: list[RecordedRun] = []
    broken: list[NotCounted] = []
    for run in folders.values():
        try:
            runs.append(read_recorded(run))
        except (CheckpointError, PresetError) as error:
            broken.append(NotCounted(str(run), str(error).replace("\n", "; ")))
    return runs, broken


def read_recorded(run: Path) -> RecordedRun:
    """What the folder `run` says about its training.

    Raises:
        CheckpointError: its preset.json or log.jsonl can't be read.
        PresetError: its preset is not one that this airnet understands.
    """
    path = run / PRESET
    preset = validate_preset(read_object(path).get("preset", {}), source=str(path))
    return RecordedRun(run, preset, len(read_log(run)), (run / SCORES).is_file())


def _run_folders(path: Path) -> list[Path]:
    if (path / PRESET).is_file():
        return [path]
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"'{path}' {what}; give run folders, or a folder of them")
    runs = sorted(preset.parent for preset in path.glob(f"*/{PRESET}"))
    if not runs:
        raise CheckpointError(
            f"'{path}' is no run folder and has none in it (a run folder has {PRESET}); train one "
            "with `airnet train --preset NAME`"
        )
    return runs


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, one per finished epoch; none where there is no log yet.

    Raises:
        CheckpointError: it can't be read.
    """
    path = run / LOG
    try:
        # A run that goes on may be writing its last line: it counts once its end is there.
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        CheckpointError: it can't be read, or has something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' can't be read: it is no JSON object")
    return value


Settings = Mapping[str, object]
"""Dotted keys, as `--set` takes them, and plain JSON values."""

_SAME_SCORES = frozenset({"description", SEED, "training.workers", "evaluation.batch_size"})


def flatten(preset: Preset) -> dict[str, object]:
    """All values of a preset under dotted keys, in the preset's order."""
    return dict(_flatten("", preset.model_dump(mode="json")))


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, below in value.items():
        yield from _flatten(f"{prefix}.{key}" if prefix else key, below)


def settings_of(preset: Preset) -> dict[str, object]:
    """What runs of one setting have in common: all but the seed and what changes no score."""
    return {key: value for key, value in flatten(preset).items() if key not in _SAME_SCORES}


def settings_key(settings: Settings) -> str:
    """Text that is equal for equal settings, whatever the order of their keys."""
    return json.dumps(dict(settings), sort_keys=True)


def differing_keys(settings: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all of `settings`, in the order of the preset."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({show_value(each.get(key)) for each in settings}) > 1]


def labels(settings: Sequence[Settings]) -> list[str]:
    """A label for each of `settings`: its variant, then what is not the same in all of them.

    >>> labels([{"model.variant": "airnet", "training.epochs": 16},
    ...         {"model.variant": "airnet", "training.epochs": 30}])
    ['airnet, epochs=16', 'airnet, epochs=30']
    """
    differing = [key for key in differing_keys(settings) if key != VARIANT]
    shorts = {key: key.rpartition(".")[2] for key in differing}
    uses = Counter(shorts.values())
    names = {key: short if uses[short] == 1 else key for key, short in shorts.items()}
    return [
        ", ".join(
            [str(each[VARIANT])] + [f"{names[key]}={show_value(each.get(key))}" for key in names]
        )
        for each in settings
    ]


def show_value(value: object) -> str:
    """A setting's value for people.

    >>> [show_value(value) for value in (True, [10, 14], "resnet18", 0.2)]
    ['true', '[10, 14]', 'resnet18', '0.2']
    """
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a score over runs, fractions."""

    mean: float
    std: float
    """0 for a single run, which says nothing about others."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (0 for a single value) of `values`, at least one.

    >>> spread([0.25, 0.5, 0.75])
    Spread(mean=0.5, std=0.25)
    """
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
