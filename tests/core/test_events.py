"""TensorBoard events: read back by TensorBoard, there at once, and written without a thread."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from airnet_cli.core.events import writing_events
from airnet_cli.errors import OutputError

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="needs airnet[tensorboard]",
)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events: Any = accumulator.EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in names}


def test_an_epoch_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    """A training that is killed after it keeps it; nothing waits in a queue or a buffer."""
    threads = threading.active_count()
    with writing_events(tmp_path) as write:
        write(1, {"loss": 2.5, "scores/mAP": 0.25})
        assert read(tmp_path) == {"loss": [(1, 2.5)], "scores/mAP": [(1, 0.25)]}
        write(2, {"loss": 1.5})
        assert read(tmp_path) == {"loss": [(1, 2.5), (2, 1.5)], "scores/mAP": [(1, 0.25)]}
        assert threading.active_count() == threads


def test_a_run_that_goes_on_adds_to_what_is_there(tmp_path: Path) -> None:
    """TensorBoard shows one curve."""
    for epoch in (1, 2):
        with writing_events(tmp_path) as write:
            write(epoch, {"loss": 1.0 / epoch})
    assert read(tmp_path) == {"loss": [(1, 1.0), (2, 0.5)]}


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    """As for every file that can't be written."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.rmtree(folder)
    with (
        pytest.raises(OutputError, match=r"can't write '.*events\.out.*': No such file"),
        writing_events(folder),
    ):
        pass


def test_what_goes_wrong_in_the_training_keeps_its_name(tmp_path: Path) -> None:
    """An image that can't be opened is not a file of events that can't be written."""
    with pytest.raises(FileNotFoundError), writing_events(tmp_path):
        (tmp_path / "image.jpg").open()
