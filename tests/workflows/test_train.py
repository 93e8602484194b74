"""Runs from start to finish on drawn people: files, determinism, resuming, what goes wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from airnet_cli.config.presets import load_preset
from airnet_cli.config.schema import Preset
from airnet_cli.errors import (
    AirnetError,
    CheckpointError,
    DataError,
    RuntimeSetupError,
    TrainingError,
    UsageError,
)
from airnet_cli.workflows.dry_run import dry_run
from airnet_cli.workflows.evaluate import evaluate
from airnet_cli.workflows.runs import find_model
from airnet_cli.workflows.train import (
    Listener,
    TrainedRun,
    _check_shared,
    resume,
    summarize,
    train,
    train_runs,
)

Train = Callable[..., TrainedRun]


def _ignore(*_: object) -> None: ...


SILENT = Listener(started=_ignore, noted=_ignore, epoch_finished=_ignore, evaluated=_ignore)


@pytest.fixture
def tiny_preset(tiny_overrides: tuple[str, ...]) -> Preset:
    return load_preset("demo", tiny_overrides)


@pytest.fixture
def train_tiny(tiny_data_root: Path, tmp_path: Path, tiny_preset: Preset) -> Train:
    def run(preset: Preset = tiny_preset, listener: Listener = SILENT) -> TrainedRun:
        return train(
            preset,
            preset_name="tiny",
            data_root=tiny_data_root,
            runs_root=tmp_path / "runs",
            device="cpu",
            listener=listener,
        )

    return run


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_documented_files(tiny_run: Path) -> None:
    """preset.json, log.jsonl, model, training state and scores, each complete."""
    assert {path.name for path in tiny_run.iterdir() if not path.name.startswith("events")} == {
        "preset.json",
        "log.jsonl",
        "model.safetensors",
        "training-state.safetensors",
        "scores.json",
    }
    record = json.loads((tiny_run / "preset.json").read_text())
    assert record["preset"]["training"]["seed"] == 1
    assert record["versions"]["torch"] == metadata.version("torch")
    lines = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [head["name"] for head in lines[0]["heads"]] == ["A1", "A2", "I"]
    assert all(0 <= head["active_triplets"] <= 1 for head in lines[0]["heads"])
    assert lines[1]["learning_rate"] == pytest.approx(lines[0]["learning_rate"] * 0.1)
    assert "scores" not in lines[0]
    assert lines[1]["scores"] == json.loads((tiny_run / "scores.json").read_text())


def test_same_seed_same_losses_and_weights(train_tiny: Train, tiny_run: Path) -> None:
    """A second run with the same seed is the same, bit by bit (defect 11: the seed is recorded)."""
    again = train_tiny().run
    assert _losses(again) == _losses(tiny_run)
    first, second = (load_file(run / "model.safetensors") for run in (tiny_run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_other_losses(
    train_tiny: Train, tiny_run: Path, tiny_overrides: tuple[str, ...]
) -> None:
    """The seed decides weights, batches and augmentation."""
    other = train_tiny(load_preset("demo", [*tiny_overrides, "training.seed=2"])).run
    assert _losses(other) != _losses(tiny_run)


def _stop_in_second_epoch(
    preset: Preset, *, data_root: Path, runs_root: Path
) -> tuple[Path, list[str]]:
    """Ctrl-C in the second epoch: the run folder that is left, and the notes that were heard."""
    runs: list[Path] = []
    notes: list[str] = []
    listener = Listener(
        started=lambda start: runs.append(start.run),
        noted=notes.append,
        epoch_finished=_ignore,
        evaluated=_ignore,
    )

    def stop(stage: str, done: int, *_: object) -> None:
        if stage.startswith("epoch 2/") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            preset,
            preset_name="tiny",
            data_root=data_root,
            runs_root=runs_root,
            device="cpu",
            listener=listener,
            progress=stop,
        )
    (stopped,) = runs
    assert not (stopped / "scores.json").exists()
    return stopped, notes


def test_resumed_run_ends_with_the_same_weights(tiny_run: Path, tiny_data_root: Path) -> None:
    """Ctrl-C in the second epoch, then resuming, gives the undisturbed run's weights and log."""
    stopped, notes = _stop_in_second_epoch(
        load_preset("demo", _overrides_of(tiny_run)),
        data_root=tiny_data_root,
        runs_root=tiny_run.parent / "stopped",
    )
    assert notes == [f"stopped; the finished epochs are saved: airnet train --resume {stopped}"]
    resumed = resume(stopped, data_root=tiny_data_root, device="cpu", listener=SILENT)
    assert resumed.run == stopped
    assert _losses(stopped) == _losses(tiny_run)
    expected, found = (load_file(run / "model.safetensors") for run in (tiny_run, stopped))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.evaluation.whole.mAP == pytest.approx(
        json.loads((tiny_run / "scores.json").read_text())["mAP"], abs=1e-12
    )


