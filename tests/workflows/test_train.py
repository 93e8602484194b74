"""Runs from start to finish on drawn people: files, determinism, resuming, what goes wrong."""

import json
import shutil
from collections.abc import Callable
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
    PresetError,
    RuntimeSetupError,
    UsageError,
)
from airnet_cli.workflows.evaluate import EvaluateOptions, evaluate
from airnet_cli.workflows.runs import find_model
from airnet_cli.workflows.train import (
    Listener,
    TrainedRun,
    TrainOptions,
    resume,
    summarize,
    train,
    train_runs,
)

Options = Callable[..., TrainOptions]


@pytest.fixture
def tiny_preset(tiny_overrides: tuple[str, ...]) -> Preset:
    return load_preset("demo", tiny_overrides)


@pytest.fixture
def options(tiny_data_root: Path, tmp_path: Path) -> Options:
    """Options of a training under `tmp_path`, with changes."""

    def make(**changes) -> TrainOptions:
        usual = {"data_root": tiny_data_root, "runs_root": tmp_path / "runs", "device": "cpu"}
        return TrainOptions(**usual | changes)

    return make


def _train(preset: Preset, options: TrainOptions) -> TrainedRun:
    trained = train(preset, "tiny", options)
    assert trained is not None
    return trained


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


def _stop_in_second_epoch(preset: Preset, options: Options, runs_root: Path) -> Path:
    """Ctrl-C in the second epoch: the run folder that is left."""
    notes: list[str] = []

    def stop(stage: str, done: int, *_: object) -> None:
        if stage.startswith("epoch 2/") and done == 2:
            raise KeyboardInterrupt

    listener = Listener(noted=notes.append)
    with pytest.raises(KeyboardInterrupt):
        train(preset, "tiny", options(runs_root=runs_root, listener=listener, progress=stop))
    (stopped,) = runs_root.iterdir()
    assert {path.name for path in stopped.iterdir() if not path.name.startswith("events")} == {
        "preset.json",
        "log.jsonl",
        "training-state.safetensors",
    }
    assert notes == [f"stopped; the finished epochs are saved: airnet train --resume {stopped}"]
    return stopped


def test_resumed_run_ends_with_the_same_weights(
    tiny_run: Path, tiny_preset: Preset, options: Options, tmp_path: Path
) -> None:
    """Ctrl-C in the second epoch, then resuming, gives the undisturbed run's weights and log; so
    do the same seed and the same settings.
    """
    stopped = _stop_in_second_epoch(tiny_preset, options, tmp_path / "stopped")
    with (stopped / "log.jsonl").open("a") as log:
        log.write('{"epoch": 2, "loss": 9}\n{"epo')  # killed before the state was saved
    resumed = resume(stopped, options())
    assert resumed is not None
    assert resumed.run == stopped
    assert _losses(stopped) == _losses(tiny_run)
    expected, found = (load_file(run / "model.safetensors") for run in (tiny_run, stopped))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.evaluation.whole.mAP == pytest.approx(
        json.loads((tiny_run / "scores.json").read_text())["mAP"], abs=1e-12
    )


