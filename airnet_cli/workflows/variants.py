"""Train variants x seeds as one plan: finished runs are skipped, stopped ones are resumed.

A process that trains in a folder locks it (`core/files.py`), so processes with the same plan share
the work, and the lock of a killed one is free again. `plan.py` says which folder is whose.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from airnet_cli.config.schema import Preset
from airnet_cli.core.files import lock_folder
from airnet_cli.errors import CheckpointError, TrainingError
from airnet_cli.workflows.compare import Comparison, compare
from airnet_cli.workflows.plan import Plan, PlannedRun, plan_presets
from airnet_cli.workflows.runs import PRESET, SCORES
from airnet_cli.workflows.train import TrainOptions, refuse_torchrun, train_into


def train_variants(
    plan: Plan,
    preset_name: str,
    options: TrainOptions,
    *,
    on_run: Callable[[int, PlannedRun], None],
) -> Comparison:
    """Train what is not finished of `plan`, and put its runs side by side.

    Runs that another process is training are left to it. A run that fails (its loss is not finite)
    does not keep the others from being trained. `on_run` hears the place in the plan, from 1 on,
    and the run before it is trained.

    Raises:
        TrainingError: a run failed; the others are trained.
        UsageError: torchrun started several processes.
        AirnetError: as `train`.
    """
    refuse_torchrun("--variants")

    def look_up(*presets: Preset) -> Plan:
        return plan_presets(presets, preset_name=preset_name, runs_root=options.runs_root)

    waiting = list(enumerate(plan.runs, start=1))
    failures: list[str] = []
    while waiting:
        taken: list[tuple[int, PlannedRun]] = []
        for number, planned in waiting:
            # Looked up again: hours may have passed since the plan was made.
            (now,) = look_up(planned.preset).runs
            if now.state == "finished":
                continue
            try:
                with _locked(now.run) as is_ours:
                    if not is_ours:
                        taken.append((number, now))
                    elif not (now.run / SCORES).exists():
                        on_run(number, now)
                        train_into(now.run, now.preset, options)
            except TrainingError as error:
                failures.append(f"{now.variant}, seed {now.seed}: {error}")
        if len(taken) == len(waiting):
            break  # all that is left is in other hands
        waiting = taken
    for _, planned in waiting:
        options.listener.noted(f"{planned.run} is being trained by another process; left to it")
    if failures:
        count = "a run" if len(failures) == 1 else f"{len(failures)} runs"
        raise TrainingError(f"{count} of {len(plan.runs)} failed", *failures)
    folders = [each.run for each in look_up(*(each.preset for each in plan.runs)).runs]
    return compare([folder for folder in folders if (folder / PRESET).is_file()])


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[bool]:
    """Lock the folder `run`, creating it if it is missing; remove it if it stays empty."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't make the run folder '{run}': {error.strerror}") from None
    try:
        with lock_folder(run) as is_ours:
            yield is_ours
    finally:
        with contextlib.suppress(OSError):  # not empty: it is a run, or locked
            run.rmdir()
