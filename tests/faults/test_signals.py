"""Ctrl-C and SIGTERM in the middle of real commands, and two commands at one place.

The commands hang at a chosen function, so that a signal, a second signal and a second command come
at a known moment. How signals are handled in general: tests/cli/test_stopping.py.
"""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from airnet_cli.cli.app import app

pytestmark = pytest.mark.slow

EAGER = {"airnet_cli.workflows.embed_parts:PART_IMAGES": 4}
"""Each batch is brought to disk, so that there is something to keep."""


def signals(usual: signal.Signals) -> pytest.MarkDecorator:
    """Both signals with exit code and last word; `usual` in each run, the other in soak tests."""
    known = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
    cases = [
        pytest.param(
            number, *said, id=number.name, marks=() if number == usual else pytest.mark.soak
        )
        for number, said in known.items()
    ]
    return pytest.mark.parametrize(("number", "code", "word"), cases)


@dataclass(frozen=True)
class Work:
    """A command that takes its time."""

    words: list[Any]
    place: Path
    """What it writes."""
    again: list[Any]
    """The words of a second one at the same place."""
    taken: str
    """What the second one says."""


@pytest.fixture
def training(scarce_data_root: Path, tiny_overrides: tuple[str, ...], tmp_path: Path) -> Work:
    sets = [word for each in tiny_overrides for word in ("--set", each)]
    where = ["--data-root", scarce_data_root]
    sets += ["--set", "training.workers=1"]
    run = tmp_path / "runs" / "one"
    return Work(
        words=["train", "-p", "demo", *sets, "--runs-root", run.parent, *where],
        place=run.parent,
        again=["train", *where, "--resume"],
        taken="is being trained by another process; wait for it, or stop it first",
    )


@pytest.fixture
def embedding(untrained_run: Path, tmp_path: Path) -> Work:
    crops = tmp_path / "crops"
    crops.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (12, 40, 20, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(crops / f"{number:02}.png")
    output = tmp_path / "out" / "gallery.npy"
    model = ["--checkpoint", untrained_run]
    words = ["embed", crops, "-o", output, *model, "--batch-size", "4"]
    return Work(
        words=words,
        place=output.parent,
        again=[*words, "--resume"],
        taken="is being written by another process; wait for it, or choose another place with -o",
    )


def the_run(training: Work) -> Path:
    (run,) = training.place.iterdir()
    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}


def one_line_of(words: list[Any]) -> str:
    """What a command in this process says that can't be carried out."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    return line


@signals(signal.SIGTERM)
def test_training_keeps_its_finished_epochs(nursery, training, number, code, word) -> None:
    """Stopped after the first epoch: its state is whole, the log has it, nothing else is left; and
    `--resume` goes on there.
    """
    pid = nursery.start(*training.words, "--set", "training.epochs=40")
    nursery.wait_until(" 1/40 ")
    os.kill(pid, number)
    ended = nursery.wait()
    run = the_run(training)
    note, last = ended.output.splitlines()[-2:]
    assert (ended.code, last) == (code, word), ended.output
    assert note == f"note: stopped; the finished epochs are saved: airnet train --resume {run}"
    saved = {"preset.json", "log.jsonl", "training-state.safetensors"}
    assert names(run) == saved
    with safe_open(run / "training-state.safetensors", framework="pt") as file:
        finished = int(file.metadata()["finished_epochs"])
    assert 1 <= finished < 40
    lines = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines[:finished]] == [*range(1, finished + 1)]
    # Going on begins after them; that it ends as if nothing had been: test_killed.py.
    pid = nursery.start(*training.again, run)
    nursery.wait_until(f"{finished + 1}/40 ")
    os.kill(pid, number)
    assert nursery.wait().code == code


@signals(signal.SIGINT)
def test_a_training_keeps_others_out(nursery, training, number, code, word) -> None:
    """A second one says so and stops; the first one, stopped in its first epoch, keeps it open."""
    pid = nursery.start(*training.words, hang="airnet_cli.workflows.train:_save")
    nursery.wait_until("hanging")
    run = the_run(training)
    assert one_line_of([*training.again, run]) == f"error: run '{run}' {training.taken}"
    os.kill(pid, number)
    ended = nursery.wait()
    expected = f"note: stopped before an epoch was saved; begin again: airnet train --resume {run}"
    assert (ended.code, ended.output.splitlines()[-2:]) == (code, [expected, word])
    assert names(run) == {"preset.json", "log.jsonl"}


def test_a_stop_while_the_readers_start_is_one_word(nursery, training) -> None:
    """torch's loader, half made, has a finalizer that fails; of that nothing is said."""
    pid = nursery.start(*training.words, hang="torch.multiprocessing:Queue")
    nursery.wait_until("hanging")
    os.kill(pid, signal.SIGINT)
    ended = nursery.wait()
    run = the_run(training)
    note = f"note: stopped before an epoch was saved; begin again: airnet train --resume {run}"
    assert (ended.code, ended.output.splitlines()[-3:]) == (130, ["hanging", note, "interrupted"])


@signals(signal.SIGINT)
def test_embedding_keeps_its_finished_batches(nursery, embedding, number, code, word) -> None:
    """A second command is kept out; after the signal there is no gallery yet, but its rows, and
    with `--resume` it is that of an undisturbed command.
    """
    whole = nursery.run(*embedding.words)
    assert whole.code == 0, whole.output
    expected = {path.name: path.read_bytes() for path in embedding.place.iterdir()}
    for path in embedding.place.iterdir():
        path.unlink()
    hang = "airnet_cli.workflows.embed:write_gallery"
    pid = nursery.start(*embedding.words, set=EAGER, hang=hang)
    nursery.wait_until("hanging")
    gallery = embedding.place / "gallery.npy"
    assert one_line_of(embedding.again) == f"error: gallery '{gallery}' {embedding.taken}"
    os.kill(pid, number)
    ended = nursery.wait()
    note = "note: 12 images are done; resume with the same command and --resume"
    assert (ended.code, ended.output.splitlines()[-2:]) == (code, [note, word])
    assert not gallery.exists()
    resumed = nursery.run(*embedding.again, set=EAGER)
    assert resumed.code == 0, resumed.output
    assert "resuming after 12 of 12 images" in resumed.output
    assert {path.name: path.read_bytes() for path in embedding.place.iterdir()} == expected


@signals(signal.SIGTERM)
def test_a_second_signal_leaves_at_once(nursery, training, number, code, word) -> None:
    """Also in the middle of a training that is being ended; what is saved stays."""
    hang = "airnet_cli.workflows.train:_how_to_resume"
    pid = nursery.start(*training.words, "--set", "training.epochs=40", hang=hang)
    nursery.wait_until(" 1/40 ")
    os.kill(pid, number)
    nursery.wait_until("hanging")
    os.kill(pid, signal.SIGTERM)
    ended = nursery.wait()
    assert ended.code == code
    assert ended.output.splitlines()[-1] == "hanging", "it says no more"
    with safe_open(the_run(training) / "training-state.safetensors", framework="pt") as file:
        assert int(file.metadata()["finished_epochs"]) >= 1
