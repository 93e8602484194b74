"""What a plan of variants x seeds has and lacks, read off the run folders. Needs no torch.

A run belongs to the plan when its recorded preset has the settings and the seed, whoever started it
and whatever its name. A missing one gets a name that follows from the plan,

    runs/PRESET-VARIANT-sSEED-SETTINGS/      SETTINGS: digits that stand for all other settings

so that two processes with the same plan mean the same folder. Seeds come first, variants second:
after each seed there is a whole comparison, paired.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from airnet_cli.config.presets import changed_preset, overridden_keys
from airnet_cli.config.schema import Preset
from airnet_cli.errors import UsageError
from airnet_cli.workflows.compare import VARIANTS
from airnet_cli.workflows.recorded import RecordedRun, find_recorded, runs_below
from airnet_cli.workflows.settings import SEED, VARIANT, identity, settings_of

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
    return plan_presets(presets, preset_name=preset_name, runs_root=runs_root)


def plan_presets(presets: Sequence[Preset], *, preset_name: str, runs_root: Path) -> Plan:
    """What there is under `runs_root` of these, each with its own seed."""
    folders = runs_below(runs_root)
    recorded = find_recorded(folders).runs if folders else ()
    return Plan(tuple(_planned(each, preset_name, runs_root, recorded) for each in presets))


def _planned(
    preset: Preset, preset_name: str, runs_root: Path, recorded: Sequence[RecordedRun]
) -> PlannedRun:
    settings = identity(settings_of(preset))
    of_plan = [
        run
        for run in recorded
        if run.seed == preset.training.seed and identity(settings_of(run.preset)) == settings
    ]
    if not of_plan:
        common = identity({k: v for k, v in settings_of(preset).items() if k != VARIANT})
        digits = hashlib.sha256(common.encode()).hexdigest()[:8]
        name = f"{preset_name}-{preset.model.variant}-s{preset.training.seed}-{digits}"
        return PlannedRun(preset, runs_root / name, "missing", 0)
    best = max(of_plan, key=lambda run: (run.is_finished, run.finished_epochs, run.run.name))
    state: RunState = "finished" if best.is_finished else "unfinished"
    return PlannedRun(best.preset, best.run, state, best.finished_epochs)
