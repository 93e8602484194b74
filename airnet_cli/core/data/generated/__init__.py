"""The generated data set: people in a street, drawn from a seed, for demonstrations and tests
without real people.

    person.py  who they are      figure.py  how a body walks and is painted
    scene.py   where they are    camera.py  who looks at them, and what the picture suffers

Laid out like Market-1501: identities of the test are not in the training; each is seen by four of
six cameras, three times by each; the first image of each camera is the query; the gallery
has the others, passers-by whom nobody looks for (`person_id` 0) and bad crops (-1). No torch here.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

from airnet_cli.core.data.generated.camera import CAMERAS, photograph, photograph_junk
from airnet_cli.core.data.generated.person import population
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

_FEW = 200
"""Below so many images, starting processes takes longer than drawing."""


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
        processes = 1 if len(shots) < _FEW else os.cpu_count() or 1
    done = 0
    try:
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
        progress("drawing", 0, len(shots), "images")
        if processes == 1:
            for chunk in chunks:
                done += draw(chunk)
                progress("drawing", done, len(shots), "images")
        else:
            # Spawned, not forked: the caller may have threads (torch), which a fork breaks.
            pool = ProcessPoolExecutor(
                processes, mp_context=get_context("spawn"), initializer=start_worker
            )
            try:
                with reporting_dead_workers("try again"):
                    for drawn in pool.map(draw, chunks):
                        done += drawn
                        progress("drawing", done, len(shots), "images")
            finally:
                pool.shutdown(cancel_futures=True)
    except OSError as error:
        raise DataError(
            f"the generated images can't be written to {folder} ({error.strerror or error}); "
            "choose a data root that is writable and has about 30 MB free"
        ) from None
    return [shot.record() for shot in shots]


def count_images(
    *, train_identities: int = TRAIN_IDENTITIES, test_identities: int = TEST_IDENTITIES
) -> dict[Split, int]:
    """How many images `generate` will draw for each split; the same for every seed.

    >>> count_images()
    {'train': 2280, 'query': 240, 'gallery': 588}
    """
    shots = _plan(0, train_identities, test_identities)
    return {split: sum(shot.split == split for shot in shots) for split in SPLITS}


@dataclass(frozen=True, slots=True)
class _Shot:
    """One image to draw; `figure` is the place in the population of who is on it."""

    split: Split
    person_id: int
    figure: int
    camera_id: int
    shot: int

    def record(self) -> ImageRecord:
        number = "-1" if self.person_id == JUNK else f"{self.person_id:04d}"
        path = f"{self.split}/{number}_c{self.camera_id}_{self.shot:02d}.jpg"
        return ImageRecord(path, self.person_id, self.camera_id, self.split)


def _plan(seed: int, train_identities: int, test_identities: int) -> list[_Shot]:
    """List all images of the data set, in the order of the records."""
    train: list[_Shot] = []
    query: list[_Shot] = []
    gallery: list[_Shot] = []
    identities = train_identities + test_identities
    for person_id in range(1, identities + 1):
        seen_by = Random(f"{seed}/cameras/{person_id}").sample(
            range(1, CAMERA_COUNT + 1), CAMERAS_PER_IDENTITY
        )
        for camera_id in sorted(seen_by):
            for shot in range(SHOTS_PER_CAMERA):
                if person_id <= train_identities:
                    train.append(_Shot("train", person_id, person_id - 1, camera_id, shot))
                elif shot == 0:
                    query.append(_Shot("query", person_id, person_id - 1, camera_id, shot))
                else:
                    gallery.append(_Shot("gallery", person_id, person_id - 1, camera_id, shot))
    extra: list[_Shot] = []
    figure = identities
    for person_id, per_camera in ((JUNK, JUNK_PER_CAMERA), (DISTRACTOR, DISTRACTORS_PER_CAMERA)):
        for camera_id in range(1, CAMERA_COUNT + 1):
            for shot in range(per_camera):
                extra.append(_Shot("gallery", person_id, figure, camera_id, shot))
                figure += 1
    return train + query + extra + gallery


def _draw(folder: Path, seed: int, people_count: int, shots: list[_Shot]) -> int:
    """Draw and write these images of a data set with so many people; returns how many images."""
    people = population(seed, people_count)  # made once in each process
    for shot in shots:
        rng = Random(f"{seed}/image/{shot.person_id}/{shot.camera_id}/{shot.shot}")
        take = photograph_junk if shot.person_id == JUNK else photograph
        image = take(people[shot.figure], seed=seed, camera_id=shot.camera_id, rng=rng)
        path = folder / shot.record().path
        unfinished = path.with_suffix(".tmp")
        image.save(unfinished, "JPEG", quality=90)
        unfinished.replace(path)
    return len(shots)
