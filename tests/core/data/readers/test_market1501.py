"""Market-1501: labels from file names, and nothing but labels from file names."""

import os
from pathlib import Path

import pytest

from airnet_cli.core.data.manifest import count_splits
from airnet_cli.core.data.readers import market1501
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

FILES = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0007_c6s3_077467_05.jpg",
    "bounding_box_train/Thumbs.db",
    "query/0001_c1s1_001051_00.jpg",
    "query/1488_c1s6_023021_00.jpg.jpg",
    "query/.DS_Store",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c2s1_000151_01.jpg",
    "bounding_box_test/0001_c3s1_000551_00.jpg",
    "bounding_box_test/._0001_c3s1_000551_00.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
]


def lay(root: Path, files: list[str] = FILES) -> Path:
    """Lay out empty files: the reader opens none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_reads_labels(tmp_path: Path) -> None:
    """Person, camera and split of each image; hidden files and Thumbs.db are none."""
    assert market1501.read(lay(tmp_path)) == [
        ImageRecord("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"),
        ImageRecord("bounding_box_train/0007_c6s3_077467_05.jpg", 7, 6, "train"),
        ImageRecord("query/0001_c1s1_001051_00.jpg", 1, 1, "query"),
        ImageRecord("query/1488_c1s6_023021_00.jpg.jpg", 1488, 1, "query"),
        ImageRecord("bounding_box_test/-1_c1s1_000401_03.jpg", -1, 1, "gallery"),
        ImageRecord("bounding_box_test/0000_c2s1_000151_01.jpg", 0, 2, "gallery"),
        ImageRecord("bounding_box_test/0001_c3s1_000551_00.jpg", 1, 3, "gallery"),
    ]


def test_parent_folders_do_not_label(tmp_path: Path) -> None:
    """Field notes, defect 8: a folder named like an image changes no label."""
    plain = market1501.read(lay(tmp_path / "plain"))
    assert market1501.read(lay(tmp_path / "0042_c3s1_run12_c3" / "1111_c5")) == plain


def test_order_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch) -> None:
    """Field notes, defect 9: the same records in the same order, however the system lists files."""
    plain = market1501.read(lay(tmp_path))
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), reverse=True))
    assert market1501.read(tmp_path) == plain


def test_junk_is_not_person_one(tmp_path: Path) -> None:
    """Field notes, defect 12: -1 is no identity, and not person 1."""
    root = lay(tmp_path, ["bounding_box_test/-1_c1s1_000401_03.jpg"])
    assert [record.person_id for record in market1501.read(root)] == [-1]
    counts = count_splits(market1501.read(root))["gallery"]
    assert (counts.images, counts.ids, counts.junk) == (1, 0, 1)


@pytest.mark.parametrize(
    "file",
    [
        "bounding_box_train/0002_c1s1_000451_03 (1).jpg",
        "bounding_box_train/0002_c7s1_000451_03.jpg",
        "bounding_box_train/0002_c0s1_000451_03.jpg",
        "bounding_box_train/002_c1s1_000451_03.jpg",
        "bounding_box_train/copy of 0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c1s1_000451_03.JPG",
        "bounding_box_train/0002_c1s1_000451_03.jpg.jpg.jpg",
        "bounding_box_train/٠٠٠٢_c1s1_000451_03.jpg",
        "bounding_box_train/-1_c1s1_000451_03.jpg",
        "bounding_box_train/0000_c1s1_000451_03.jpg",
        "query/-1_c1s1_000451_03.jpg",
        "query/0000_c1s1_000451_03.jpg",
        "bounding_box_test/-2_c1s1_000451_03.jpg",
    ],
)
def test_names_that_say_nothing_are_listed(tmp_path: Path, file: str) -> None:
    """A .jpg with any other name is an error that names it, never skipped or guessed."""
    root = lay(tmp_path, [*FILES, file])
    with pytest.raises(DataError) as caught:
        market1501.read(root)
    assert f"1 file names under {root} are not Market-1501's: {file};" in str(caught.value)


def test_ten_names_are_listed(tmp_path: Path) -> None:
    """More than ten are counted."""
    root = lay(tmp_path, [f"query/{index:02}.jpg" for index in range(13)])
    with pytest.raises(DataError, match=r"13 file names .* query/09\.jpg and 3 more"):
        market1501.read(root)


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_finds_root(tmp_path: Path, above: str) -> None:
    """The official folder itself or the one that contains it; not any further."""
    root = lay(tmp_path / "up" / "Market-1501-v15.09.15")
    source = Path(os.path.normpath(root / above))
    if above == "../..":
        with pytest.raises(DataError, match="is not Market-1501"):
            market1501.find_root(source)
    else:
        assert market1501.find_root(source) == root


def test_part_of_it_is_no_root(tmp_path: Path) -> None:
    """Someone who gives one of the folders is told to give the one above."""
    root = lay(tmp_path)
    with pytest.raises(DataError, match=f"give the folder above it: {root}"):
        market1501.find_root(root / "bounding_box_train")


def test_two_copies_are_no_root(tmp_path: Path) -> None:
    """Which of two copies is meant is not guessed."""
    lay(tmp_path / "one")
    lay(tmp_path / "two")
    with pytest.raises(DataError, match=r"more than one copy of Market-1501 \(one, two\)"):
        market1501.find_root(tmp_path)


def test_differences_name_what_is_missing_and_extra(tmp_path: Path) -> None:
    """Every count that differs has a line; a missing folder has one of its own."""
    root = lay(tmp_path, [file for file in FILES if not file.startswith("query")])
    counts = count_splits(market1501.read(root))
    assert market1501.differences(root, counts) == [
        "bounding_box_train: 2 of 12,936 images (12,934 missing)",
        "bounding_box_train: 2 of 751 identities (749 missing)",
        "bounding_box_train: 2 of 6 cameras (4 missing)",
        "query: the folder is missing",
        "bounding_box_test: 3 of 19,732 images (19,729 missing)",
        "bounding_box_test: 1 of 750 identities (749 missing)",
        "bounding_box_test: 3 of 6 cameras (3 missing)",
        "bounding_box_test: 1 of 2,798 distractors (2,797 missing)",
        "bounding_box_test: 1 of 3,819 junk images (3,818 missing)",
    ]


def test_differences_name_extra(tmp_path: Path) -> None:
    """One image too many is named too."""
    files = [f"query/{1 + n % 750:04}_c{1 + n % 6}s1_{n:06}_00.jpg" for n in range(3_369)]
    root = lay(tmp_path, files)
    found = market1501.differences(root, count_splits(market1501.read(root)))
    assert [line for line in found if line.startswith("query")] == [
        "query: 3,369 of 3,368 images (1 extra)"
    ]


def test_the_published_set() -> None:
    """The real set has the published counts, and the 15,913 ranked images of the literature."""
    source = os.environ.get("AIRNET_MARKET1501")
    if not source:
        pytest.skip("AIRNET_MARKET1501 does not name the folder of the real Market-1501")
    root = market1501.find_root(Path(source))
    counts = count_splits(market1501.read(root))
    assert counts == market1501.PUBLISHED
    assert market1501.differences(root, counts) == []
    assert counts["gallery"].images - counts["gallery"].junk == 15_913
