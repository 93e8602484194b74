"""prepare-data cuhk03-labeled and -detected, end to end on miniature replicas."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airnet_cli.core.data.manifest import SplitCounts, load_prepared
from airnet_cli.errors import AirnetError, DataError, UsageError
from airnet_cli.workflows.prepare_data import prepare_cuhk03
from airnet_cli.workflows.preparing import PreparedDataset, PrepareOptions

FOLDERS = [
    "bounding_box_train/0002_c1_1.png",
    "bounding_box_train/0002_c2_6.jpg",
    "query/0001_c1_1.png",
    "query/0001_c2_6.png",
    "bounding_box_test/0001_c1_2.png",
    "bounding_box_test/0001_c2_7.png",
]
OF_MATLAB = {
    "train": SplitCounts(images=10, ids=2, cameras=2),
    "query": SplitCounts(images=12, ids=6, cameras=2),
    "gallery": SplitCounts(images=18, ids=6, cameras=2),
}


def lay(root: Path) -> Path:
    for file in FOLDERS:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (90, 120, 60)).save(root / file)
    return root


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, path.relative_to(folder))
    return archive


def prepare(data_root: Path, source: Path, *, partial: bool = True, **more: Any) -> PreparedDataset:
    options = PrepareOptions(data_root=data_root, allow_partial=partial, workers=0)
    return prepare_cuhk03(source, options, boxes="labeled", **more)


def files_under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_folders(tmp_path: Path) -> None:
    """The image folders of the new protocol stay in their place."""
    root = lay(tmp_path / "cuhk03-np" / "labeled")
    prepared = prepare(tmp_path / "data", tmp_path / "cuhk03-np")
    assert (prepared.name, prepared.root) == ("cuhk03-labeled", root)
    assert prepared.images_verified == 6
    assert "query: 2 of 1,400 images (1,398 missing)" in prepared.notes
    manifest = load_prepared(tmp_path / "data", "cuhk03-labeled")
    assert manifest.split_rule == "CUHK03 new protocol (767 / 700 identities), labeled boxes"


def test_zip_of_folders(tmp_path: Path) -> None:
    """Only the boxes that were asked for are kept; a second time gives the same."""
    lay(tmp_path / "up" / "cuhk03-np" / "labeled")
    lay(tmp_path / "up" / "cuhk03-np" / "detected")
    archive = pack(tmp_path / "up", tmp_path / "cuhk03-np.zip")
    for _ in range(2):
        prepared = prepare(tmp_path / "data", archive)
    folder = tmp_path / "data" / "cuhk03-labeled"
    assert prepared.root == folder / "images" / "labeled"
    assert files_under(folder) == {prepared.manifest} | {prepared.root / file for file in FOLDERS}


def the_file(images: Path, protocol: Path) -> dict[str, Path]:
    return {"source": images}


def above_the_release(images: Path, protocol: Path) -> dict[str, Path]:
    release = images.parent / "cuhk03_release"
    release.mkdir()
    images.rename(release / images.name)
    return {"source": images.parent}


def protocol_elsewhere(images: Path, protocol: Path) -> dict[str, Path]:
    configs = images.parent.parent / "configs"
    configs.mkdir()
    return {"source": images, "protocol": protocol.rename(configs / protocol.name).parent}


def zip_of_both(images: Path, protocol: Path) -> dict[str, Path]:
    return {"source": pack(images.parent, images.parent.parent / "cuhk03.zip")}


def zip_of_release(images: Path, protocol: Path) -> dict[str, Path]:
    protocol.rename(images.parent.parent / protocol.name)
    return {"source": pack(images.parent, images.parent.parent / "cuhk03_release.zip")}


@pytest.mark.parametrize(
    "lay_out", [the_file, above_the_release, protocol_elsewhere, zip_of_both, zip_of_release]
)
def test_matlab(miniature_cuhk03, tmp_path: Path, lay_out: Callable) -> None:
    """The two official files may lie in any of these ways, with the same result."""
    given = lay_out(miniature_cuhk03.images, miniature_cuhk03.protocol)
    prepared = prepare(tmp_path / "data", **given)
    assert prepared.counts == OF_MATLAB
    assert prepared.images_verified == 40
    manifest = load_prepared(tmp_path / "data", "cuhk03-labeled")
    folder = tmp_path / "data" / "cuhk03-labeled"
    assert manifest.root == folder / "images" / "labeled"
    images = {manifest.root / record.path for record in manifest.records}
    assert files_under(folder) == {prepared.manifest} | images


def test_an_incomplete_set_is_an_error(miniature_cuhk03, tmp_path: Path) -> None:
    """It names what is missing, and leaves nothing; images without a cell are named too."""
    import h5py

    with h5py.File(miniature_cuhk03.images, "r+") as file:
        pair = file[file["labeled"][0, 4]]
        references = pair[()]
        references[0, 0] = references[4, 0]  # the fifth is empty
        pair[...] = references
    message = (
        r"is not the full CUHK03: 1 images are not in cuhk-03\.mat \(query/5_001_1_01\.png\); "
        "bounding_box_train: 10 of 7,368 images"
    )
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "data", miniature_cuhk03.images, partial=False)
    assert str(tmp_path / "data") not in str(caught.value)
    assert files_under(tmp_path / "data") == set()
    assert prepare(tmp_path / "data", miniature_cuhk03.images).counts["query"].images == 11


def nothing(folder: Path) -> dict[str, Path]:
    return {"source": folder}


def folders_with_protocol(folder: Path) -> dict[str, Path]:
    return {"source": lay(folder / "labeled"), "protocol": folder}


def no_protocol(folder: Path) -> dict[str, Path]:
    (folder / "cuhk-03.mat").touch()
    return {"source": folder}


def web_page(folder: Path) -> dict[str, Path]:
    (folder / "cuhk-03.zip").write_text("<!doctype html><title>Sign in</title>")
    return {"source": folder / "cuhk-03.zip"}


def tar(folder: Path) -> dict[str, Path]:
    (folder / "cuhk03-np.tar.gz").touch()
    return {"source": folder / "cuhk03-np.tar.gz"}


@pytest.mark.parametrize(
    ("lay_out", "kind", "message"),
    [
        (nothing, DataError, "is not CUHK03: it has neither .*labeled/bounding_box_train.* nor"),
        (folders_with_protocol, UsageError, "that of its folders, so --protocol .* leave it out"),
        (no_protocol, DataError, "the split of the new protocol is not at .*config_labeled.mat"),
        (web_page, DataError, "is a web page, not a zip archive"),
        (tar, DataError, "of a kind that airnet does not unpack .* unpack it yourself"),
    ],
)
def test_bad_sources(tmp_path: Path, lay_out: Callable, kind: type, message: str) -> None:
    """Each is one line, and leaves nothing behind."""
    (tmp_path / "given").mkdir()
    with pytest.raises(AirnetError, match=message) as caught:
        prepare(tmp_path / "data", **lay_out(tmp_path / "given"))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert files_under(tmp_path / "data") == set()
