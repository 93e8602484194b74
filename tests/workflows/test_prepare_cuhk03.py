"""prepare-data cuhk03-labeled and -detected, end to end on miniature replicas."""

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from airnet_cli.core.data.manifest import SplitCounts, load_prepared
from airnet_cli.core.data.readers import cuhk03
from airnet_cli.errors import DataError, UsageError
from airnet_cli.workflows.prepare_data import prepare_cuhk03
from airnet_cli.workflows.preparing import PrepareOptions

FOLDERS = [
    "bounding_box_train/0002_c1_1.png",
    "bounding_box_train/0002_c2_6.jpg",
    "query/0001_c1_1.png",
    "query/0001_c2_6.png",
    "bounding_box_test/0001_c1_2.png",
    "bounding_box_test/0001_c2_7.png",
]
OF_FOLDERS = {
    "train": SplitCounts(images=2, ids=1, cameras=2),
    "query": SplitCounts(images=2, ids=1, cameras=2),
    "gallery": SplitCounts(images=2, ids=1, cameras=2),
}
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


def publish(monkeypatch, counts: dict[str, SplitCounts]) -> None:
    """Let the miniature count as the full set of labeled boxes."""
    recipe = replace(cuhk03.RECIPES["labeled"], published=counts)
    monkeypatch.setitem(cuhk03.RECIPES, "labeled", recipe)


def test_folders(tmp_path: Path, monkeypatch) -> None:
    """The image folders of the new protocol stay where they are."""
    publish(monkeypatch, OF_FOLDERS)
    root = lay(tmp_path / "cuhk03-np" / "labeled")
    prepared = prepare_cuhk03(
        tmp_path / "cuhk03-np",
        boxes="labeled",
        options=PrepareOptions(data_root=tmp_path / "data", workers=0),
    )
    assert (prepared.name, prepared.root) == ("cuhk03-labeled", root)
    assert prepared.counts == prepared.published == OF_FOLDERS
    assert prepared.notes == ()
    assert prepared.images_verified == 6
    manifest = load_prepared(tmp_path / "data", "cuhk03-labeled")
    assert manifest.split_rule == "CUHK03 new protocol (767 / 700 identities), labeled boxes"


def test_zip_of_folders(tmp_path: Path, monkeypatch) -> None:
    """Of a zip with both boxes only the ones that are asked for stay; twice is fine."""
    publish(monkeypatch, OF_FOLDERS)
    lay(tmp_path / "up" / "cuhk03-np" / "labeled")
    lay(tmp_path / "up" / "cuhk03-np" / "detected")
    archive = pack(tmp_path / "up", tmp_path / "cuhk03-np.zip")
    for _ in range(2):
        prepared = prepare_cuhk03(
            archive, boxes="labeled", options=PrepareOptions(data_root=tmp_path / "data", workers=0)
        )
    folder = tmp_path / "data" / "cuhk03-labeled"
    assert prepared.root == folder / "images" / "labeled"
    on_disk = {path for path in folder.rglob("*") if path.is_file()}
    assert on_disk == {prepared.manifest} | {prepared.root / file for file in FOLDERS}


def the_file(images: Path, protocol: Path) -> dict[str, Path]:
    return {"source": images}


def its_folder(images: Path, protocol: Path) -> dict[str, Path]:
    return {"source": images.parent}


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
    "lay_out",
    [
        the_file,
        its_folder,
        above_the_release,
        protocol_elsewhere,
        zip_of_both,
        zip_of_release,
    ],
)
def test_matlab(miniature_cuhk03, tmp_path: Path, monkeypatch, lay_out: Callable) -> None:
    """The two official files may lie in any of six ways, with the same result."""
    publish(monkeypatch, OF_MATLAB)
    given = lay_out(miniature_cuhk03.images, miniature_cuhk03.protocol)
    prepared = prepare_cuhk03(
        **given, boxes="labeled", options=PrepareOptions(data_root=tmp_path / "data", workers=0)
    )
    assert prepared.counts == prepared.published == OF_MATLAB
    assert prepared.notes == ()
    assert prepared.images_verified == 40
    manifest = load_prepared(tmp_path / "data", "cuhk03-labeled")
    folder = tmp_path / "data" / "cuhk03-labeled"
    assert manifest.root == folder / "images" / "labeled"
    on_disk = {path for path in folder.rglob("*") if path.is_file()}
    assert on_disk == {prepared.manifest} | {manifest.root / r.path for r in manifest.records}


