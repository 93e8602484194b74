"""Train a preset into a run folder, once or several times; go on with a stopped run.

Processes that torchrun started train as one (`core/distributed.py`): the first of them writes,
scores and is listened to; each returns the same.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from airnet_cli.config.presets import validate_preset
from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import (
    Best,
    library_versions,
    read_training_state,
    write_training_state,
)
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.core.distributed import ALONE, Team, joining, launched_size, leads, remembered
from airnet_cli.core.events import event_writer
from airnet_cli.core.files import lock_folder, remove_parts, write_json, write_text
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.protocol import check_scorable
from airnet_cli.core.runtime import (
    DeviceName,
    check_precision,
    choose_device,
    has_native_bfloat16,
    seed_everything,
)
from airnet_cli.core.spread import Spread, spread
from airnet_cli.core.training import EpochReport, Trainer
from airnet_cli.errors import CheckpointError, DataError, OutputError, TrainingError, UsageError
from airnet_cli.workflows.build import (
    build_network,
    build_trainer,
    build_validation,
    training_identities,
)
from airnet_cli.workflows.evaluate import Evaluation
from airnet_cli.workflows.recorded import read_log
from airnet_cli.workflows.runs import LOG, PRESET, SCORES, STATE, new_run
from airnet_cli.workflows.selection import Selection


@dataclass(frozen=True)
class RunStart:
    """What is about to be trained, and where."""

    run: Path
    preset: Preset
    device: str
    heads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Listener:
    """What a caller hears while a run goes on."""

    started: Callable[[RunStart], None]
    """Training begins (or goes on)."""
    noted: Callable[[str], None]
    """Something worth knowing was noticed."""
    epoch_finished: Callable[[EpochReport], None]
    """An epoch was trained and saved."""
    evaluated: Callable[[int, Evaluation], None]
    """The network was scored on query and gallery after so many finished epochs."""
    validated: Callable[[int, Evaluation], None] = lambda epoch, evaluation: None
    """It was scored on held-out training people."""


def _ignore(*_: object) -> None: ...


SILENT = Listener(started=_ignore, noted=_ignore, epoch_finished=_ignore, evaluated=_ignore)
"""Nobody listens."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished run."""

    run: Path
    evaluation: Evaluation
    seconds: float
    """Of training alone, all epochs of this session."""


def train(
    preset: Preset,
    *,
    preset_name: str,
    data_root: Path,
    runs_root: Path,
    device: DeviceName,
    listener: Listener,
    progress: Progress = silent,
) -> TrainedRun:
    """Train `preset` in a new run folder under `runs_root` and score it.

    Where torchrun started this process again, the run of those before it goes on.

    Raises:
        AirnetError: data, weights, device or precision that can't be had; a loss that is not
        finite; another process of the team that ended.
    """
    seed_everything(preset.training.seed)
    chosen = choose_device(device)

    def make() -> str:
        return str(new_run(runs_root, preset_name))

    with contextlib.ExitStack() as held, joining(chosen) as team:
        return _run(
            preset,
            lambda: held.enter_context(_alone_in(Path(remembered(f"run {preset_name}", make)))),
            data_root=data_root,
            device=chosen,
            team=team,
            listener=listener,
            progress=progress,
        )


def train_into(
    run: Path,
    preset: Preset,
    *,
    data_root: Path,
    device: DeviceName,
    listener: Listener,
    progress: Progress = silent,
) -> TrainedRun:
    """Train `preset` in the folder `run`, which the caller has locked; see `train`.

    A run of `preset` that was stopped there goes on at the start of its first unfinished epoch.
    """
    seed_everything(preset.training.seed)
    return _run(
        preset,
        lambda: run,
        data_root=data_root,
        device=choose_device(device),
        team=ALONE,
        listener=listener,
        progress=progress,
    )


