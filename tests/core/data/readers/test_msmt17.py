"""MSMT17: lists and folders held against each other, test people apart from training people."""

from pathlib import Path

import pytest

from airnet_cli.core.data.manifest import SplitCounts
from airnet_cli.core.data.readers import msmt17
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

LISTS = {
    "list_train.txt": [
        "0000/0000_000_01_0303morning_0008_0.jpg 0",
        "0001/0001_000_07_0303morning_0020_1_ex.jpg 1",
    ],
    "list_val.txt": ["0000/0000_001_15_0113noon_0008_0.jpg 0"],
    "list_query.txt": ["0000/0000_000_02_0114afternoon_0019_2.jpg 0"],
    "list_gallery.txt": [
        "0000/0000_001_03_0114afternoon_0020_2.jpg 0",
        "0001/0001_000_03_0114afternoon_0021_2.jpg 1",
    ],
}
FOLDER_OF = {"list_train.txt": 0, "list_val.txt": 0, "list_query.txt": 1, "list_gallery.txt": 1}
COUNTS = {
    "train": SplitCounts(images=3, ids=2, cameras=3),
    "query": SplitCounts(images=1, ids=1, cameras=1),
    "gallery": SplitCounts(images=2, ids=2, cameras=1),
}


@pytest.fixture(autouse=True)
def full(monkeypatch) -> None:
    """Let the miniature count as the full set."""
    monkeypatch.setattr(msmt17, "PUBLISHED", COUNTS)


def lay(root: Path, version: str = "V1") -> Path:
    """Lay out lists and empty files: the reader opens no image."""
    root.mkdir(parents=True, exist_ok=True)
    for name, lines in LISTS.items():
        (root / name).write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            path = root / msmt17.FOLDERS[version][FOLDER_OF[name]] / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def read(root: Path, lists: msmt17.Lists = "train+val") -> msmt17.Reading:
    return msmt17.read(root, lists=lists)


@pytest.mark.parametrize(
    ("version", "train", "test"),
    [("V1", "train", "test"), ("V2", "mask_train_v2", "mask_test_v2")],
)
def test_reads_lists(tmp_path: Path, version: str, train: str, test: str) -> None:
    """Path, person, camera and split of each image; both versions."""
    root = lay(tmp_path / f"MSMT17_{version}", version)
    found = read(tmp_path)
    assert found == read(root)
    assert found.root == root
    assert found.problems == []
    assert found.published == COUNTS
    assert found.records == [
        ImageRecord(f"{train}/0000/0000_000_01_0303morning_0008_0.jpg", 0, 1, "train"),
        ImageRecord(f"{train}/0001/0001_000_07_0303morning_0020_1_ex.jpg", 1, 7, "train"),
        ImageRecord(f"{train}/0000/0000_001_15_0113noon_0008_0.jpg", 0, 15, "train"),
        ImageRecord(f"{test}/0000/0000_000_02_0114afternoon_0019_2.jpg", 10_000, 2, "query"),
        ImageRecord(f"{test}/0000/0000_001_03_0114afternoon_0020_2.jpg", 10_000, 3, "gallery"),
        ImageRecord(f"{test}/0001/0001_000_03_0114afternoon_0021_2.jpg", 10_001, 3, "gallery"),
    ]


def test_list_train_alone(tmp_path: Path) -> None:
    """The images of list_val are checked but not used, and no published count of train holds."""
    found = read(lay(tmp_path), "train")
    assert [r.person_id for r in found.records if r.split == "train"] == [0, 1]
    assert found.problems == []
    assert set(found.published) == {"query", "gallery"}
    assert found.split_rule == (
        "MSMT17 V1 official: list_train alone, list_query, list_gallery; test ids + 10000"
    )


def test_list_train_alone_without_list_val(tmp_path: Path) -> None:
    """It can't be missed then, nor can its images be told from stray ones."""
    (lay(tmp_path) / "list_val.txt").unlink()
    assert read(tmp_path, "train").problems == []
    with pytest.raises(DataError, match=r"list_val\.txt is missing: MSMT17 has list_train"):
        read(tmp_path)


def without_lists(root: Path) -> None:
    lay(root)
    for name in LISTS:
        (root / name).unlink()


