"""prepare-data msmt17 end to end on a miniature of the official layout."""

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from airnet_cli.core.data.manifest import SplitCounts, load_prepared
from airnet_cli.core.data.readers import msmt17
from airnet_cli.errors import DataError
from airnet_cli.workflows.prepare_data import prepare_msmt17
from airnet_cli.workflows.preparing import PrepareOptions

LISTS = {
    "list_train.txt": (0, ["0000/0000_000_01_0303morning_0008_0.jpg 0"]),
    "list_val.txt": (0, ["0000/0000_001_02_0303morning_0009_0.jpg 0"]),
    "list_query.txt": (1, ["0000/0000_000_03_0303morning_0008_0.jpg 0"]),
    "list_gallery.txt": (1, ["0000/0000_001_04_0303morning_0009_0.jpg 0"]),
}
COUNTS = {
    "train": SplitCounts(images=2, ids=1, cameras=2),
    "query": SplitCounts(images=1, ids=1, cameras=1),
    "gallery": SplitCounts(images=1, ids=1, cameras=1),
}


@pytest.fixture(params=msmt17.FOLDERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder around `MSMT17_V1` or `MSMT17_V2`."""
    root = tmp_path / "downloads" / f"MSMT17_{request.param}"
    root.mkdir(parents=True)
    for name, (part, lines) in LISTS.items():
        (root / name).write_text("\n".join(lines))
        for line in lines:
            path = root / msmt17.FOLDERS[request.param][part] / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (90, 120, 60)).save(path)
    return root.parent


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_msmt17(source: Path, tmp_path: Path, monkeypatch, packed: bool) -> None:
    """Both versions, as folder or zip; the manifest says which, and how test people are called."""
    monkeypatch.setattr(msmt17, "PUBLISHED", COUNTS)
    (version,) = (path.name.removeprefix("MSMT17_") for path in source.iterdir())
    if packed:
        with zipfile.ZipFile(tmp_path / "MSMT17.zip", "w") as opened:
            for path in sorted(source.rglob("*")):
                opened.write(path, path.relative_to(source))
        source = tmp_path / "MSMT17.zip"
    prepared = prepare_msmt17(
        source, options=PrepareOptions(data_root=tmp_path / "data", workers=0)
    )
    assert prepared.counts == prepared.published == COUNTS
    assert prepared.notes == ()
    assert prepared.images_verified == 4
    manifest = load_prepared(tmp_path / "data", "msmt17")
    assert manifest.split_rule == (
        f"MSMT17 {version} official: list_train + list_val, list_query, list_gallery; "
        "test ids + 10000"
    )
    assert [record.person_id for record in manifest.records] == [0, 0, 10_000, 10_000]
    assert all((manifest.root / record.path).is_file() for record in manifest.records)


def test_list_train_alone(source: Path, tmp_path: Path, monkeypatch) -> None:
    """The record says so, and the published count, which is of both lists, is not shown."""
    monkeypatch.setattr(msmt17, "PUBLISHED", COUNTS)
    prepared = prepare_msmt17(
        source, lists="train", options=PrepareOptions(data_root=tmp_path / "data", workers=0)
    )
    assert prepared.counts["train"].images == 1
    assert set(prepared.published or {}) == {"query", "gallery"}
    assert "list_train alone" in load_prepared(tmp_path / "data", "msmt17").split_rule


def test_partial(source: Path, tmp_path: Path) -> None:
    """What is missing is an error, and with the option notes."""
    (path,) = source.rglob("0000_001_04*.jpg")
    path.unlink()
    with pytest.raises(
        DataError, match=r"is not the full MSMT17: list_gallery\.txt: 1 of 1 images"
    ):
        prepare_msmt17(source, options=PrepareOptions(data_root=tmp_path / "data", workers=0))
    assert not (tmp_path / "data").exists()
    prepared = prepare_msmt17(
        source, options=PrepareOptions(data_root=tmp_path / "data", allow_partial=True, workers=0)
    )
    assert prepared.counts["gallery"].images == 0
    assert "train: 2 of 32,621 images (32,619 missing)" in prepared.notes
