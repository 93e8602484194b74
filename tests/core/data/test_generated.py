"""The generated data set: repeatable, laid out as it says, and not solved by plain pixels."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.data.generated import (
    CAMERA_COUNT,
    TEST_IDENTITIES,
    TRAIN_IDENTITIES,
    count_images,
    generate,
)
from airnet_cli.core.data.generated.camera import LARGEST_HEIGHT_PX, LARGEST_WIDTH_PX
from airnet_cli.core.data.generated.figure import Pose, Stand, draw_person
from airnet_cli.core.data.generated.person import population
from airnet_cli.core.data.records import DISTRACTOR, JUNK, ImageRecord, Split
from airnet_cli.errors import DataError

SEED = 3
SMALL = {"train_identities": 2, "test_identities": 10}
SMALLEST = {"train_identities": 1, "test_identities": 1}

Drawn = tuple[Path, list[ImageRecord]]
Reports = list[tuple[str, int, int | None, str]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A set of twelve identities, with all the distractors and junk of the full one."""
    folder = tmp_path_factory.mktemp("small")
    return folder, generate(folder, seed=SEED, processes=1, **SMALL)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reports]:
    """Two identities drawn from the same seed, and the progress reports meanwhile."""
    folder = tmp_path_factory.mktemp("smallest")
    reports: Reports = []
    generate(
        folder,
        seed=SEED,
        processes=1,
        progress=lambda *report: reports.append(report),
        **SMALLEST,
    )
    return folder, reports


def of(records: list[ImageRecord], *splits: Split) -> list[ImageRecord]:
    return [record for record in records if record.split in splits]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.resize((32, 64)), np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_seed_gives_same_bytes_with_any_number_of_processes(
    smallest: tuple[Path, Reports], tmp_path: Path
) -> None:
    """Two processes draw byte for byte what one draws."""
    generate(tmp_path, seed=SEED, processes=2, **SMALLEST)
    assert contents(tmp_path) == contents(smallest[0])


def test_an_image_does_not_depend_on_how_many_others_there_are(
    small: Drawn, smallest: tuple[Path, Reports]
) -> None:
    """Identity 1 looks the same in a smaller set of the same seed."""
    few, many = contents(smallest[0]), contents(small[0])
    same = [name for name in few if name.startswith("train/0001_")]
    assert len(same) == 4 * 3
    assert all(few[name] == many[name] for name in same)


def test_another_seed_gives_other_images(smallest: tuple[Path, Reports], tmp_path: Path) -> None:
    """No file of another seed has the same bytes."""
    generate(tmp_path, seed=SEED + 1, processes=1, **SMALLEST)
    assert not set(contents(tmp_path).values()) & set(contents(smallest[0]).values())


def test_records_are_the_files(small: Drawn) -> None:
    """Each record has its file, each file its record, and the name says what the record says."""
    folder, records = small
    assert sorted(record.path for record in records) == sorted(contents(folder))
    for record in records:
        split, name = record.path.split("/")
        person, camera, _ = name.split("_")
        assert (split, int(person), camera) == (
            record.split,
            record.person_id,
            f"c{record.camera_id}",
        )


def test_counts_are_those_promised(small: Drawn) -> None:
    """`count_images` says how many images each split will have, before anything is drawn."""
    promised = count_images(**SMALL)
    assert {split: len(of(small[1], split)) for split in promised} == promised


def test_full_set_has_the_size_that_presets_and_docs_are_written_for() -> None:
    """The numbers that the demo's training time and scores rest on."""
    assert (TRAIN_IDENTITIES, TEST_IDENTITIES, CAMERA_COUNT) == (190, 60, 6)
    assert count_images() == {"train": 2280, "query": 240, "gallery": 588}


def test_training_and_test_share_nobody(small: Drawn) -> None:
    """Nobody of the test is trained on; distractors and junk are in the gallery only."""
    _, records = small
    trained = {record.person_id for record in of(records, "train")}
    queried = {record.person_id for record in of(records, "query")}
    gallery = {record.person_id for record in of(records, "gallery")}
    assert trained == {1, 2}
    assert queried == set(range(3, 13))
    assert gallery == queried | {DISTRACTOR, JUNK}


