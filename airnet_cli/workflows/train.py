"""Train a preset into a run folder, once or several times; resume a stopped run.

Processes that torchrun started train one run together (`core/distributed.py`): only rank 0 writes,
evaluates and reports.

An epoch ends with its scores where they are due, its line in log.jsonl, and last the training
state. Resuming starts at the state: it drops log lines of later epochs and repeats those epochs.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from airnet_cli.config.presets import changed_preset, validate_preset
from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import (
    Best,
    library_versions,
    read_training_state,
    write_training_state,
)
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.core.distributed import (
    SINGLE,
    World,
    kept_over_restarts,
    launched_rank,
    launched_size,
    process_group,
)
from airnet_cli.core.events import epoch_numbers, event_writer
from airnet_cli.core.files import lock_folder, remove_parts, write_json, write_text
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.protocol import check_scorable
from airnet_cli.core.runtime import (
    DeviceName,
    check_precision,
    choose_device,
    has_native_bfloat16,
    seed_everything,
)
from airnet_cli.core.training import EpochReport, Trainer
from airnet_cli.errors import CheckpointError, DataError, OutputError, TrainingError, UsageError
from airnet_cli.workflows.build import (
    build_network,
    build_trainer,
    build_validation,
    training_identities,
)
from airnet_cli.workflows.evaluate import Evaluation
from airnet_cli.workflows.runs import (
    LOG,
    PRESET,
    SCORES,
    STATE,
    Spread,
    new_run,
    read_object,
    spread,
)
from airnet_cli.workflows.selection import EpochScores, Selection


@dataclass(frozen=True)
class RunStart:
    """What is about to be trained, and where."""

    run: Path
    preset: Preset
    device: str
    heads: tuple[str, ...]


def _ignore(*_: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Listener:
    """What a caller hears while a run goes on."""

    started: Callable[[RunStart], None] = _ignore
    """Training begins or is resumed."""
    noted: Callable[[str], None] = _ignore
    """Something that the user should know."""
    epoch_finished: Callable[[EpochReport], None] = _ignore
    """An epoch was trained and saved."""
    evaluated: Callable[[int, Evaluation], None] = _ignore
    """The network was scored on query and gallery after this number of finished epochs."""
    validated: Callable[[int, Evaluation], None] = _ignore
    """It was scored on held-out training people."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where a training reads and writes, on which device, and who hears of it."""

    data_root: Path
    runs_root: Path
    device: DeviceName
    listener: Listener = Listener()
    progress: Progress = silent


@dataclass(frozen=True)
class TrainedRun:
    """A finished run."""

    run: Path
    evaluation: Evaluation
    seconds: float
    """Of training alone, all epochs of this session."""


def train(preset: Preset, preset_name: str, options: TrainOptions) -> TrainedRun | None:
    """Train `preset` in a new run folder and score it; None on ranks other than 0.

    When torchrun has started this process again, it resumes the run of its first start.

    Raises:
        AirnetError: data, weights, device or precision that can't be had; a loss that is not
            finite; another process that ended.
    """

    def folder() -> Path:
        run = kept_over_restarts(
            f"run {preset_name}", lambda: str(new_run(options.runs_root, preset_name))
        )
        return locks.enter_context(_locked(Path(run)))

    with contextlib.ExitStack() as locks:
        return _train_together(preset, folder, options)


def train_runs(
    preset: Preset, preset_name: str, options: TrainOptions, *, runs: int
) -> tuple[TrainedRun, ...]:
    """Train `runs` runs of `preset`, with its seed S, S+1, S+2, …; none on ranks other than 0.

    Raises:
        UsageError: several runs by several processes of torchrun.
        PresetError: a seed that the schema refuses; nothing was trained.
        AirnetError: as `train`.
    """
    if runs > 1:
        refuse_torchrun("--runs")
    first = preset.training.seed
    presets = [
        changed_preset(preset, {"training.seed": first + run}, source=f"of run {run + 1} of {runs}")
        for run in range(runs)
    ]
    trained = [train(each, preset_name, options) for each in presets]
    return tuple(run for run in trained if run is not None)