def test_a_run_that_lacks_only_its_scores_is_resumed(
    tiny_run: Path, options: Options, tmp_path: Path
) -> None:
    """Stopped after the last epoch: it is scored, and ends as the undisturbed run."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    expected = json.loads((run / "scores.json").read_text())
    for name in ("scores.json", "model.safetensors"):
        (run / name).unlink()
    resume(run, options())
    assert json.loads((run / "scores.json").read_text())["mAP"] == expected["mAP"]
    assert (run / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


@pytest.mark.soak
def test_average_is_saved_scored_and_resumed(
    options: Options, tmp_path: Path, tiny_data_root: Path, tiny_overrides: tuple[str, ...]
) -> None:
    """With all settings on: the checkpoint has the average and not the weights, its scores are the
    run's, and a resumed run ends the same, weights and average.
    """
    settings = (
        "training.ema_decay=0.9",
        "training.clip_norm=1",
        "training.warmup_epochs=1",
        "training.schedule=cosine",
        "training.pad_crop_px=3",
        "training.label_smoothing=0.1",
    )
    preset = load_preset("demo", [*tiny_overrides, *settings])
    whole = _train(preset, options())
    model, state = (
        load_file(whole.run / name) for name in ("model.safetensors", "training-state.safetensors")
    )
    assert all(torch.equal(tensor, state[f"average.{name}"]) for name, tensor in model.items())
    name = "heads.A1.classifier.weight"
    assert not torch.equal(model[name], state[f"network.{name}"])

    again = evaluate(
        EvaluateOptions(
            model=whole.run,
            runs_root=tmp_path,
            data_root=tiny_data_root,
            device="cpu",
            workers=0,
        )
    )
    assert again.to_dict() == whole.evaluation.to_dict()

    stopped = _stop_in_second_epoch(preset, options, tmp_path / "stopped")
    resume(stopped, options())
    assert _losses(stopped) == _losses(whole.run)
    found = load_file(stopped / "training-state.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())


def test_finished_run_is_not_resumed(tiny_run: Path, options: Options, tmp_path: Path) -> None:
    """Nor is a folder that is not a run."""
    with pytest.raises(CheckpointError, match="is finished; there is nothing to resume"):
        resume(tiny_run, options())
    with pytest.raises(CheckpointError, match=r"is not a run folder: it has no preset\.json"):
        resume(tmp_path, options())


def test_runs_take_seeds_in_order_and_are_summarized(
    scarce_data_root: Path, options: Options, tiny_overrides: tuple[str, ...]
) -> None:
    """`--runs 2` trains seeds S and S+1; mean and sample standard deviation are of their scores."""
    one_epoch = ("training.epochs=1", "training.learning_rate_epochs=[]")
    preset = load_preset("demo", [*tiny_overrides, *one_epoch])
    trained = train_runs(preset, "tiny", options(data_root=scarce_data_root), runs=2)
    seeds = [
        json.loads((each.run / "preset.json").read_text())["preset"]["training"]["seed"]
        for each in trained
    ]
    assert seeds == [1, 2]
    assert len({_losses(each.run)[0] for each in trained}) == 2
    first, second = (each.evaluation.whole.mAP for each in trained)
    summary = summarize(trained)
    assert summary.mAP.mean == pytest.approx((first + second) / 2)
    assert summary.mAP.std == pytest.approx(abs(first - second) / 2**0.5)


def test_a_seed_that_is_too_large_is_refused_before_the_first_run(
    options: Options, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    """The largest seed has no successor for `--runs 2`."""
    preset = load_preset("demo", [*tiny_overrides, "training.seed=4294967295"])
    with pytest.raises(PresetError) as raised:
        train_runs(preset, "tiny", options(), runs=2)
    assert str(raised.value).splitlines() == [
        "training.seed = 4294967296: should be less than 4294967296",
        "in the preset of run 2 of 2",
    ]
    assert not (tmp_path / "runs").exists()


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
    options: Options,
    tmp_path: Path,
    tiny_overrides: tuple[str, ...],
    override: str,
    error: type[AirnetError],
    message: str,
) -> None:
    """What can't be trained is said before a folder is made."""
    with pytest.raises(error, match=message):
        train(load_preset("demo", [*tiny_overrides, override]), "tiny", options())
    assert not (tmp_path / "runs").exists()


def test_newest_finished_run_is_found(tiny_run: Path, tmp_path: Path) -> None:
    """Of two finished runs the newer is taken; an unfinished one never; a path must exist."""
    with pytest.raises(CheckpointError, match="airnet train --preset NAME"):
        find_model(None, tmp_path)
    for name in ("a", "b", "unfinished"):
        shutil.copytree(tiny_run, tmp_path / name)
    (tmp_path / "unfinished" / "scores.json").unlink()
    found = find_model(None, tmp_path)
    assert (found.run, found.was_chosen) == (tmp_path / "b", True)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_model(tmp_path / "absent", tmp_path)


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
    monkeypatch: pytest.MonkeyPatch, tiny_preset: Preset, options: Options
) -> None:
    """The processes that it starts train one run together."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--runs trains several runs, and the processes of torch"):
        train_runs(tiny_preset, "tiny", options(), runs=2)