def both_in_one(root: Path) -> None:
    lay(root)
    lay(root, "V2")


def two_versions(root: Path) -> None:
    lay(root / "MSMT17_V1")
    lay(root / "MSMT17_V2", "V2")


@pytest.mark.parametrize(
    ("lay_out", "source", "message"),
    [
        pytest.param(lay, "nix", "is not a folder; give the MSMT17_V1", id="none"),
        pytest.param(lay, "train", "only a part of MSMT17; give the folder above it", id="part"),
        pytest.param(lay, "train/0000", "is not MSMT17: it has no lists", id="other"),
        pytest.param(without_lists, ".", r"no list_train\.txt and its siblings", id="no lists"),
        pytest.param(both_in_one, ".", "the images of V1 .* and of V2 .* its own", id="both"),
        pytest.param(
            two_versions, ".", r"more than one copy of MSMT17 \(MSMT17_V1, MSMT17_V2\)", id="two"
        ),
    ],
)
def test_wrong_roots(tmp_path: Path, lay_out, source: str, message: str) -> None:
    """Each is told from the others."""
    lay_out(tmp_path)
    with pytest.raises(DataError, match=message):
        read(tmp_path / source)


def test_missing_images(tmp_path: Path) -> None:
    """An image that a list names and that is not there is named and left out."""
    missing = "test/0001/0001_000_03_0114afternoon_0021_2.jpg"
    (lay(tmp_path) / missing).unlink()
    found = read(tmp_path)
    assert missing not in {record.path for record in found.records}
    assert found.problems == [
        "list_gallery.txt: 1 of 2 images are not in test "
        "(0001/0001_000_03_0114afternoon_0021_2.jpg)",
        "gallery: 1 of 2 images (1 missing)",
        "gallery: 1 of 2 identities (1 missing)",
    ]


def test_images_in_no_list(tmp_path: Path) -> None:
    """They are named; hidden files are none."""
    folder = lay(tmp_path) / "test" / "0001"
    (folder / "0001_009_03_0114afternoon_0021_2.jpg").touch()
    (folder / "._0001_000_03_0114afternoon_0021_2.jpg").touch()
    assert read(tmp_path).problems == [
        "test: 1 images are in no list (0001/0001_009_03_0114afternoon_0021_2.jpg)"
    ]


def test_persons_that_do_not_fit_their_folder(tmp_path: Path) -> None:
    """They are named with their lines; the list is right."""
    path = lay(tmp_path) / "list_train.txt"
    path.write_text(path.read_text().replace("_ex.jpg 1", "_ex.jpg 0"))
    found = read(tmp_path)
    assert found.problems == [
        "list_train.txt: 1 persons are not those of the folder or file name "
        "(line 2: 0001/0001_000_07_0303morning_0020_1_ex.jpg 0)",
        "train: 1 of 2 identities (1 missing)",
    ]
    assert found.records[1].person_id == 0


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        pytest.param("<!DOCTYPE html>", "line 3: '<!DOCTYPE html>'", id="web page"),
        pytest.param("0001/0001_001_03_x.jpg", "line 3: '0001/0001_001_03_x.jpg'", id="no id"),
        pytest.param("0001/0001_001_03_x.jpg -1", "line 3: .* -1'", id="junk"),
        pytest.param("0001/0001_001_16_x.jpg 1", "line 3: .*_16_x", id="camera 16"),
        pytest.param("0001/0001_001_00_x.jpg 1", "line 3: .*_00_x", id="camera 0"),
        pytest.param("../0001_001_03_x.jpg 1", "line 3: '../0001", id="out of the folder"),
        pytest.param(
            "0000/0000_001_15_0113noon_0008_0.jpg 0",
            r"line 1: 0000/0000_001_15_0113noon_0008_0.jpg is in list_train.txt, line 3 already",
            id="in two lists",
        ),
    ],
)
def test_lines_that_say_nothing(tmp_path: Path, line: str, shown: str) -> None:
    """Never skipped or guessed."""
    with (lay(tmp_path) / "list_train.txt").open("a") as file:
        file.write(f"{line}\r\n\n")
    with pytest.raises(DataError, match=f"1 lines that are not MSMT17's: {shown}") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