def train_into(run: Path, preset: Preset, options: TrainOptions) -> None:
    """Train `preset` in the folder `run`, which the caller has locked; see `train`.

    A run of `preset` that was stopped there is resumed.
    """
    _train(preset, lambda: run, options, choose_device(options.device), SINGLE)


def resume(run: Path, options: TrainOptions) -> TrainedRun | None:
    """Resume a stopped run at the start of its first unfinished epoch; None on other ranks than 0.

    Raises:
        CheckpointError: `run` is not a run folder, is finished, or another process trains it.
        AirnetError: as `train`.
    """
    if not (run / PRESET).exists():
        raise CheckpointError(f"'{run}' is not a run folder: it has no {PRESET}")
    recorded = read_object(run / PRESET)
    preset = validate_preset(recorded.get("preset", {}), source=str(run / PRESET))
    if (run / SCORES).exists():
        raise CheckpointError(f"run '{run}' is finished; there is nothing to resume")
    with _locked(run) if launched_rank() == 0 else contextlib.nullcontext():
        return _train_together(preset, lambda: run, options)


def refuse_torchrun(option: str) -> None:
    """Refuse an option that trains several runs where torchrun started several processes.

    Raises:
        UsageError: it did.
    """
    if launched_size() > 1:
        raise UsageError(
            f"{option} trains several runs, and the processes of torchrun train one run together; "
            "start torchrun once for each run, with --seed, or airnet without torchrun"
        )


@dataclass(frozen=True)
class Summary:
    """Scores over the runs of one preset, as the paper reports them."""

    trained: tuple[TrainedRun, ...]
    mAP: Spread
    rank1: Spread

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `train --json` (docs/formats.md)."""
        return {
            "version": 1,
            "runs": [
                {"run": str(t.run), "seconds": t.seconds, "scores": t.evaluation.to_dict()}
                for t in self.trained
            ],
            "mAP": asdict(self.mAP),
            "rank1": asdict(self.rank1),
        }


def summarize(trained: tuple[TrainedRun, ...]) -> Summary:
    """Mean and sample standard deviation over `trained` (at least one)."""
    return Summary(
        trained=trained,
        mAP=spread([run.evaluation.whole.mAP for run in trained]),
        rank1=spread([run.evaluation.whole.cmc_at(1) for run in trained]),
    )


def _train_together(
    preset: Preset, folder: Callable[[], Path], options: TrainOptions
) -> TrainedRun | None:
    """As `_train`, with all processes that torchrun started."""
    device = choose_device(options.device)
    with process_group(device) as world:
        return _train(preset, folder, options, device, world)


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[Path]:
    """Lock the run folder while it is trained: two processes would spoil each other's files."""
    with lock_folder(run) as is_ours:
        if not is_ours:
            raise CheckpointError(
                f"run '{run}' is being trained by another process; wait for it, or stop it first"
            )
        yield run


def _train(
    preset: Preset,
    folder: Callable[[], Path],
    options: TrainOptions,
    device: torch.device,
    world: World,
) -> TrainedRun | None:
    seed_everything(preset.training.seed)
    check_precision(preset.training.precision, device)
    manifest = load_prepared(options.data_root, preset.data.name)
    check_scorable(manifest, camera_filter=preset.evaluation.camera_filter)
    validation = build_validation(preset, manifest)
    classes = len(training_identities(preset, manifest))
    network = build_network(preset, identities=classes).to(device)
    trainer, identities = build_trainer(preset, network, manifest, device=device, world=world)
    run = world.broadcast(folder)  # only now: a request that fails leaves no folder behind
    finished, best = _restore(run, trainer)
    if finished != (of_first := world.broadcast(lambda: finished)):
        raise TrainingError(
            f"rank {world.rank} finds {finished} finished epochs in run '{run}', rank 0 "
            f"{of_first}; --runs-root must be one folder that all machines share"
        )
    if world.rank > 0:
        for _ in trainer.fit(epochs=preset.training.epochs, first_epoch=finished):
            pass
        world.barrier()
        return None
    selection = Selection(
        run=run,
        preset=preset,
        network=trainer.scored_network,
        identities=identities,
        manifest=manifest,
        validation=validation,
        device=device,
        best=best,
        progress=options.progress,
    )
    _start(trainer, selection, finished, options.listener)
    try:
        trained = _train_epochs(trainer, selection, finished, options)
    except (KeyboardInterrupt, DataError, OutputError):
        options.listener.noted(_how_to_resume(run))
        raise
    world.barrier()
    return trained


