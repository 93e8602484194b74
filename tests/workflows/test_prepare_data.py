"""prepare-data end to end on miniature replicas of the real layouts."""

import functools
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airnet_cli.core.data import demo
from airnet_cli.core.data.manifest import SplitCounts, load_prepared
from airnet_cli.core.data.readers import market1501
from airnet_cli.errors import AirnetError, DataError, UsageError
from airnet_cli.workflows.prepare_data import (
    prepare_csv,
    prepare_demo,
    prepare_market1501,
)
from airnet_cli.workflows.preparing import PrepareOptions

MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c2s1_000501_03.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c2s1_000151_01.jpg",
    "bounding_box_test/0001_c3s1_000551_00.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
]
COUNTS = {
    "train": SplitCounts(images=2, ids=1, cameras=2),
    "query": SplitCounts(images=1, ids=1, cameras=1),
    "gallery": SplitCounts(images=3, ids=1, cameras=3, distractors=1, junk=1),
}
ROWS = """path,person_id,camera_id,split
a/1.png,1,1,train
a/2.png,1,2,train
b/1.png,2,1,query
b/2.png,2,2,gallery
"""
IMAGES = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


def options(tmp_path: Path, **changes: Any) -> PrepareOptions:
    return PrepareOptions(data_root=tmp_path / "data", workers=0, **changes)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (90, 120, 60)).save(path)


def lay(root: Path, files: list[str]) -> Path:
    for file in files:
        draw(root / file)
    return root


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, path.relative_to(folder))
    return archive


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """A few images laid out like the official release, with what lies about in it."""
    root = lay(tmp_path / "downloads" / "Market-1501-v15.09.15", MARKET)
    for stray in ("bounding_box_train/Thumbs.db", "query/._0001_c1s1_001051_00.jpg"):
        (root / stray).write_bytes(b"not an image")
    return root


@pytest.fixture
def full(monkeypatch) -> None:
    """Let the miniature count as the full set."""
    monkeypatch.setattr(market1501, "RECIPE", replace(market1501.RECIPE, published=COUNTS))


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("above", [False, True], ids=["official-folder", "folder-around-it"])
def test_market1501_folder(market: Path, tmp_path: Path, above: bool) -> None:
    """A folder stays where it is, and the manifest points to it."""
    prepared = prepare_market1501(
        market.parent if above else market,
        options(tmp_path),
    )
    assert prepared.counts == prepared.published == COUNTS
    assert prepared.root == market
    assert prepared.images_verified == 6
    assert prepared.notes == ()
    manifest = load_prepared(tmp_path / "data", "market1501")
    assert [(manifest.root / record.path).is_file() for record in manifest.records] == [True] * 6
    assert list((tmp_path / "data" / "market1501").iterdir()) == [prepared.manifest]


@pytest.mark.usefixtures("full")
def test_market1501_zip(market: Path, tmp_path: Path) -> None:
    """A zip is unpacked under the data root, without the boxes that nobody needs; twice is fine."""
    archive = pack(market.parent, tmp_path / "Market-1501-v15.09.15.zip")
    for _ in range(2):
        prepared = prepare_market1501(archive, options(tmp_path))
        assert prepared.counts == COUNTS
        manifest = load_prepared(tmp_path / "data", "market1501")
        assert manifest.root == tmp_path / "data/market1501/images/Market-1501-v15.09.15"
        assert all((manifest.root / record.path).is_file() for record in manifest.records)
    assert not (manifest.root / "gt_bbox").exists()
    assert sorted(path.name for path in (tmp_path / "data/market1501").iterdir()) == [
        "images",
        "manifest.jsonl",
    ]


def test_market1501_partial(market: Path, tmp_path: Path) -> None:
    """A partial copy is an error that names what is missing, and with the option notes that do."""
    with pytest.raises(DataError) as caught:
        prepare_market1501(market, options(tmp_path))
    assert f"{market} is not the full Market-1501: " in str(caught.value)
    assert "query: 1 of 3,368 images (3,367 missing)" in str(caught.value)
    assert "--allow-partial" in str(caught.value)
    assert not (tmp_path / "data").exists()
    prepared = prepare_market1501(market, options(tmp_path, allow_partial=True))
    assert prepared.counts == COUNTS
    assert prepared.published == market1501.RECIPE.published
    assert "query: 1 of 3,368 images (3,367 missing)" in prepared.notes


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_market1501_broken_image(market: Path, tmp_path: Path, packed: bool) -> None:
    """A broken image is named by what the user gave; what was prepared before stays."""
    data_root = tmp_path / "data"
    before = prepare_market1501(
        market, options=PrepareOptions(data_root=data_root, workers=0)
    ).manifest.read_bytes()
    (market / MARKET[2]).write_bytes(b"")
    source = pack(market, tmp_path / "set.zip") if packed else market
    with pytest.raises(DataError) as caught:
        prepare_market1501(source, options=PrepareOptions(data_root=data_root, workers=0))
    assert str(caught.value).startswith(
        f"1 image under {source} can't be read: {MARKET[2]} (empty file); "
    )
    assert (data_root / "market1501" / "manifest.jsonl").read_bytes() == before
    assert [path.name for path in (data_root / "market1501").iterdir()] == ["manifest.jsonl"]
    unchecked = prepare_market1501(
        source, options=PrepareOptions(data_root=data_root, verify=False)
    )
    assert unchecked.images_verified == 0