def test_every_query_has_a_right_answer_from_another_camera(
    small: Drawn,
) -> None:
    """A query without one could not be scored."""
    _, records = small
    cameras = defaultdict(set)
    for record in of(records, "gallery"):
        cameras[record.person_id].add(record.camera_id)
    for query in of(records, "query"):
        assert cameras[query.person_id] - {query.camera_id}


def test_images_are_pictures_of_the_promised_size(small: Drawn) -> None:
    """RGB JPEG files within the largest size, none of one colour, sizes varying."""
    folder, records = small
    sizes = set()
    for record in records:
        with Image.open(folder / record.path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.width <= LARGEST_WIDTH_PX
            assert image.height <= LARGEST_HEIGHT_PX
            sizes.add(image.size)
            assert np.asarray(image).std() > 8
    assert len(sizes) > 10


def as_they_are(picture: np.ndarray) -> np.ndarray:
    return picture.ravel()


def without_cast(picture: np.ndarray) -> np.ndarray:
    return ((picture - picture.mean((0, 1))) / picture.std((0, 1))).ravel()


def colour_histogram(picture: np.ndarray) -> np.ndarray:
    red, green, blue = (picture // 32).astype(int).reshape(-1, 3).T
    return np.sqrt(np.bincount(64 * red + 8 * green + blue, minlength=512))


@pytest.mark.parametrize("features", [as_they_are, without_cast, colour_histogram])
def test_pixels_and_colours_do_not_solve_it(
    features: Callable[[np.ndarray], np.ndarray], small: Drawn
) -> None:
    """The nearest image of another camera by plain features is the right person for few queries."""
    folder, records = small
    gallery = [record for record in of(records, "gallery") if record.person_id != JUNK]
    rows = np.stack([features(pixels(folder / record.path)) for record in gallery])
    right = []
    for query in of(records, "query"):
        distances = ((rows - features(pixels(folder / query.path))) ** 2).sum(1)
        for i, record in enumerate(gallery):
            if (record.person_id, record.camera_id) == (query.person_id, query.camera_id):
                distances[i] = np.inf
        right.append(gallery[distances.argmin()].person_id == query.person_id)
    assert np.mean(right) < 0.4


def test_people_share_clothes_but_are_not_alike() -> None:
    """Many wear the upper garment's colour of somebody else; nobody is somebody else's double."""
    people = population(SEED, 60)
    colours = [person.upper_name for person in people]
    assert max(colours.count(colour) for colour in colours) > 3
    likeness = [a.likeness(b) for i, a in enumerate(people) for b in people[:i]]
    assert max(likeness) <= 6


@pytest.mark.parametrize("yaw", [0.0, 0.8, 1.57, 3.14, 4.71, -9.0])
def test_a_person_is_painted_from_every_side(yaw: float) -> None:
    """The body fills about the height it is given and leaves the picture's corners alone."""
    blank = (255, 255, 255)
    for person in population(SEED, 12):
        image = Image.new("RGB", (200, 400), blank)
        pose = Pose(yaw=yaw, phase=Random(1).uniform(0, 6), stride=0.4, arms=0.4, lean=0.0)
        stand = Stand(x=100, ground=380, height=340, pitch=0.1, squeeze=0.1, light=-0.5)
        draw_person(image, person, pose, stand)
        painted = np.asarray(image).sum(2) < 3 * 255
        rows = np.flatnonzero(painted.any(1))
        assert 0.85 * 340 < rows[-1] - rows[0] < 1.2 * 340
        assert not painted[:, [0, -1]].any()


def test_progress_rises_to_the_total(smallest: tuple[Path, Reports]) -> None:
    """Reports go from 0 to the number of images."""
    folder, reports = smallest
    total = len(contents(folder))
    assert reports[0] == ("drawing", 0, total, "images")
    assert reports[-1] == ("drawing", total, total, "images")
    done = [report[1] for report in reports]
    assert done == sorted(done)


def test_a_folder_that_can_not_be_made_is_one_plain_line(tmp_path: Path) -> None:
    """A file in the folder's place is a DataError that names it."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"can't be written to .*taken.*choose a data root"):
        generate(tmp_path / "taken", seed=1, **SMALLEST)
