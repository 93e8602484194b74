"""Train variants x seeds as one plan: finished runs are skipped, stopped ones are resumed.

A run belongs to the plan when its recorded preset has the settings and the seed, whatever its name.
A missing one gets a name that follows from the plan,

    runs/PRESET-VARIANT-sSEED-SETTINGS/      SETTINGS: digits that stand for all other settings

so that two processes with the same plan mean the same folder. Seeds come first, variants second:
after each seed there is a whole comparison, paired. A process that trains in a folder locks it
(`core/files.py`), so processes with the same plan share the work, and the lock of a killed one is
free again. A plan that is only shown (`--dry-run`) loads no torch.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airnet_cli.config.presets import changed_preset, overridden_keys
from airnet_cli.config.schema import Preset
from airnet_cli.core.files import lock_folder
from airnet_cli.errors import CheckpointError, TrainingError, UsageError
from airnet_cli.workflows.compare import Comparison, compare
from airnet_cli.workflows.runs import (
    PRESET,
    SCORES,
    SEED,
    VARIANT,
    VARIANTS,
    find_runs,
    settings_key,
    settings_of,
)

if TYPE_CHECKING:
    from airnet_cli.workflows.train import TrainOptions

RunState = Literal["finished", "unfinished", "missing"]


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    preset: Preset
    run: Path
    """Where it is, or will be."""
    state: RunState
    finished_epochs: int

    @property
    def variant(self) -> str:
        """The row of Table 3."""
        return self.preset.model.variant

    @property
    def seed(self) -> int:
        """What it draws from."""
        return self.preset.training.seed


@dataclass(frozen=True)
class Plan:
    """All runs that were asked for, in the order in which they are trained."""

    preset_name: str
    runs_root: Path
    runs: tuple[PlannedRun, ...]

    def count(self, state: RunState) -> int:
        """How many runs are in this state."""
        return sum(each.state == state for each in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `train --variants --dry-run --json` (docs/formats.md)."""
        return {
            "version": 1,
            "plan": [
                {
                    "variant": each.variant,
                    "seed": each.seed,
                    "state": each.state,
                    "run": str(each.run),
                    "finished_epochs": each.finished_epochs,
                    "epochs": each.preset.training.epochs,
                }
                for each in self.runs
            ],
        }


def read_variants(text: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The variants that `--variants` names: `all`, or names between commas.

    `overrides` are the values of `--set`, which must leave the variant alone.

    >>> read_variants("airnet, baseline")
    ('airnet', 'baseline')

    Raises:
        UsageError: a name is no variant, or the variant is set twice.
    """
    if VARIANT in overridden_keys(overrides):
        raise UsageError(f"--variants and --set {VARIANT}=... both say the variant; give one")
    if text.strip() == "all":
        return VARIANTS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise UsageError(
            f"--variants: there is no variant '{unknown[0]}'; give all, or some of "
            f"{','.join(VARIANTS)}"
        )
    return names


def plan_variants(
    preset: Preset, *, preset_name: str, variants: Sequence[str], runs: int, runs_root: Path
) -> Plan:
    """What there is under `runs_root` of `variants`, with `runs` seeds each from the preset's on.

    Nothing is changed on disk.

    Raises:
        PresetError: a seed that the schema refuses.
    """
    first = preset.training.seed
    presets = [
        changed_preset(preset, {VARIANT: variant, SEED: seed}, source=f"of {variant}, seed {seed}")
        for seed in range(first, first + runs)
        for variant in variants
    ]
    planned = _look_up(presets, preset_name, runs_root)
    return Plan(preset_name, runs_root, tuple(planned))


def _look_up(presets: Sequence[Preset], preset_name: str, runs_root: Path) -> list[PlannedRun]:
    """Where the run of each preset is now: of several the one that is furthest."""
    found, _ = find_runs(sorted(path.parent for path in runs_root.glob(f"*/{PRESET}")))
    furthest = {
        (settings_key(settings_of(run.preset)), run.seed): run
        for run in sorted(found, key=lambda run: (run.is_finished, run.finished_epochs))
    }
    planned = []
    for preset in presets:
        settings = settings_of(preset)
        run = furthest.get((settings_key(settings), preset.training.seed))
        if run is not None:
            state: RunState = "finished" if run.is_finished else "unfinished"
            planned.append(PlannedRun(run.preset, run.run, state, run.finished_epochs))
            continue
        # The variant stands in the name already.
        common = settings_key({k: v for k, v in settings.items() if k != VARIANT})
        digits = hashlib.sha256(common.encode()).hexdigest()[:8]
        name = f"{preset_name}-{preset.model.variant}-s{preset.training.seed}-{digits}"
        planned.append(PlannedRun(preset, runs_root / name, "missing", 0))
    return planned


def train_variants(
    plan: Plan, options: "TrainOptions", *, on_run: Callable[[int, PlannedRun], None]
) -> Comparison:
    """Train what is not finished of `plan`, and put its runs side by side.

    Runs that another process is training are left to it. A run that fails (its loss is not finite)
    does not keep the others from being trained. `on_run` is called with the place in the plan, from
    1 on, and the run before it is trained.

    Raises:
        TrainingError: a run failed; the others are trained.
        UsageError: torchrun started several processes.
        AirnetError: as `train`.
    """
    from airnet_cli.workflows import train

    train.refuse_torchrun("--variants")
    failures: list[str] = []
    for number, planned in enumerate(plan.runs, start=1):
        # Looked up again: hours may have passed since the plan was made.
        (now,) = _look_up([planned.preset], plan.preset_name, plan.runs_root)
        if now.state == "finished":
            continue
        try:
            with _locked(now.run) as is_ours:
                if not is_ours:
                    options.listener.noted(
                        f"{now.run} is being trained by another process; left to it"
                    )
                elif not (now.run / SCORES).exists():
                    on_run(number, now)
                    train.train_into(now.run, now.preset, options)
        except TrainingError as error:
            failures.append(f"{now.variant}, seed {now.seed}: {error}")
    if failures:
        count = "a run" if len(failures) == 1 else f"{len(failures)} runs"
        raise TrainingError(f"{count} of {len(plan.runs)} failed", *failures)
    presets = [each.preset for each in plan.runs]
    now_there = _look_up(presets, plan.preset_name, plan.runs_root)
    return compare([each.run for each in now_there if each.state != "missing"])


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
