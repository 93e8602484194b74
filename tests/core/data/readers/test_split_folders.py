"""Market-1501 and CUHK03 as folders: labels from file names, the right folder, what is missing."""

import os
from pathlib import Path

import pytest

from airnet_cli.core.data.manifest import count_splits
from airnet_cli.core.data.readers import cuhk03, market1501
from airnet_cli.core.data.readers.split_folders import FOLDERS
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/Thumbs.db",
    "query/1488_c1s6_023021_00.jpg.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c2s1_000151_01.jpg",
    "bounding_box_test/0001_c3s1_000551_00.jpg",
    "bounding_box_test/._0001_c3s1_000551_00.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
]
CUHK03 = [
    "bounding_box_train/0001_c1_1.png",
    "bounding_box_train/0001_c2_6.jpg",
    "query/0003_c1_22.png",
    "query/.DS_Store",
    "bounding_box_test/0003_c1_21.png",
]
RECIPES = {"market1501": market1501.RECIPE, "cuhk03": cuhk03.RECIPES["labeled"]}
FILES = {"market1501": MARKET, "cuhk03": CUHK03}
RECORDS = {
    "market1501": [
        ImageRecord("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"),
        ImageRecord("query/1488_c1s6_023021_00.jpg.jpg", 1488, 1, "query"),
        ImageRecord("bounding_box_test/-1_c1s1_000401_03.jpg", -1, 1, "gallery"),
        ImageRecord("bounding_box_test/0000_c2s1_000151_01.jpg", 0, 2, "gallery"),
        ImageRecord("bounding_box_test/0001_c3s1_000551_00.jpg", 1, 3, "gallery"),
    ],
    "cuhk03": [
        ImageRecord("bounding_box_train/0001_c1_1.png", 1, 1, "train"),
        ImageRecord("bounding_box_train/0001_c2_6.jpg", 1, 2, "train"),
        ImageRecord("query/0003_c1_22.png", 3, 1, "query"),
        ImageRecord("bounding_box_test/0003_c1_21.png", 3, 1, "gallery"),
    ],
}


