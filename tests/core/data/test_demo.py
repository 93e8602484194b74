"""The demo data set: repeatable, complete, and not solved by plain pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.data.demo import count_images, generate
from airnet_cli.core.data.demo.figure import Pose, Stand, draw_person
from airnet_cli.core.data.demo.people import count_common_traits, population
from airnet_cli.core.data.demo.scene import HEIGHTS_PX, WIDTHS_PX
from airnet_cli.core.data.records import DISTRACTOR, JUNK, ImageRecord
from airnet_cli.errors import DataError

SEED = 3
SMALL = {"train_identities": 2, "test_identities": 10}
SMALLEST = {"train_identities": 1, "test_identities": 1}

Drawn = tuple[Path, list[ImageRecord]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A set of twelve identities, with all the distractors and junk of the full one."""
    folder = tmp_path_factory.mktemp("small")
    return folder, generate(folder, seed=SEED, processes=1, **SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_seed_gives_the_same_bytes_with_any_number_of_processes(
    small: Drawn, tmp_path: Path
) -> None:
    """Two processes draw what one draws, also in a smaller set; another seed draws others."""
    reports = []
    for name, seed, processes in (("one", SEED, 1), ("two", SEED, 2), ("other", SEED + 1, 1)):
        generate(
            tmp_path / name,
            seed=seed,
            processes=processes,
            progress=lambda *report: reports.append(report),
            **SMALLEST,
        )
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert not set(one.values()) & set(other.values())
    first = {name: data for name, data in one.items() if name.startswith("train/0001_")}
    assert len(first) == 4 * 3
    assert first.items() <= contents(small[0]).items()
    assert reports[0] == ("drawing", 0, len(one), "images")
    assert reports[-1] == ("drawing", len(other), len(other), "images")


def test_records_are_the_files(small: Drawn) -> None:
    """Names say what records say; files are RGB JPEGs of various sizes with something on them."""
    folder, records = small
    assert sorted(record.path for record in records) == sorted(contents(folder))
    sizes = set()
    for record in records:
        split, name = record.path.split("/")
        person, camera, _ = name.split("_")
        assert (split, int(person)) == (record.split, record.person_id)
        assert camera == f"c{record.camera_id}"
        with Image.open(folder / record.path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert WIDTHS_PX[0] <= image.width <= WIDTHS_PX[1]
            assert HEIGHTS_PX[0] <= image.height <= HEIGHTS_PX[1]
            assert np.asarray(image).std() > 8
            sizes.add(image.size)
    assert len(sizes) > 10


def test_splits_are_complete(small: Drawn) -> None:
    """Counts are as promised, splits share nobody, and each query has a match elsewhere."""
    assert count_images() == {"train": 2280, "query": 240, "gallery": 588}
    records = small[1]
    people: dict[str, set[int]] = {}
    for split, count in count_images(**SMALL).items():
        of_split = [record for record in records if record.split == split]
        assert len(of_split) == count
        people[split] = {record.person_id for record in of_split}
    assert people["train"] == {1, 2}
    assert people["query"] == set(range(3, 13))
    assert people["gallery"] == people["query"] | {DISTRACTOR, JUNK}
    gallery = {(r.person_id, r.camera_id) for r in records if r.split == "gallery"}
    for person_id in people["query"]:
        assert len({camera for person, camera in gallery if person == person_id}) == 4


def as_they_are(image: np.ndarray) -> np.ndarray:
    return image.ravel()


def without_cast(image: np.ndarray) -> np.ndarray:
    return ((image - image.mean((0, 1))) / image.std((0, 1))).ravel()


def colour_histogram(image: np.ndarray) -> np.ndarray:
    red, green, blue = (image // 32).astype(int).reshape(-1, 3).T
    return np.sqrt(np.bincount(64 * red + 8 * green + blue, minlength=512))


@pytest.mark.parametrize("features", [as_they_are, without_cast, colour_histogram])
def test_pixels_and_colours_do_not_solve_it(
    features: Callable[[np.ndarray], np.ndarray], small: Drawn
) -> None:
    """The nearest image of another camera by plain features is the right person for few queries."""
    folder, records = small

    def extract(record: ImageRecord) -> np.ndarray:
        with Image.open(folder / record.path) as image:
            return features(np.asarray(image.resize((32, 64)), np.float32))

    gallery = [each for each in records if each.split == "gallery" and each.person_id != JUNK]
    rows = np.stack([extract(record) for record in gallery])
    right = []
    for query in (record for record in records if record.split == "query"):
        distances = ((rows - extract(query)) ** 2).sum(1)
        key = (query.person_id, query.camera_id)
        distances[[(r.person_id, r.camera_id) == key for r in gallery]] = np.inf
        right.append(gallery[distances.argmin()].person_id == query.person_id)
    assert np.mean(right) < 0.4


def test_people_share_clothes_but_differ() -> None:
    """Several wear the same upper colour; no two share more than six of eight traits."""
    people = population(SEED, 60)
    colours = [person.traits[0] for person in people]
    assert max(colours.count(colour) for colour in colours) > 3
    assert max(count_common_traits(a, b) for i, a in enumerate(people) for b in people[:i]) <= 6


@pytest.mark.parametrize("yaw", [0.0, 0.8, 1.57, 3.14, 4.71, -9.0])
def test_a_person_is_painted_from_every_side(yaw: float) -> None:
    """The body has about the given height and does not reach the image's sides."""
    for person in population(SEED, 12):
        image = Image.new("RGB", (200, 400), "white")
        pose = Pose(yaw=yaw, phase=2.0, stride=0.4, arms=0.4)
        draw_person(image, person, pose, Stand(100, 380, 340, pitch=0.1, light=-0.5))
        painted = np.asarray(image).sum(2) < 3 * 255
        rows = np.flatnonzero(painted.any(1))
        assert 0.85 * 340 < rows[-1] - rows[0] < 1.2 * 340
        assert not painted[:, [0, -1]].any()


def test_a_folder_that_cannot_be_made_is_one_plain_line(tmp_path: Path) -> None:
    """A file where the folder should be is a DataError that names it."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"can't be written to .*taken.*choose a data root"):
        generate(tmp_path / "taken", seed=1, **SMALLEST)
