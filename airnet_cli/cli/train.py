"""`airnet train`: a preset becomes a run folder."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airnet_cli.cli.compare import show_comparison
from airnet_cli.cli.options import (
    DEFAULT_DATA_ROOT,
    DEFAULT_RUNS_ROOT,
    DataRootOption,
    DeviceName,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    PresetOption,
    RunsRootOption,
    SeedOption,
    SetOption,
)
from airnet_cli.cli.output import note, percent, print_json, print_table, progress_bars
from airnet_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airnet_cli.config.schema import Preset
    from airnet_cli.core.training import EpochReport
    from airnet_cli.workflows.compare import Comparison
    from airnet_cli.workflows.dry_run import DryRun
    from airnet_cli.workflows.train import Listener, RunStart, TrainedRun, TrainOptions
    from airnet_cli.workflows.variants import Plan, PlannedRun


def train(
    preset: PresetOption = "",
    set_values: SetOption = None,
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    runs: Annotated[
        int,
        typer.Option("--runs", min=1, help="Train so many runs, with seeds S, S+1, S+2, …"),
    ] = 1,
    variants: Annotated[
        str | None,
        typer.Option(
            "--variants",
            metavar="all|NAME,NAME",
            help="Train each of these variants --runs times: what is finished is skipped, what was "
            "stopped goes on; then compare.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with this stopped run folder."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be trained, touching no data or weights."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train AIR-Net by a preset into a run folder; evaluate it.

    Example: airnet train --preset market1501 --variants all --runs 3
    """
    if resume is not None:
        own = preset or set_values or precision or seed is not None or runs > 1 or variants
        if own or dry_run:
            raise UsageError(
                "--resume goes on with the run's own preset: it takes no --preset, --set, "
                "--precision, --seed, --runs, --variants or --dry-run"
            )
        with _options(data_root, runs_root, device) as options:
            from airnet_cli.workflows import train as workflow

            resumed = workflow.resume(resume, options)
        _show_trained(() if resumed is None else (resumed,), json)
        return
    if not preset:
        raise UsageError("which preset? give --preset NAME (see: airnet presets), or --resume RUN")
    from airnet_cli.config.presets import load_preset

    overrides = list(set_values or [])
    if precision is not None:
        overrides.append(f"training.precision={precision}")
    if seed is not None:
        overrides.append(f"training.seed={seed}")
    chosen = load_preset(preset, overrides)
    name = Path(preset).stem
    if variants is not None:
        from airnet_cli.workflows.variants import plan_variants, read_variants

        plan = plan_variants(
            chosen,
            preset_name=name,
            variants=read_variants(variants, overrides),
            runs=runs,
            runs_root=runs_root,
        )
        if dry_run:
            _show_plan(plan, json)
            return
        with _options(data_root, runs_root, device) as options:
            comparison = _train_variants(plan, options)
        show_comparison(comparison, json=json)
    elif dry_run:
        _dry_run(chosen, json)
    else:
        from airnet_cli.workflows import train as workflow

        with _options(data_root, runs_root, device) as options:
            trained = workflow.train_runs(chosen, name, options, runs=runs)
        _show_trained(trained, json)


@contextlib.contextmanager
def _options(data_root: Path, runs_root: Path, device: DeviceName) -> "Iterator[TrainOptions]":
    """What the workflows take, with progress bars for the block."""
    from airnet_cli.workflows.train import TrainOptions

    with progress_bars() as progress:
        yield TrainOptions(
            data_root=data_root,
            runs_root=runs_root,
            device=device,
            listener=_listener(),
            progress=progress,
        )


def _train_variants(plan: "Plan", options: "TrainOptions") -> "Comparison":
    from airnet_cli.workflows.variants import train_variants

    total = len(plan.runs)
    note(f"{total} runs: {plan.count('finished')} finished, {_left(plan)}")
    for variant in dict.fromkeys(each.variant for each in plan.runs):
        runs = [each for each in plan.runs if each.variant == variant]
        note(f"{variant}: " + ", ".join(f"seed {each.seed} {_state(each)}" for each in runs))
    return train_variants(
        plan,
        options,
        on_run=lambda number, run: note(f"run {number} of {total}: {run.variant}, seed {run.seed}"),
    )


