"""TensorBoard events: read back by TensorBoard, there at once, and written without a thread."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from airnet_cli.core.events import event_writer
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
    write = event_writer(tmp_path)
    write(1, {"loss": 2.5, "scores/mAP": 0.25})
    assert read(tmp_path) == {"loss": [(1, 2.5)], "scores/mAP": [(1, 0.25)]}
    write(2, {"loss": 1.5})
    assert read(tmp_path) == {"loss": [(1, 2.5), (2, 1.5)], "scores/mAP": [(1, 0.25)]}
    assert threading.active_count() <= threads


def test_a_run_that_goes_on_adds_to_what_is_there(tmp_path: Path) -> None:
    """TensorBoard shows one curve."""
    for epoch in (1, 2):
        event_writer(tmp_path)(epoch, {"loss": 1.0 / epoch})
    assert read(tmp_path) == {"loss": [(1, 1.0), (2, 0.5)]}


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    """As for every file that can't be written."""
    with pytest.raises(OutputError, match=r"can't write '.*events\.out.*': No such file"):
        event_writer(tmp_path / "absent")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits of a file's size")
def test_an_event_that_fits_in_part_is_one_line(tmp_path: Path) -> None:
    """A disk that is full in the middle of one is not passed over."""
    import resource

    write = event_writer(tmp_path)
    (file,) = tmp_path.iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OutputError, match=r"can't write '.*': File too large"):
            write(1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