def test_partial(miniature_cuhk03, tmp_path: Path) -> None:
    """What is missing is an error, then notes; nothing is left of the first try."""
    options = PrepareOptions(data_root=tmp_path / "data", workers=0)
    with pytest.raises(DataError) as caught:
        prepare_cuhk03(miniature_cuhk03.images, options, boxes="labeled")
    assert "is not the full CUHK03: bounding_box_train: 10 of 7,368 images" in str(caught.value)
    assert str(tmp_path / "data") not in str(caught.value)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
    prepared = prepare_cuhk03(
        miniature_cuhk03.images, replace(options, allow_partial=True), boxes="labeled"
    )
    assert prepared.counts == OF_MATLAB
    assert "query: 12 of 1,400 images (1,388 missing)" in prepared.notes


def test_images_that_the_protocol_names_and_nobody_has(
    miniature_cuhk03, tmp_path: Path, monkeypatch
) -> None:
    """They are named; with the option they are left out."""
    import h5py

    publish(monkeypatch, OF_MATLAB)
    with h5py.File(miniature_cuhk03.images, "r+") as file:
        pair = file[file["labeled"][0, 4]]
        references = pair[()]
        references[0, 0] = references[4, 0]  # the fifth is empty
        pair[...] = references
    options = PrepareOptions(data_root=tmp_path / "data", workers=0)
    message = r"1 images are not in cuhk-03\.mat \(query/5_001_1_01\.png\); query: 11 of 12 images"
    with pytest.raises(DataError, match=message):
        prepare_cuhk03(miniature_cuhk03.images, options, boxes="labeled")
    prepared = prepare_cuhk03(
        miniature_cuhk03.images, replace(options, allow_partial=True), boxes="labeled"
    )
    assert prepared.counts["query"].images == 11
    assert prepared.notes[0] == "1 images are not in cuhk-03.mat (query/5_001_1_01.png)"


def nothing(folder: Path) -> dict[str, Path]:
    return {"source": folder}


def other_boxes(folder: Path) -> dict[str, Path]:
    return {"source": lay(folder / "detected")}


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


def empty_zip(folder: Path) -> dict[str, Path]:
    return {"source": pack(folder, folder.parent / "empty.zip")}


def images_as_protocol(folder: Path) -> dict[str, Path]:
    shutil.copy(folder.parent / "cuhk03" / "cuhk-03.mat", folder / "cuhk-03.mat")
    return {"source": folder, "protocol": folder / "cuhk-03.mat"}


@pytest.mark.parametrize(
    ("lay_out", "kind", "message"),
    [
        (nothing, DataError, "is not CUHK03: it has neither .*labeled/bounding_box_train.* nor"),
        (other_boxes, DataError, "run: airnet prepare-data cuhk03-detected"),
        (folders_with_protocol, UsageError, "that of its folders, so --protocol .* leave it out"),
        (no_protocol, DataError, "the split of the new protocol is not at .*config_labeled.mat"),
        (web_page, DataError, "is a web page, not a zip archive"),
        (tar, DataError, "of a kind that airnet does not unpack .* unpack it yourself"),
        (empty_zip, DataError, "empty.zip is not CUHK03"),
        (images_as_protocol, DataError, "is a MATLAB 7.3 file, and it must be MATLAB 5.0"),
    ],
)
@pytest.mark.usefixtures("miniature_cuhk03")
def test_bad_sources(tmp_path: Path, lay_out: Callable, kind: type, message: str) -> None:
    """Each is one line, and leaves nothing behind."""
    (tmp_path / "given").mkdir()
    with pytest.raises(kind, match=message) as caught:
        prepare_cuhk03(
            **lay_out(tmp_path / "given"),
            boxes="labeled",
            options=PrepareOptions(data_root=tmp_path / "data", allow_partial=True, workers=0),
        )
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
