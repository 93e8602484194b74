"""The epoch that a run ends with: whose weights, by which scores, and the same after resuming."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from airnet_cli.config.presets import load_preset, validate_preset
from airnet_cli.core.checkpoint import read_checkpoint
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.errors import PresetError
from airnet_cli.workflows import selection as selection_module
from airnet_cli.workflows.build import build_network, build_validation, training_identities
from airnet_cli.workflows.evaluate import EvaluateOptions, evaluate
from airnet_cli.workflows.selection import Selection
from airnet_cli.workflows.train import Listener, TrainOptions, resume, train


def _ignore(*_: object) -> None: ...


@pytest.mark.parametrize(
    ("overrides", "select"),
    [
        ([], "last"),
        (["training.val_ids=2", "evaluation.every=1"], "val"),
        (["training.val_ids=2", "evaluation.select=last"], "last"),
        (["evaluation.select=test", "evaluation.every=1"], "test"),
        (["training.val_ids=2", "evaluation.select=test", "evaluation.every=1"], "test"),
    ],
)
def test_held_out_people_select_unless_it_is_said_otherwise(tiny_overrides, overrides, select):
    """And what a run records of it means the same when it is read again."""
    preset = load_preset("demo", [*tiny_overrides, *overrides])
    assert preset.evaluation.select == select
    assert validate_preset(preset.model_dump(mode="json"), source="a run") == preset


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluation.select=val", "evaluation.every=1"],
            r'^evaluation\.select = "val" needs peop',
        ),
        (["training.val_ids=2"], r"^evaluation\.select = \"val\" has one epoch to choose from"),
        (["evaluation.select=test"], "has one epoch to choose from"),
        (["training.val_ids=1", "evaluation.every=1"], "val_ids = 1: must be 0, or 2 or more"),
        (["evaluation.select=best"], "should be 'last', 'val' or 'test'"),
    ],
)
def test_a_selection_that_can_not_be_is_refused(tiny_overrides, overrides, message):
    """Before anything is read, in a line that names the setting."""
    with pytest.raises(PresetError, match=message):
        load_preset("demo", [*tiny_overrides, *overrides])


MAPS = [0.3, 0.6, 0.6, 0.5]


@pytest.mark.parametrize(
    ("select", "best"), [("val", 2), ("test", 2), ("last", None)], ids=["val", "test", "last"]
)
def test_the_best_epoch_wins_and_of_equal_ones_the_first(
    tiny_overrides,
    scarce_data_root: Path,
    tmp_path: Path,
    monkeypatch,
    select: str,
    best: int | None,
) -> None:
    """By the scores it is to be chosen by; its weights are saved, and scored at the end."""
    overrides = ["training.epochs=4", "evaluation.every=1", "training.val_ids=2"]
    preset = load_preset("demo", [*tiny_overrides, *overrides, f"evaluation.select={select}"])
    manifest = load_prepared(scarce_data_root, "tiny")
    network = build_network(preset, identities=6)
    (name,) = [n for n in network.state_dict() if n.endswith("heads.A1.classifier.weight")]
    validation = build_validation(preset, manifest)
    asked: list[tuple[str, float]] = []

    def score(network, _, data, *__, training, **___):
        weight = float(network.state_dict()[name].mean())
        asked.append(("test" if data is manifest else "val", weight))
        judges = (data is manifest) == (select != "val")
        mAP = MAPS[training["finished_epochs"] - 1] if judges else 1 - weight / 10
        return SimpleNamespace(whole=SimpleNamespace(mAP=mAP), protocol={"training": training})

    monkeypatch.setattr(selection_module, "score_network", score)
    selection = Selection(
        run=tmp_path,
        preset=preset,
        network=network,
        identities=tuple(range(6)),
        manifest=manifest,
        validation=validation,
        device=torch.device("cpu"),
        best=None,
        progress=_ignore,
    )
    for epoch in range(1, 5):
        with torch.no_grad():
            network.state_dict()[name].fill_(epoch)
        selection.score(epoch)
    asked_of_test = [weight for data, weight in asked if data == "test"]
    assert asked_of_test == ([] if select == "val" else [1, 2, 3, 4])
    assert [weight for data, weight in asked if data == "val"] == [1, 2, 3, 4]
    path = tmp_path / "model.safetensors"
    if best is None:
        assert (selection.best, selection.chooses) == (None, False)
        assert read_checkpoint(path).training["finished_epochs"] == 4
        return
    evaluation = selection.choose()
    assert asked[-1] == ("test", best)
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors[name].unique().tolist() == [best]
    chosen = {"finished_epochs": best, "selection": select, "selection_mAP": 0.6}
    assert chosen.items() <= checkpoint.training.items()
    assert evaluation.protocol["training"] == checkpoint.training
    assert ("optimistic" in selection.explain()) == (select == "test")


def _train(preset, data_root: Path, runs_root: Path, stop_in: str | None = None):
    """A run of `preset`, or Ctrl-C in its epoch `stop_in`; its folder and what was heard."""
    runs, heard = [], []
    listener = Listener(
        started=lambda start: runs.append(start.run),
        noted=heard.append,
        validated=lambda epoch, _: heard.append(epoch),
        evaluated=lambda epoch, _: heard.append(("test", epoch)),
    )

    def stop(stage: str, done: int, *_: object) -> None:
        if stop_in is not None and stage == stop_in:
            raise KeyboardInterrupt

    try:
        roots = {"data_root": data_root, "runs_root": runs_root}
        options = TrainOptions(device="cpu", listener=listener, progress=stop, **roots)
        train(preset, "tiny", options)
    except KeyboardInterrupt:
        assert stop_in is not None
    return runs[0], heard


def _log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_is_chosen_on_held_out_people_and_resumed_the_same(
    tiny_overrides, scarce_data_root: Path, tmp_path: Path
) -> None:
    """The test split is looked at once; record, log and checkpoint agree on the epoch; a run that
    was stopped before an epoch's state was saved ends the same, best weights included.
    """
    overrides = ["training.epochs=3", "training.val_ids=2", "evaluation.every=1"]
    preset = load_preset("demo", [*tiny_overrides, *overrides])
    run, heard = _train(preset, scarce_data_root, tmp_path / "whole")
    assert heard[:3] == [1, 2, 3]
    lines = _log(run)
    assert all("scores" not in line for line in lines)
    maps = [line["validation"]["mAP"] for line in lines]
    epoch = maps.index(max(maps)) + 1
    assert heard[3].startswith(f"weights of epoch {epoch} of 3, the best by mAP on 2 held-out")
    assert heard[4:] == [("test", epoch)]
    scores = json.loads((run / "scores.json").read_text())
    assert scores["protocol"]["selection"] == "val"
    checkpoint = read_checkpoint(run / "model.safetensors")
    assert checkpoint.training["finished_epochs"] == epoch
    assert checkpoint.training["selection_mAP"] == max(maps)
    manifest = load_prepared(scarce_data_root, "tiny")
    assert checkpoint.identities == training_identities(preset, manifest)
    assert len(checkpoint.identities) == 6
    data = lines[0]["validation"]["protocol"]["data"]
    assert data["split_rule"] == "2 training identities, held out with seed 1"
    again = evaluate(
        EvaluateOptions(
            model=run,
            runs_root=tmp_path,
            data_root=scarce_data_root,
            device="cpu",
            workers=0,
        )
    )
    assert again.to_dict() == scores

    stopped, heard = _train(preset, scarce_data_root, tmp_path / "stopped", stop_in="epoch 3/3")
    assert heard[:2] == [1, 2]
    with (stopped / "log.jsonl").open("a") as log:  # as if it was stopped a moment later
        log.write('{"epoch": 3, "loss')
    roots = {"data_root": scarce_data_root, "runs_root": tmp_path}
    resume(stopped, TrainOptions(device="cpu", **roots))
    assert [line["validation"] for line in _log(stopped)] == [line["validation"] for line in lines]
    for name in ("model.safetensors", "training-state.safetensors"):
        expected, found = load_file(run / name), load_file(stopped / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    resumed = json.loads((stopped / "scores.json").read_text())
    assert resumed["mAP"] == scores["mAP"]
    assert resumed["protocol"]["training"] == scores["protocol"]["training"]
