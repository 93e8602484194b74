"""The run folder: its name, its files, and which one a command means.

runs/PRESET-DATE-TIME/
  preset.json                  resolved preset, seed, library versions, device: written first
  log.jsonl                    one line per finished epoch
  model.safetensors            the checkpoint, written when the network is scored
  training-state.safetensors   for --resume
  scores.json                  written last: a run that has it is finished
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from airnet_cli.errors import CheckpointError

PRESET = "preset.json"
LOG = "log.jsonl"
CHECKPOINT = "model.safetensors"
STATE = "training-state.safetensors"
SCORES = "scores.json"


@dataclass(frozen=True)
class Model:
    """Where a command takes its network from."""

    checkpoint: Path
    run: Path | None
    """The run folder that holds the checkpoint; None for a checkpoint outside of one."""
    was_chosen: bool
    """True where the user named none, and the newest finished run was taken: worth a note."""


def find_model(path: Path | None, runs_root: Path) -> Model:
    """The checkpoint at `path` (a file or a run folder), or that of the newest finished run.

    Raises:
        CheckpointError: `path` does not exist or holds no checkpoint; without `path`: no finished
        run.
    """
    if path is None:
        finished = finished_runs(runs_root)
        if not finished:
            raise CheckpointError(
                f"there is no finished run under '{runs_root}'; train one with "
                "`airnet train --preset NAME`, or give a run or checkpoint"
            )
        return Model(finished[-1] / CHECKPOINT, finished[-1], was_chosen=True)
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


def finished_runs(runs_root: Path) -> list[Path]:
    """Finished runs, oldest first: by the time at which their checkpoints were written."""
    runs = [path.parent for path in runs_root.glob(f"*/{SCORES}")]
    runs = [run for run in runs if (run / CHECKPOINT).is_file()]
    return sorted(runs, key=lambda run: ((run / CHECKPOINT).stat().st_mtime_ns, run.name))


def new_run(runs_root: Path, preset_name: str) -> Path:
    """Make the folder of a new run, named by preset and time; a number is added where the name is
    taken.

    Raises:
        CheckpointError: the folder can't be made.
    """
    stem = f"{preset_name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        runs_root.mkdir(parents=True, exist_ok=True)
        for number in range(1, MOST_RUNS_A_SECOND):
            run = runs_root / (stem if number == 1 else f"{stem}-{number}")
            try:
                run.mkdir()
            except FileExistsError:
                continue
            return run
    except OSError as error:
        raise CheckpointError(
            f"can't make a run folder under '{runs_root}': {error.strerror}"
        ) from None
    raise CheckpointError(f"'{runs_root}' has too many runs called {stem}; wait a second")


MOST_RUNS_A_SECOND = 100