def _start(trainer: Trainer, selection: Selection, finished: int, listener: Listener) -> None:
    """Leave in the run folder what belongs to the `finished` epochs, and announce the training."""
    run, preset, device = selection.run, selection.preset, trainer.device
    remove_parts(run)
    _cut_log(run / LOG, finished)
    if not finished:
        write_json(run / PRESET, _record(preset, device, trainer.world))
    listener.started(RunStart(run, preset, device.type, trainer.network.head_names))
    if preset.training.precision == "bf16" and not has_native_bfloat16(device):
        listener.noted(
            f"this {device.type} has no bfloat16 of its own; --precision fp32 is faster here"
        )


def _train_epochs(
    trainer: Trainer, selection: Selection, finished: int, options: TrainOptions
) -> TrainedRun:
    run, epochs, listener = selection.run, selection.preset.training.epochs, options.listener
    seconds = 0.0
    scores: EpochScores | None = None
    write_events = event_writer(run)
    for report in trainer.fit(epochs=epochs, first_epoch=finished, progress=options.progress):
        seconds += report.seconds
        scores = selection.score(report.epoch) if selection.is_due(report.epoch) else None
        line = asdict(report) | {"images_per_second": report.images_per_second}
        line |= scores.to_dict() if scores else {}
        _append(run / LOG, line)
        _save(run, trainer, finished_epochs=report.epoch, best=selection.best)
        write_events(report.epoch, epoch_numbers(line))
        listener.epoch_finished(report)
        if scores and scores.validation:
            listener.validated(report.epoch, scores.validation)
        if scores and scores.test:
            listener.evaluated(report.epoch, scores.test)
    if selection.chooses:
        evaluation = selection.choose()
        listener.noted(selection.explain())
        listener.evaluated(evaluation.protocol["training"]["finished_epochs"], evaluation)
    else:  # without scores, all epochs were finished when it was resumed
        last = scores or selection.score(epochs)
        assert last.test is not None
        evaluation = last.test
    write_json(run / SCORES, evaluation.to_dict())
    return TrainedRun(run, evaluation, seconds)


def _how_to_resume(run: Path) -> str:
    if not (run / STATE).exists():
        return f"stopped before an epoch was saved; begin again: airnet train --resume {run}"
    return f"stopped; the finished epochs are saved: airnet train --resume {run}"


def _restore(run: Path, trainer: Trainer) -> tuple[int, Best | None]:
    """Read the training state of `run` into `trainer`: finished epochs, and the best so far."""
    if not (run / STATE).exists():
        return 0, None
    state = read_training_state(
        run / STATE,
        trainer.network,
        trainer.optimizer,
        average=trainer.average.network if trainer.average else None,
        scaler=trainer.scaler,
    )
    return state.finished_epochs, state.best


def _save(run: Path, trainer: Trainer, *, finished_epochs: int, best: Best | None) -> None:
    write_training_state(
        run / STATE,
        trainer.network,
        trainer.optimizer,
        finished_epochs=finished_epochs,
        average=trainer.average.network if trainer.average else None,
        scaler=trainer.scaler,
        best=best,
    )


def _record(preset: Preset, device: torch.device, world: World) -> dict[str, Any]:
    return {
        "version": 1,
        "preset": preset.model_dump(mode="json"),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "versions": library_versions(),
    }


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OutputError(f"can't write '{path}': {error.strerror}") from error


def _cut_log(path: Path, finished: int) -> None:
    """Keep the lines of the first `finished` epochs."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(lines[:finished]))