@pytest.mark.soak
def test_average_is_saved_scored_and_resumed(
    train_tiny: Train, tmp_path: Path, tiny_data_root: Path, tiny_overrides: tuple[str, ...]
) -> None:
    """With all settings on: the checkpoint has the average and not the weights, its scores are the
    run's, and a resumed run ends the same, weights and average.
    """
    settings = (
        "training.ema_decay=0.9",
        "training.clip_norm=1",
        "training.freeze_epochs=1",
        "training.warmup_epochs=1",
        "training.schedule=cosine",
        "training.pad_crop_px=3",
        "training.label_smoothing=0.1",
    )
    preset = load_preset("demo", [*tiny_overrides, *settings])
    whole = train_tiny(preset)
    model, state = (
        load_file(whole.run / name) for name in ("model.safetensors", "training-state.safetensors")
    )
    assert all(torch.equal(tensor, state[f"average.{name}"]) for name, tensor in model.items())
    name = "heads.A1.classifier.weight"
    assert not torch.equal(model[name], state[f"network.{name}"])

    again = evaluate(
        model=whole.run,
        runs_root=tmp_path,
        data_name=None,
        data_root=tiny_data_root,
        device="cpu",
        precision="fp32",
        batch_size=None,
        workers=0,
        camera_filter=True,
        on_model=_ignore,
    )
    assert again.to_dict() == whole.evaluation.to_dict()

    stopped, _ = _stop_in_second_epoch(
        preset, data_root=tiny_data_root, runs_root=tmp_path / "stopped"
    )
    resume(stopped, data_root=tiny_data_root, device="cpu", listener=SILENT)
    assert _losses(stopped) == _losses(whole.run)
    found = load_file(stopped / "training-state.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())


def _overrides_of(run: Path) -> list[str]:
    """The `--set` values that repeat a run's preset."""
    preset = Preset.model_validate(json.loads((run / "preset.json").read_text())["preset"])
    return [f"{key}={json.dumps(value)}" for key, value in dry_run(preset).settings() if "." in key]


def test_finished_run_is_not_resumed(tiny_run: Path, tiny_data_root: Path) -> None:
    """Resuming a finished run says that it is finished, and changes nothing."""
    with pytest.raises(CheckpointError, match="is finished; there is nothing to resume"):
        resume(tiny_run, data_root=tiny_data_root, device="cpu", listener=SILENT)


def test_resuming_what_is_no_run(tmp_path: Path, scarce_data_root: Path) -> None:
    """A folder without preset.json is no run."""
    with pytest.raises(CheckpointError, match="is no run folder: it has no preset"):
        resume(tmp_path, data_root=scarce_data_root, device="cpu", listener=SILENT)


def test_runs_take_seeds_in_order_and_are_summarized(
    scarce_data_root: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    """`--runs 2` trains seeds S and S+1; mean and sample standard deviation are of their scores."""
    short = tiny_preset.model_copy(
        update={"training": tiny_preset.training.model_copy(update={"epochs": 1})}
    )
    trained = train_runs(
        short,
        preset_name="tiny",
        runs=2,
        data_root=scarce_data_root,
        runs_root=tmp_path,
        device="cpu",
        listener=SILENT,
    )
    seeds = [
        json.loads((each.run / "preset.json").read_text())["preset"]["training"]["seed"]
        for each in trained
    ]
    assert seeds == [1, 2]
    first, second = (each.evaluation.whole.mAP for each in trained)
    summary = summarize(trained)
    assert summary.mAP.mean == pytest.approx((first + second) / 2)
    assert summary.mAP.std == pytest.approx(abs(first - second) / 2**0.5)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        pytest.param("data.name=absent", DataError, "no data set 'absent'", id="data"),
        pytest.param(
            "training.precision=fp16", RuntimeSetupError, "needs a CUDA device", id="fp16"
        ),
        pytest.param(
            "training.identities_per_batch=9", DataError, "are 8 identities", id="few ids"
        ),
        pytest.param("model.init=no/such.pth", AirnetError, "do not exist", id="weights"),
    ],
)
def test_request_that_fails_leaves_no_run_folder(
    train_tiny: Train,
    tmp_path: Path,
    tiny_overrides: tuple[str, ...],
    override: str,
    error: type[AirnetError],
    message: str,
) -> None:
    """What can't be trained is said before a folder is made."""
    with pytest.raises(error, match=message):
        train_tiny(load_preset("demo", [*tiny_overrides, override]))
    assert not (tmp_path / "runs").exists()