def test_the_published_set(tmp_path: Path) -> None:
    """The real set is prepared without a note."""
    source = os.environ.get("AIRNET_MARKET1501")
    if not source:
        pytest.skip("AIRNET_MARKET1501 does not name the folder of the real Market-1501")
    prepared = prepare_market1501(
        Path(source), options=PrepareOptions(data_root=tmp_path, verify=False)
    )
    assert prepared.counts == prepared.published
    assert prepared.notes == ()


def own_table(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shop.csv").write_text(ROWS)
    return folder / "shop.csv"


def table_beside_images(tmp_path: Path) -> dict[str, Path]:
    lay(tmp_path / "shop", IMAGES)
    return {"source": own_table(tmp_path / "shop")}


def folder_of_images(tmp_path: Path) -> dict[str, Path]:
    return {"source": own_table(tmp_path), "images": lay(tmp_path / "crops", IMAGES)}


def zip_of_images(tmp_path: Path) -> dict[str, Path]:
    lay(tmp_path / "crops", IMAGES)
    return {"source": own_table(tmp_path), "images": pack(tmp_path / "crops", tmp_path / "i.zip")}


def zip_of_images_in_a_folder(tmp_path: Path) -> dict[str, Path]:
    lay(tmp_path / "up" / "crops", IMAGES)
    return {"source": own_table(tmp_path), "images": pack(tmp_path / "up", tmp_path / "i.zip")}


def zip_of_both(tmp_path: Path) -> dict[str, Path]:
    lay(tmp_path / "up" / "shop", IMAGES)
    own_table(tmp_path / "up" / "shop")
    return {"source": pack(tmp_path / "up", tmp_path / "shop.zip")}


@pytest.mark.parametrize(
    "lay_out",
    [
        table_beside_images,
        folder_of_images,
        zip_of_images,
        zip_of_images_in_a_folder,
        zip_of_both,
    ],
)
def test_csv(tmp_path: Path, lay_out: Callable[[Path], dict[str, Path]]) -> None:
    """Table and images may lie in any of five ways, with the same result."""
    prepared = prepare_csv(options=options(tmp_path), **lay_out(tmp_path))
    assert prepared.name == "shop"
    assert prepared.published is None
    assert prepared.notes == ()
    assert prepared.images_verified == 4
    assert prepared.counts == {
        "train": SplitCounts(images=2, ids=1, cameras=2),
        "query": SplitCounts(images=1, ids=1, cameras=1),
        "gallery": SplitCounts(images=1, ids=1, cameras=1),
    }
    manifest = load_prepared(tmp_path / "data", "shop")
    assert [record.path for record in manifest.records] == IMAGES
    assert all((manifest.root / record.path).is_file() for record in manifest.records)


def test_csv_missing_images(tmp_path: Path) -> None:
    """Missing images are listed with their lines; with the option they are left out and noted."""
    source = table_beside_images(tmp_path)["source"]
    (source.parent / "a/2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images of shop\.csv are not under .*line 3: a/2"):
        prepare_csv(source, options(tmp_path))
    prepared = prepare_csv(source, options(tmp_path, allow_partial=True))
    assert prepared.counts["train"].images == 1
    assert prepared.notes[0].startswith("left out: 1 of 4 images of shop.csv")


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ("c/1.png,1,2,query\nc/2.png,1,1,gallery", "1 identities of train are also in query (1): "),
        ("c/1.png,5,2,query", "1 of 2 queries have no gallery image of their identity"),
        (
            "c/1.png,5,2,query\nc/2.png,5,2,gallery",
            "1 of 2 queries have gallery images from their own camera only",
        ),
    ],
)
def test_csv_notes(tmp_path: Path, rows: str, note: str) -> None:
    """What spoils training or scores is noted, and is no error."""
    source = table_beside_images(tmp_path)["source"]
    lay(source.parent, ["c/1.png", "c/2.png"])
    source.write_text(ROWS + rows + "\n")
    notes = prepare_csv(source, options(tmp_path)).notes
    assert any(line.startswith(note) for line in notes)


