"""The demo data set: people in streets, drawn from a seed, for trials and tests.

    people.py  what they look like    figure.py  draws a walking body    scene.py  the cameras

Laid out like Market-1501. No identity is in both training and test. Four of the six cameras see
each one, three times each; the first image of a camera is the query. The gallery has the others,
distractors (`person_id` 0) and junk, which are bad crops (-1). No torch here.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NamedTuple

from airnet_cli.core.data.demo.people import population
from airnet_cli.core.data.demo.scene import CAMERAS, photograph
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.processes import reporting_dead_workers, start_worker
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

__all__ = ["CAMERA_COUNT", "TEST_IDENTITIES", "TRAIN_IDENTITIES", "count_images", "generate"]

TRAIN_IDENTITIES = 190
TEST_IDENTITIES = 60
CAMERA_COUNT = len(CAMERAS)
CAMERAS_PER_IDENTITY = 4
SHOTS_PER_CAMERA = 3
DISTRACTORS_PER_CAMERA = 10
JUNK_PER_CAMERA = 8

FEWEST_FOR_PROCESSES = 200
"""For fewer images, starting processes takes longer than drawing."""


def generate(
    folder: Path,
    *,
    seed: int,
    progress: Progress = silent,
    train_identities: int = TRAIN_IDENTITIES,
    test_identities: int = TEST_IDENTITIES,
    processes: int | None = None,
) -> list[ImageRecord]:
    """Draw the data set into `train`, `query` and `gallery` under `folder`.

    About 3,100 JPEG files of about 64 x 128 pixels (width x height), 13 MB. The same seed gives the
    same bytes with the same version of Pillow, however many processes draw.

    Args:
        folder: made if missing; files of the same names are replaced.
        seed: of people, places and images.
        progress: told "drawing", in "images".
        train_identities: numbered from 1.
        test_identities: numbered from `train_identities + 1`.
        processes: that draw; None: one per processor.

    Returns:
        One record per file, sorted by split, person, camera and shot; paths relative to `folder`.

    Raises:
        DataError: the folder can't be written, or a process that draws died.
    """
    shots = _plan(seed, train_identities, test_identities)
    chunks = [shots[start : start + 32] for start in range(0, len(shots), 32)]
    draw = partial(_draw, folder, seed, 1 + max(shot.figure for shot in shots))
    if processes is None:
        processes = 1 if len(shots) < FEWEST_FOR_PROCESSES else os.cpu_count() or 1
    done = 0
    try:
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
        progress("drawing", 0, len(shots), "images")
        for count in _map(draw, chunks, processes):
            done += count
            progress("drawing", done, len(shots), "images")
    except OSError as error:
        raise DataError(
            f"the drawn images can't be written to {folder} ({error.strerror or error}); "
            "choose a data root that is writable and has about 30 MB free"
        ) from None
    return [shot.record for shot in shots]


def count_images(
    *, train_identities: int = TRAIN_IDENTITIES, test_identities: int = TEST_IDENTITIES
) -> dict[Split, int]:
    """How many images `generate` will draw for each split; the same for every seed.

    >>> count_images()
    {'train': 2280, 'query': 240, 'gallery': 588}
    """
    shots = _plan(0, train_identities, test_identities)
    return {split: sum(shot.record.split == split for shot in shots) for split in SPLITS}


class _Shot(NamedTuple):
    """One image to draw; `figure` is the place in the population of who is on it."""

    figure: int
    record: ImageRecord


def _shot(split: Split, person_id: int, figure: int, camera_id: int, number: int) -> _Shot:
    name = "-1" if person_id == JUNK else f"{person_id:04d}"
    path = f"{split}/{name}_c{camera_id}_{number:02d}.jpg"
    return _Shot(figure, ImageRecord(path, person_id, camera_id, split))


def _plan(seed: int, train_identities: int, test_identities: int) -> list[_Shot]:
    """List all images of the data set, in the order of the records."""
    shots: list[_Shot] = []
    identities = train_identities + test_identities
    all_cameras = range(1, CAMERA_COUNT + 1)
    for person_id in range(1, identities + 1):
        rng = Random(f"{seed}/cameras/{person_id}")
        cameras = sorted(rng.sample(all_cameras, CAMERAS_PER_IDENTITY))
        for camera_id, number in product(cameras, range(SHOTS_PER_CAMERA)):
            split: Split = "query" if number == 0 else "gallery"
            if person_id <= train_identities:
                split = "train"
            shots.append(_shot(split, person_id, person_id - 1, camera_id, number))
    figure = identities
    for person_id, per_camera in ((JUNK, JUNK_PER_CAMERA), (DISTRACTOR, DISTRACTORS_PER_CAMERA)):
        for camera_id, number in product(all_cameras, range(per_camera)):
            shots.append(_shot("gallery", person_id, figure, camera_id, number))
            figure += 1
    by_split = SPLITS.index
    return sorted(shots, key=lambda shot: (by_split(shot.record.split), shot.record.person_id))


def _map(
    draw: Callable[[list[_Shot]], int], chunks: list[list[_Shot]], processes: int
) -> Iterator[int]:
    if processes == 1:
        yield from map(draw, chunks)
        return
    # Spawned, not forked: the caller may have threads (torch), which a fork breaks.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        with reporting_dead_workers("try again"):
            yield from pool.map(draw, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(folder: Path, seed: int, people_count: int, shots: list[_Shot]) -> int:
    """Draw and write these images of a data set with so many people; returns how many images."""
    people = population(seed, people_count)  # made once in each process
    for figure, record in shots:
        rng = Random(f"{seed}/{record.path}")
        is_junk = record.person_id == JUNK
        image = photograph(people[figure], seed, record.camera_id, rng, is_junk=is_junk)
        image.save(folder / record.path, "JPEG", quality=90)
    return len(shots)