def test_newest_finished_run_is_found(tiny_run: Path, tmp_path: Path) -> None:
    """Of two finished runs the newer is taken; an unfinished one never."""
    for name in ("a", "b", "unfinished"):
        shutil.copytree(tiny_run, tmp_path / name)
    (tmp_path / "unfinished" / "scores.json").unlink()
    found = find_model(None, tmp_path)
    assert (found.run, found.was_chosen) == (tmp_path / "b", True)
    assert replace(found, was_chosen=False) == find_model(tmp_path / "b", tmp_path)


def test_no_run_says_how_to_get_one(tmp_path: Path) -> None:
    """Without a finished run the error names the command."""
    with pytest.raises(CheckpointError, match="airnet train --preset NAME"):
        find_model(None, tmp_path)


@pytest.mark.parametrize("name", ["absent", "absent.safetensors"])
def test_a_path_that_was_given_must_exist(tmp_path: Path, name: str) -> None:
    """No fall-back from a mistyped path to another run."""
    with pytest.raises(CheckpointError, match="does not exist"):
        find_model(tmp_path / name, tmp_path)


def test_tensorboard_events_where_the_extra_is_installed(tiny_run: Path) -> None:
    """An epoch's losses per head, and the scores, can be read back by TensorBoard."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = event_accumulator.EventAccumulator(str(tiny_run))
    events.Reload()
    lines = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    for head in range(3):
        name = lines[0]["heads"][head]["name"]
        found = [event.value for event in events.Scalars(f"triplet_loss/{name}")]
        assert found == pytest.approx([line["heads"][head]["triplet_loss"] for line in lines])
    assert [event.step for event in events.Scalars("scores/mAP")] == [2]


def test_several_runs_are_refused_under_torchrun(
    monkeypatch, tiny_preset: Preset, tmp_path: Path
) -> None:
    """The processes that it starts train one run together."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="under torchrun --runs trains no runs one after"):
        train_runs(
            tiny_preset,
            preset_name="tiny",
            runs=2,
            data_root=tmp_path,
            runs_root=tmp_path,
            device="cpu",
            listener=SILENT,
        )


def test_different_training_states_are_refused(tmp_path: Path) -> None:
    """Machines that do not share the folder of runs would go on from different epochs."""
    with pytest.raises(TrainingError, match=r"after 2, 0 epochs; --runs-root must be one folder"):
        _check_shared(tmp_path, [2, 0])