def test_csv_person_zero_is_no_overlap(tmp_path: Path) -> None:
    """Identity 0 of train and distractors of the gallery are different people."""
    source = table_beside_images(tmp_path)["source"]
    lay(source.parent, ["c/1.png", "c/2.png"])
    source.write_text(ROWS + "c/1.png,0,1,train\nc/2.png,0,1,gallery\n")
    prepared = prepare_csv(source, options(tmp_path))
    assert prepared.notes == ()
    assert prepared.counts["train"].ids == 2
    assert prepared.counts["gallery"] == SplitCounts(images=2, ids=1, cameras=2, distractors=1)


def no_table(tmp_path: Path) -> dict[str, Path]:
    lay(tmp_path / "up", IMAGES)
    return {"source": pack(tmp_path / "up", tmp_path / "shop.zip")}


def two_tables(tmp_path: Path) -> dict[str, Path]:
    own_table(tmp_path / "up" / "one")
    own_table(tmp_path / "up" / "two")
    return {"source": pack(tmp_path / "up", tmp_path / "shop.zip")}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (no_table, DataError, r"must hold exactly one \.csv table, and holds none"),
        (two_tables, DataError, r"holds 2: one/shop\.csv, two/shop\.csv"),
        (lambda path: {"source": path / "nix.csv"}, DataError, "does not exist"),
        (
            lambda path: {"source": own_table(path), "images": path / "nix"},
            DataError,
            "nix does not exist",
        ),
        (lambda path: {"source": path}, DataError, "is a folder"),
        (lambda path: zip_of_both(path) | {"images": path}, UsageError, "leave --images out"),
        (
            lambda path: {"source": own_table(path).rename(path / "my shop.csv")},
            DataError,
            "'my shop' can't be the name of a data set; .* choose one with --name",
        ),
        (
            lambda path: {"source": own_table(path)},
            DataError,
            "4 of 4 images of .* give their folder or zip with --images",
        ),
    ],
)
def test_csv_errors(
    tmp_path: Path, arguments: Callable[[Path], dict[str, Path]], kind: type, message: str
) -> None:
    """Each is one line that says what to do, and leaves nothing behind."""
    with pytest.raises(AirnetError, match=message) as caught:
        prepare_csv(
            **arguments(tmp_path),
            options=PrepareOptions(data_root=tmp_path / "data", allow_partial=True),
        )
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "data").rglob("*") if path.name != "shop"] == []


@pytest.mark.parametrize("prepared_before", [False, True])
def test_demo(tmp_path: Path, monkeypatch, prepared_before: bool) -> None:
    """The generated set lies under the data root; a seed gives the same manifest again."""
    few = functools.partial(demo.generate, train_identities=2, test_identities=2, processes=1)
    monkeypatch.setattr(demo, "generate", few)
    if prepared_before:
        prepare_demo(
            seed=random.Random(1).randrange(9),
            options=PrepareOptions(data_root=tmp_path, workers=0),
        )
    prepared = prepare_demo(seed=3, options=PrepareOptions(data_root=tmp_path, workers=0))
    assert prepared.root == tmp_path / "demo" / "images"
    assert prepared.counts["train"].ids == prepared.counts["query"].ids == 2
    manifest = load_prepared(tmp_path, "demo")
    assert manifest.split_rule == "generated from seed 3"
    on_disk = {path for path in manifest.root.rglob("*") if path.is_file()}
    assert on_disk == {manifest.root / record.path for record in manifest.records}


def test_real_viper(tmp_path: Path) -> None:
    """VIPeR's archive of table and images, as it comes."""
    archive = Path(__file__).resolve().parents[3] / "shared" / "data" / "viper.zip"
    if not archive.is_file():
        pytest.skip(f"no VIPeR at {archive}")
    prepared = prepare_csv(archive, options=PrepareOptions(data_root=tmp_path, workers=0))
    assert prepared.name == "viper"
    assert prepared.notes == ()
    assert prepared.counts == {
        "train": SplitCounts(images=632, ids=316, cameras=2),
        "query": SplitCounts(images=316, ids=316, cameras=1),
        "gallery": SplitCounts(images=316, ids=316, cameras=1),
    }
