"""The numbers of a training as TensorBoard events, where `airnet[tensorboard]` is installed.

Written here, an epoch at a time: TensorBoard's own writer hands them to a thread through a queue,
and a signal that comes in the middle of that leaves the thread waiting for two minutes, or makes it
fail.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airnet_cli.errors import OutputError


def event_writer(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """A function that writes the numbers of an epoch, by their names, to a new file in `folder`.

    Without the extra it writes nowhere.

    Raises:
        OutputError: the system refused; the function too.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return lambda _epoch, _numbers: None
    # TensorBoard finds files by the first words, and reads them in the order of their names.
    moment = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    path = folder / f"events.out.tfevents.{moment}"

    def write(event: Event) -> None:
        try:
            with path.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise OutputError(f"can't write '{path}': {error.strerror or error}") from error

    def write_numbers(epoch: int, numbers: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        write(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))

    # What the form of events is called; the first one of a file says so.
    write(Event(wall_time=time.time(), file_version="brain.Event:2"))
    return write_numbers


def epoch_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of an epoch's line in log.jsonl, by name."""
    numbers = {key: line[key] for key in ("loss", "learning_rate", "images_per_second")}
    for head in line["heads"]:
        for key in ("identity_loss", "triplet_loss", "active_triplets"):
            numbers[f"{key}/{head['name']}"] = head[key]
    for key in ("mAP", "mINP"):
        for scored in ("scores", "validation"):
            if scored in line:
                numbers[f"{scored}/{key}"] = line[scored][key]
    return numbers