def _left(plan: "Plan") -> str:
    left = len(plan.runs) - plan.count("finished")
    if not left:
        return "nothing to train"
    return f"{plan.count('unfinished')} to go on with, {plan.count('missing')} to train"


def _state(run: "PlannedRun") -> str:
    if run.state != "unfinished":
        return run.state
    return f"unfinished ({run.finished_epochs} of {run.preset.training.epochs} epochs)"


def _show_plan(plan: "Plan", json: bool) -> None:
    if json:
        print_json(plan.to_dict())
        return
    rows = [(each.variant, each.seed, _state(each), str(each.run)) for each in plan.runs]
    print_table(["variant", "seed", "state", "run"], rows)


def _dry_run(preset: "Preset", json: bool) -> None:
    from airnet_cli.workflows.dry_run import dry_run

    described = dry_run(preset)
    if json:
        print_json(described.to_dict())
    else:
        _show_dry_run(described)


def _listener() -> "Listener":
    """Prints a line for each event of a run, on stderr."""
    from airnet_cli.workflows.train import Listener

    def started(start: "RunStart") -> None:
        preset = start.preset
        note(
            f"training {preset.model.variant} with {preset.model.backbone} on {preset.data.name}, "
            f"{start.device}, {preset.training.precision}, seed {preset.training.seed}"
        )
        note(f"run folder: {start.run}")
        note("each head: identity + triplet loss, active triplets; i/s: images per second")
        note(_epoch_header(start.heads, preset.training.epochs))

    return Listener(
        started=started,
        noted=lambda text: note(f"note: {text}"),
        epoch_finished=lambda report: note(_epoch_line(report)),
        validated=lambda epoch, evaluation: note(
            f"after epoch {epoch}, held-out people: mAP {percent(evaluation.whole.mAP)}, "
            f"rank-1 {percent(evaluation.whole.cmc_at(1))}"
        ),
        evaluated=lambda epoch, evaluation: note(
            f"after epoch {epoch}: mAP {percent(evaluation.whole.mAP)}, "
            f"rank-1 {percent(evaluation.whole.cmc_at(1))}"
        ),
    )


def _epoch_header(heads: "tuple[str, ...]", epochs: int) -> str:
    """The words over the lines of `_epoch_line`; both fit 80 columns with three heads."""
    width = 2 * len(str(epochs)) + 1
    columns = "".join(f"  {head:^15}" for head in heads)
    return f"{'epoch':>{width}}  {'loss':>5}{columns} {'rate':>8}  i/s"


def _epoch_line(report: "EpochReport") -> str:
    width = max(2 * len(str(report.epochs)) + 1, len("epoch"))
    heads = "".join(
        f"  {head.identity_loss:.2f}+{head.triplet_loss:.3f} {round(100 * head.active_triplets):3}%"
        for head in report.heads
    )
    return (
        f"{f'{report.epoch}/{report.epochs}':>{width}}  {report.loss:.3f}{heads}"
        f" {report.learning_rate:8.1e} {report.images_per_second:4.0f}"
    )


def _show_dry_run(described: "DryRun") -> None:
    print_table(["setting", "value"], list(described.settings()))
    with_classifiers = described.parameters_with_classifiers
    print_table(
        ["network", ""],
        [
            ("heads", ", ".join(described.heads)),
            ("embedding size", described.embedding_size),
            ("parameters without classifiers", described.parameters_without_classifiers),
            (
                "parameters with classifiers",
                "known once the data is" if with_classifiers is None else with_classifiers,
            ),
        ],
    )


def _show_trained(trained: "tuple[TrainedRun, ...]", json: bool) -> None:
    if not trained:  # rank 0 of torchrun's processes shows the runs
        return
    from airnet_cli.workflows.train import summarize

    summary = summarize(trained)
    if json:
        print_json(summary.to_dict())
        return
    rows = [
        (
            str(run.run),
            percent(run.evaluation.whole.mAP),
            percent(run.evaluation.whole.cmc_at(1)),
            f"{run.seconds / 60:.1f}",
        )
        for run in trained
    ]
    if len(trained) > 1:
        rows.append(
            (
                f"mean ± std of {len(trained)} runs",
                f"{percent(summary.mAP.mean)} ± {percent(summary.mAP.std)}",
                f"{percent(summary.rank1.mean)} ± {percent(summary.rank1.std)}",
                "",
            )
        )
    print_table(["run", "mAP", "rank-1", "minutes"], rows)