def lay(root: Path, files: list[str]) -> Path:
    """Create empty files: the reader opens none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.mark.parametrize("kind", RECIPES)
def test_reads_labels(tmp_path: Path, monkeypatch, kind: str) -> None:
    """From file names alone, in one order, whatever folders above are called or in what order the
    system lists files (field notes, defects 8, 9).
    """
    root = lay(tmp_path / "0042_c3s1_run12_c3" / "1111_c5", FILES[kind])
    assert RECIPES[kind].read(root) == RECORDS[kind]
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), reverse=True))
    assert RECIPES[kind].read(root) == RECORDS[kind]


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("market1501", "bounding_box_train/0002_c1s1_000451_03 (1).jpg"),
        ("market1501", "bounding_box_train/0002_c7s1_000451_03.jpg"),
        ("market1501", "bounding_box_train/002_c1s1_000451_03.jpg"),
        ("market1501", "bounding_box_train/0002_c1s1_000451_03.JPG"),
        ("market1501", "bounding_box_train/٠٠٠٢_c1s1_000451_03.jpg"),
        ("market1501", "bounding_box_train/-1_c1s1_000451_03.jpg"),
        ("market1501", "query/0000_c1s1_000451_03.jpg"),
        ("market1501", "bounding_box_test/-2_c1s1_000451_03.jpg"),
        ("cuhk03", "query/0003_c3_1.png"),
        ("cuhk03", "bounding_box_test/0000_c1_1.png"),
        ("cuhk03", "query/0003_c1s1_000451_03.jpg"),
        ("cuhk03", "query/1_001_1_01.png"),
    ],
)
def test_other_names_are_listed(tmp_path: Path, kind: str, file: str) -> None:
    """An image with any other name is an error that names it, never skipped or guessed."""
    root = lay(tmp_path, [*FILES[kind], file])
    with pytest.raises(DataError) as caught:
        RECIPES[kind].read(root)
    assert f"1 file names under {root} are not those of {RECIPES[kind].title}: {file};" in str(
        caught.value
    )


def test_ten_names_are_listed(tmp_path: Path) -> None:
    """More than ten are counted."""
    root = lay(tmp_path, [f"query/{index:02}.jpg" for index in range(13)])
    with pytest.raises(DataError, match=r"13 file names .* query/09\.jpg and 3 more"):
        market1501.RECIPE.read(root)


@pytest.mark.parametrize(
    ("laid", "source", "found"),
    [
        (["official"], "official", "official"),
        (["official"], ".", "official"),
        (["up/official"], ".", "is not Market-1501: it has no folder bounding_box_train"),
        (["official"], "official/query", "is only a part of Market-1501; give the folder above it"),
        (["one", "two"], ".", r"more than one copy of Market-1501 \(one, two\)"),
        ([], "none", "is not a folder"),
    ],
)
def test_root_of_market1501(tmp_path: Path, laid: list[str], source: str, found: str) -> None:
    """The official folder itself or the one that contains it; other folders are errors."""
    for folder in laid:
        lay(tmp_path / folder, MARKET)
    if found in laid:
        assert market1501.find_root(tmp_path / source) == tmp_path / found
        return
    with pytest.raises(DataError, match=found):
        market1501.find_root(tmp_path / source)


@pytest.mark.parametrize(
    ("laid", "source", "found"),
    [
        (["labeled"], "labeled", "labeled"),
        (["np/labeled", "np/detected"], "np", "np/labeled"),
        (["np/labeled", "np/detected"], ".", "np/labeled"),
        (["images"], "images", "images"),
        (["a/b/labeled"], ".", None),
        (["detected"], "detected", "has only the detected boxes of CUHK03, not the labeled"),
        (["detected"], ".", "has only the detected boxes of CUHK03"),
        (["a/labeled", "b/labeled"], ".", r"more than one copy of CUHK03 \(a/labeled, b/labeled"),
        (["labeled"], "labeled/query", "only a part of CUHK03; give the folder above"),
    ],
)
def test_root_of_cuhk03(tmp_path: Path, laid: list[str], source: str, found: str | None) -> None:
    """The folder of the labeled boxes, or one or two above it; other folders are errors."""
    for folder in laid:
        lay(tmp_path / folder, CUHK03)
    if found is None or found in laid:
        expected = None if found is None else tmp_path / found
        assert cuhk03.find_root(tmp_path / source, boxes="labeled") == expected
        return
    with pytest.raises(DataError, match=found):
        cuhk03.find_root(tmp_path / source, boxes="labeled")


def test_differences(tmp_path: Path) -> None:
    """Every count that differs has a line; a missing folder has one of its own."""
    root = lay(tmp_path, [file for file in MARKET if not file.startswith("query")])
    counts = count_splits(market1501.RECIPE.read(root))
    assert market1501.RECIPE.differences(root, counts) == [
        "bounding_box_train: 1 of 12,936 images (12,935 missing)",
        "bounding_box_train: 1 of 751 identities (750 missing)",
        "bounding_box_train: 1 of 6 cameras (5 missing)",
        "query: the folder is missing",
        "bounding_box_test: 3 of 19,732 images (19,729 missing)",
        "bounding_box_test: 1 of 750 identities (749 missing)",
        "bounding_box_test: 3 of 6 cameras (3 missing)",
        "bounding_box_test: 1 of 2,798 distractors (2,797 missing)",
        "bounding_box_test: 1 of 3,819 junk images (3,818 missing)",
    ]


@pytest.mark.parametrize("boxes", cuhk03.BOXES)
def test_boxes_of_cuhk03_are_known_by_their_counts(tmp_path: Path, boxes: cuhk03.Boxes) -> None:
    """The other boxes in an unmarked folder are an error."""
    lay(tmp_path, [f"{folder}/x" for folder in FOLDERS.values()])
    counts = cuhk03.RECIPES[boxes].published
    other: cuhk03.Boxes = "detected" if boxes == "labeled" else "labeled"
    assert cuhk03.differences(tmp_path, counts, boxes=boxes) == []
    assert cuhk03.differences(tmp_path, counts, boxes=other) == [
        f"these are the {boxes} boxes (airnet prepare-data cuhk03-{boxes})"
    ]


def test_the_published_market1501() -> None:
    """The real set has the published counts, and the 15,913 ranked images of the literature."""
    source = os.environ.get("AIRNET_MARKET1501")
    if not source:
        pytest.skip("AIRNET_MARKET1501 does not name the folder of the real Market-1501")
    root = market1501.find_root(Path(source))
    counts = count_splits(market1501.RECIPE.read(root))
    assert counts == market1501.RECIPE.published
    assert market1501.RECIPE.differences(root, counts) == []
    assert counts["gallery"].images - counts["gallery"].junk == 15_913
