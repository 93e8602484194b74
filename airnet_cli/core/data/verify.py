"""Open and decode every image once, in worker processes, before anything is built on it.

A broken image found here costs seconds; found by a training run, it costs the run. No torch here:
each worker imports Pillow only.
"""

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.core.data.images import try_open_image
from airnet_cli.core.processes import reporting_dead_workers, start_worker
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, listed

CHUNK = 256
"""Images per task: a tenth of a second of decoding or more, so that handing out costs nothing."""


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that can't be decoded."""

    path: str
    """Relative to the root."""
    reason: str


def verify_images(
    root: Path, paths: Iterable[str], *, workers: int, progress: Progress = silent
) -> tuple[BadImage, ...]:
    """Decode every image fully and return the bad ones, sorted by path.

    A path that is given twice is opened once.

    Args:
        root: folder that `paths` are relative to.
        paths: of the images, with forward slashes.
        workers: processes; 0 decodes in this process.
        progress: told after every chunk.

    Raises:
        DataError: a worker process died.
    """
    ordered = sorted(set(paths))
    chunks = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]
    bad: list[BadImage] = []
    done = 0
    progress("checking images", done, len(ordered), "images")
    # Starting a process takes longer than one chunk.
    if workers == 0 or len(chunks) <= 1:
        for chunk in chunks:
            bad += _decode_all(root, chunk)
            done += len(chunk)
            progress("checking images", done, len(ordered), "images")
        return tuple(bad)

    # spawn: a fork of a process that has threads (torch's, a progress bar's) may hang.
    executor = ProcessPoolExecutor(
        min(workers, len(chunks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
    )
    try:
        tasks: dict[Future[list[BadImage]], int] = {
            executor.submit(_decode_all, root, chunk): len(chunk) for chunk in chunks
        }
        with reporting_dead_workers("try again with --workers 0"):
            for task in as_completed(tasks):
                bad += task.result()
                done += tasks[task]
                progress("checking images", done, len(ordered), "images")
    finally:
        executor.shutdown(cancel_futures=True)
    return tuple(sorted(bad, key=lambda image: image.path))


def raise_for_bad(root: Path, bad: Sequence[BadImage]) -> None:
    """Raise one DataError that lists the first ten bad images; nothing for none."""
    if not bad:
        return
    noun = "image" if len(bad) == 1 else "images"
    raise DataError(
        f"{len(bad):,} {noun} under {root} can't be read: "
        f"{listed([f'{image.path} ({image.reason})' for image in bad])}; "
        "replace or remove them and try again"
    )


def _decode_all(root: Path, paths: Sequence[str]) -> list[BadImage]:
    """Decode some images; top level, so that a spawned process finds it."""
    found = ((path, _problem(root / path)) for path in paths)
    return [BadImage(path=path, reason=reason) for path, reason in found if reason is not None]


def _problem(path: Path) -> str | None:
    """Say in a few words why an image can't be read, as training would; None if it can."""
    image = try_open_image(path)
    return image if isinstance(image, str) else None