def train_runs(
    preset: Preset,
    *,
    preset_name: str,
    runs: int,
    data_root: Path,
    runs_root: Path,
    device: DeviceName,
    listener: Listener,
    progress: Progress = silent,
) -> tuple[TrainedRun, ...]:
    """Train `runs` runs of `preset`, with its seed S, S+1, S+2, …; see `train`.

    Raises:
        UsageError: several runs by several processes of torchrun.
        AirnetError: as `train`.
    """
    if runs > 1:
        refuse_team("--runs")
    first = preset.training.seed
    return tuple(
        train(
            preset.model_copy(
                update={"training": preset.training.model_copy(update={"seed": seed})}
            ),
            preset_name=preset_name,
            data_root=data_root,
            runs_root=runs_root,
            device=device,
            listener=listener,
            progress=progress,
        )
        for seed in range(first, first + runs)
    )


def resume(
    run: Path,
    *,
    data_root: Path,
    device: DeviceName,
    listener: Listener,
    progress: Progress = silent,
) -> TrainedRun:
    """Go on with a stopped run at the start of its first unfinished epoch.

    Raises:
        CheckpointError: `run` is no run folder, is finished, or is trained by another process.
    """
    recorded = _read_record(run)
    preset = validate_preset(recorded.get("preset", {}), source=str(run / PRESET))
    if (run / SCORES).exists():
        raise CheckpointError(f"run '{run}' is finished; there is nothing to resume")
    seed_everything(preset.training.seed)
    chosen = choose_device(device)
    with contextlib.ExitStack() as held, joining(chosen) as team:
        place = team.tell(lambda: held.enter_context(_alone_in(run)))
        return _run(
            preset,
            lambda: place,
            data_root=data_root,
            device=chosen,
            team=team,
            listener=listener,
            progress=progress,
        )


def speaks() -> bool:
    """Whether this process is the one that is listened to: of several, the first."""
    return leads()


def refuse_team(option: str) -> None:
    """Refuse what trains one run after the other where torchrun started several processes.

    Raises:
        UsageError: it did.
    """
    if launched_size() > 1:
        raise UsageError(
            f"under torchrun {option} trains no runs one after the other; start torchrun once for "
            "each run, with --seed, or airnet without it"
        )


@contextlib.contextmanager
def _alone_in(run: Path) -> Iterator[Path]:
    """Lock the run folder while it is trained: two processes would spoil each other's files."""
    with lock_folder(run) as is_ours:
        if not is_ours:
            raise CheckpointError(
                f"run '{run}' is being trained by another process; wait for it, or stop it first"
            )
        yield run


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


def _run(
    preset: Preset,
    folder: Callable[[], Path],
    *,
    data_root: Path,
    device: torch.device,
    team: Team,
    listener: Listener,
    progress: Progress,
) -> TrainedRun:
    if not team.leads:
        listener, progress = SILENT, silent
    check_precision(preset.training.precision, device)
    manifest = load_prepared(data_root, preset.data.name)
    check_scorable(manifest, camera_filter=preset.evaluation.camera_filter)
    validation = build_validation(preset, manifest)
    network = build_network(preset, identities=len(training_identities(preset, manifest))).to(
        device
    )
    trainer, identities = build_trainer(preset, network, manifest, device=device, team=team)
    run = team.tell(folder)  # only now: a request that can't be carried out leaves no folder behind
    finished, best = 0, None
    if (run / STATE).exists():
        state = read_training_state(
            run / STATE,
            network,
            trainer.optimizer,
            average=_average(trainer),
            scaler=trainer.scaler,
        )
        finished, best = state.finished_epochs, state.best
    _check_shared(run, team.ask(finished))
    if not team.leads:
        for _ in trainer.fit(epochs=preset.training.epochs, first_epoch=finished):
            pass
        return team.tell(_never)
    remove_parts(run)
    if finished:
        _cut_log(run / LOG, finished)
    else:
        write_json(run / PRESET, _record(preset, device, team))
    listener.started(RunStart(run, preset, device.type, network.head_names))
    if preset.training.precision == "bf16" and not has_native_bfloat16(device):
        listener.noted(
            f"this {device.type} has no bfloat16 of its own; --precision fp32 is faster here"
        )

    seconds = 0.0
    evaluation: Evaluation | None = None
    epochs = preset.training.epochs
    selection = Selection(
        run=run,
        preset=preset,
        network=trainer.scored_network,
        identities=identities,
        manifest=manifest,
        validation=validation,
        device=device,
        best=best,
        progress=progress,
    )

    def score(epoch: int, line: dict[str, Any]) -> Evaluation | None:
        scores = selection.score(epoch)
        line |= scores.to_dict()
        if line.get("epoch") == epoch:
            _write_log(run / LOG, line)
        if scores.validation is not None:
            listener.validated(epoch, scores.validation)
        if scores.test is not None:
            listener.evaluated(epoch, scores.test)
        return scores.test

    try:
        if finished:  # it may have been stopped between the state and what follows it
            selection.save(finished)
            line = (read_log(run) or [{}])[-1]
            # Without them, the choice would be another one, or the run or its log would have none.
            is_needed = selection.chooses or finished == epochs or "scores" not in line
            if selection.is_due(finished) and is_needed:
                evaluation = score(finished, line)
        write_events = event_writer(run)
        for report in trainer.fit(epochs=epochs, first_epoch=finished, progress=progress):
            seconds += report.seconds
            line = asdict(report)
            line["images_per_second"] = report.images_per_second
            # Before the state: a line too many is dropped on resuming, a missing one is lost.
            _write_log(run / LOG, line)
            _save(run, trainer, finished_epochs=report.epoch, best=selection.best)
            selection.save(report.epoch)
            listener.epoch_finished(report)
            if selection.is_due(report.epoch):
                evaluation = score(report.epoch, line)
            write_events(report.epoch, _numbers(line))
        if selection.chooses:
            evaluation = selection.choose()
            listener.noted(selection.explain())
            listener.evaluated(evaluation.protocol["training"]["finished_epochs"], evaluation)
    except (KeyboardInterrupt, DataError, OutputError):
        listener.noted(_how_to_go_on(run))
        raise
    assert evaluation is not None  # the last epoch is always scored
    write_json(run / SCORES, evaluation.to_dict())
    trained = TrainedRun(run, evaluation, seconds)
    return team.tell(lambda: trained)


