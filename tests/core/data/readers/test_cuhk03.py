"""CUHK03 as image folders: labels from file names, the right one of two cuts."""

from pathlib import Path

import pytest

from airnet_cli.core.data.manifest import SplitCounts, count_splits
from airnet_cli.core.data.readers import cuhk03
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

FILES = [
    "bounding_box_train/0001_c1_1.png",
    "bounding_box_train/0001_c2_6.jpg",
    "bounding_box_train/Thumbs.db",
    "query/0003_c1_22.png",
    "bounding_box_test/0003_c1_21.png",
    "bounding_box_test/1463_c2_7.png",
    "bounding_box_test/._1463_c2_7.png",
]


def lay(root: Path, files: list[str] = FILES) -> Path:
    """Lay out empty files: the reader opens none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_reads_labels(tmp_path: Path) -> None:
    """Person, camera and split of each image, `.png` or `.jpg`; hidden files are none."""
    assert cuhk03.read(lay(tmp_path)) == [
        ImageRecord("bounding_box_train/0001_c1_1.png", 1, 1, "train"),
        ImageRecord("bounding_box_train/0001_c2_6.jpg", 1, 2, "train"),
        ImageRecord("query/0003_c1_22.png", 3, 1, "query"),
        ImageRecord("bounding_box_test/0003_c1_21.png", 3, 1, "gallery"),
        ImageRecord("bounding_box_test/1463_c2_7.png", 1463, 2, "gallery"),
    ]


def test_parent_folders_do_not_label(tmp_path: Path) -> None:
    """Field notes, defect 8: a folder named like an image changes no label."""
    plain = cuhk03.read(lay(tmp_path / "plain"))
    assert cuhk03.read(lay(tmp_path / "0042_c1_3" / "labeled")) == plain


@pytest.mark.parametrize(
    "file",
    [
        "query/0003_c3_1.png",
        "query/0000_c1_1.png",
        "query/-1_c1_1.png",
        "query/003_c1_1.png",
        "query/0003_c1s1_000451_03.jpg",
        "query/1_001_1_01.png",
        "bounding_box_train/0003_c1_1 (1).png",
    ],
)
def test_names_that_say_nothing_are_listed(tmp_path: Path, file: str) -> None:
    """Any other name is an error that names it, never skipped or guessed."""
    root = lay(tmp_path, [*FILES, file])
    with pytest.raises(DataError) as caught:
        cuhk03.read(root)
    assert f"1 file names under {root} are not those of CUHK03's new protocol: {file};" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("laid", "source", "found"),
    [
        pytest.param(["labeled"], "labeled", "labeled", id="itself"),
        pytest.param(["labeled", "detected"], ".", "labeled", id="above"),
        pytest.param(["np/labeled", "np/detected"], ".", "np/labeled", id="two above"),
        pytest.param(["images"], "images", "images", id="of any other name"),
        pytest.param(["a/b/labeled"], ".", None, id="too deep"),
        pytest.param([], ".", None, id="nothing"),
    ],
)
def test_finds_root(tmp_path: Path, laid: list[str], source: str, found: str | None) -> None:
    """The folder of these boxes, or one or two above it."""
    for folder in laid:
        lay(tmp_path / folder)
    expected = None if found is None else tmp_path / found
    assert cuhk03.find_root(tmp_path / source, boxes="labeled") == expected


@pytest.mark.parametrize(
    ("laid", "source", "message"),
    [
        pytest.param(["detected"], "detected", "has the detected boxes of CUHK03, not the labeled",
                     id="the other boxes"),
        pytest.param(["detected"], ".", "has the detected boxes of CUHK03 only",
                     id="the other boxes only"),
        pytest.param(["a/labeled", "b/labeled"], ".", "more than one copy of CUHK03 .a/labeled, b",
                     id="two copies"),
        pytest.param(["labeled"], "labeled/query", "only a part of CUHK03; give the folder above",
                     id="a part"),
    ],
)  # fmt: skip
def test_wrong_roots(tmp_path: Path, laid: list[str], source: str, message: str) -> None:
    """What was given instead is said."""
    for folder in laid:
        lay(tmp_path / folder)
    with pytest.raises(DataError, match=message):
        cuhk03.find_root(tmp_path / source, boxes="labeled")


def test_differences(tmp_path: Path) -> None:
    """Every count that differs has a line; a missing folder has one of its own."""
    root = lay(tmp_path, [file for file in FILES if not file.startswith("query")])
    found = cuhk03.differences(root, count_splits(cuhk03.read(root)), boxes="detected")
    assert found == [
        "bounding_box_train: 2 of 7,365 images (7,363 missing)",
        "bounding_box_train: 1 of 767 identities (766 missing)",
        "query: the folder is missing",
        "bounding_box_test: 2 of 5,332 images (5,330 missing)",
        "bounding_box_test: 2 of 700 identities (698 missing)",
    ]


@pytest.mark.parametrize("boxes", cuhk03.BOXES)
def test_differences_of_the_full_set(tmp_path: Path, boxes: cuhk03.Boxes) -> None:
    """None; and the other boxes in an unmarked folder are known by their counts."""
    counts = cuhk03.PUBLISHED[boxes]
    for folder in cuhk03.FOLDERS.values():
        (tmp_path / folder).mkdir()
    other: cuhk03.Boxes = "detected" if boxes == "labeled" else "labeled"
    assert cuhk03.differences(tmp_path, counts, boxes=boxes) == []
    assert cuhk03.differences(tmp_path, counts, boxes=other) == [
        f"these are the {boxes} boxes (airnet prepare-data cuhk03-{boxes})"
    ]


def test_published_counts() -> None:
    """The numbers of the new protocol's README."""
    assert {
        boxes: [counts[split].images for split in ("train", "query", "gallery")]
        for boxes, counts in cuhk03.PUBLISHED.items()
    } == {"labeled": [7_368, 1_400, 5_328], "detected": [7_365, 1_400, 5_332]}
    assert cuhk03.PUBLISHED["labeled"]["train"] == SplitCounts(images=7_368, ids=767, cameras=2)