def _never() -> TrainedRun:
    raise AssertionError("the first process tells")


def _check_shared(run: Path, finished: list[int]) -> None:
    """Refuse to go on where the processes of a team see different training states."""
    if len(set(finished)) > 1:
        raise TrainingError(
            f"the processes read different states of run '{run}', after "
            f"{', '.join(map(str, finished))} epochs; --runs-root must be one folder that all "
            "machines share"
        )


def _how_to_go_on(run: Path) -> str:
    if not (run / STATE).exists():
        return f"stopped in the first epoch, which begins anew: airnet train --resume {run}"
    return f"stopped; the finished epochs are saved: airnet train --resume {run}"


def _save(run: Path, trainer: Trainer, *, finished_epochs: int, best: Best | None) -> None:
    write_training_state(
        run / STATE,
        trainer.network,
        trainer.optimizer,
        finished_epochs=finished_epochs,
        average=_average(trainer),
        scaler=trainer.scaler,
        best=best,
    )


def _average(trainer: Trainer) -> AirNet | None:
    return None if trainer.average is None else trainer.average.network


def _record(preset: Preset, device: torch.device, team: Team) -> dict[str, Any]:
    return {
        "version": 1,
        "preset": preset.model_dump(mode="json"),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": team.size,
        "versions": library_versions(),
    }


def _read_record(run: Path) -> dict[str, Any]:
    path = run / PRESET
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{run}' is no run folder: it has no {PRESET}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from None
    return record if isinstance(record, dict) else {}


def _write_log(path: Path, line: dict[str, Any]) -> None:
    """Put the line of an epoch behind those of the epochs before it, in place of an older one."""
    write_text(path, "".join([*_log_lines(path)[: line["epoch"] - 1], json.dumps(line) + "\n"]))


def _cut_log(path: Path, finished: int) -> None:
    """Keep the lines of the first `finished` epochs."""
    lines = _log_lines(path)
    if len(lines) > finished:
        write_text(path, "".join(lines[:finished]))


def _log_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of an epoch's line."""
    numbers = {key: line[key] for key in ("loss", "learning_rate", "images_per_second")}
    for head in line["heads"]:
        for key in ("identity_loss", "triplet_loss", "active_triplets"):
            numbers[f"{key}/{head['name']}"] = head[key]
    for key in ("mAP", "mINP"):
        for scored in ("scores", "validation"):
            if scored in line:
                numbers[f"{scored}/{key}"] = line[scored][key]
    return numbers
