"""CUHK03 from its MATLAB files: pixels and labels right, everything else refused with a reason."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from airnet_cli.core.data.manifest import count_splits
from airnet_cli.core.data.readers import cuhk03, cuhk03_mat
from airnet_cli.core.data.readers.split_folders import FOLDERS
from airnet_cli.errors import DataError

PROTOCOLS = Path(__file__).resolve().parents[5] / "shared" / "data" / "cuhk03-np"
PAGE = b"\n<!DOCTYPE html><html><body>Too many users have viewed this file</body></html>"


@pytest.fixture
def real_protocol() -> Callable[[str], list[cuhk03_mat.Cell]]:
    """Return a function that reads the protocol as it was published."""
    if not PROTOCOLS.is_dir():
        pytest.skip(f"no published protocol of CUHK03 at {PROTOCOLS}")
    return lambda boxes: cuhk03_mat.read_protocol(
        PROTOCOLS / f"cuhk03_new_protocol_config_{boxes}.mat"
    )


@pytest.mark.parametrize("boxes", cuhk03.BOXES)
def test_the_published_protocol(real_protocol, boxes: cuhk03.Boxes) -> None:
    """It has the published counts, person ids from 1 to 1467, and nobody on both sides."""
    cells = real_protocol(boxes)
    records = [cell.record for cell in cells]
    assert count_splits(records) == cuhk03.RECIPES[boxes].published
    assert {record.person_id for record in records} == set(range(1, 1468))
    people = {
        split: {record.person_id for record in records if record.split == split}
        for split in FOLDERS
    }
    assert people["query"] == people["gallery"]
    assert not people["query"] & people["train"]
    assert len({(cell.pair, cell.person, cell.image) for cell in cells}) == len(records)


def test_reads_protocol(miniature_cuhk03) -> None:
    """Names, persons, cameras and splits of the miniature, and the cells that they mean."""
    cells = cuhk03_mat.read_protocol(miniature_cuhk03.protocol)
    assert len(cells) == len(miniature_cuhk03.pixels) == 40
    by_path = {cell.record.path: cell for cell in cells}
    train = by_path["bounding_box_train/1_002_1_01.png"]
    assert (train.record.person_id, train.record.camera_id) == (2, 1)
    assert (train.pair, train.person, train.image) == (0, 1, 0)
    gallery = by_path["bounding_box_test/5_001_2_10.png"]
    assert (gallery.record.person_id, gallery.record.camera_id) == (8, 2)
    assert (gallery.pair, gallery.person, gallery.image) == (4, 0, 9)
    assert {cell.record.person_id for cell in cells if cell.record.split == "train"} == {2, 4}
    assert by_path["query/1_003_2_06.png"].record.split == "query"


@pytest.mark.parametrize("boxes", cuhk03.BOXES)
def test_extracts_pixels(miniature_cuhk03, tmp_path: Path, boxes: cuhk03.Boxes) -> None:
    """Each image comes out as it went in, upright, in colour, without loss; of the right boxes."""
    cells = cuhk03_mat.read_protocol(miniature_cuhk03.protocol)
    images = miniature_cuhk03.images
    assert cuhk03_mat.extract(images, cells, tmp_path / "out", boxes=boxes) == []
    for cell in cells:
        path = tmp_path / "out" / cell.record.path
        with Image.open(path) as image:
            pixels = np.asarray(image)
        expected = miniature_cuhk03.pixels[path.name]
        assert (pixels == (expected if boxes == "labeled" else 255 - expected)).all()


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        pytest.param({"image": 4}, True, id="empty cell"),
        pytest.param({"person": 7}, True, id="person beyond the last"),
        pytest.param({"pair": 5}, True, id="pair beyond the last"),
        pytest.param({}, False, id="there"),
    ],
)
def test_missing_images_are_named(
    miniature_cuhk03, tmp_path: Path, change: dict[str, int], missing: bool
) -> None:
    """A cell that is empty or not there is returned, and nothing is written for it."""
    cell = replace(cuhk03_mat.read_protocol(miniature_cuhk03.protocol)[0], **change)
    path = cell.record.path
    found = cuhk03_mat.extract(miniature_cuhk03.images, [cell], tmp_path, boxes="labeled")
    assert found == ([path] if missing else [])
    assert (tmp_path / path).is_file() is not missing


def write_old_matlab(path: Path) -> None:
    scipy.io.savemat(path, {"labeled": np.zeros((5, 1)), "detected": np.zeros((5, 1))})


def write_hdf5(path: Path, **arrays: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value


def cut_off(path: Path, source: Path) -> None:
    content = source.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda path, _: path.write_bytes(PAGE), "is a web page, not a MATLAB file",
                     id="web page"),
        pytest.param(lambda path, _: path.touch(), "is not a MATLAB file", id="empty"),
        pytest.param(lambda path, _: write_old_matlab(path),
                     "is a MATLAB 5.0 file, and it must be MATLAB 7.3", id="old MATLAB"),
        pytest.param(lambda path, _: write_hdf5(path, other=1),
                     "can't extract the labeled images", id="other HDF5"),
        pytest.param(cut_off, "can't extract the labeled images", id="cut off"),
    ],
)  # fmt: skip
def test_files_that_are_not_the_images(
    miniature_cuhk03, tmp_path: Path, write: Callable[[Path, Path], object], message: str
) -> None:
    """Each is one line that says what it is instead and what to do."""
    path = tmp_path / "wrong.mat"
    write(path, miniature_cuhk03.images)
    cells = cuhk03_mat.read_protocol(miniature_cuhk03.protocol)
    with pytest.raises(DataError, match=message) as caught:
        cuhk03_mat.extract(path, cells, tmp_path / "out", boxes="labeled")
    assert str(path) in str(caught.value)
    assert "download" in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(source: Path, path: Path, **changes: Any) -> None:
    """Write the protocol again with other arrays; None takes one out."""
    arrays = {k: v for k, v in scipy.io.loadmat(source).items() if not k.startswith("__")}
    arrays |= changes
    scipy.io.savemat(path, {name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda path, _: path.write_bytes(PAGE), "is a web page, not a MATLAB file",
                     id="web page"),
        pytest.param(lambda path, _: write_hdf5(path, labels=1), "is a MATLAB 7.3 file, and it "
                     "must be MATLAB 5.0", id="HDF5"),
        pytest.param(cut_off, "is damaged or not the new protocol", id="cut off"),
        pytest.param(lambda path, right: changed(right, path, query_idx=None),
                     "it has no 'query_idx'", id="no queries"),
        pytest.param(lambda path, right: changed(right, path, query_idx=np.array([[41]])),
                     "query_idx has the number 41 for 40 images", id="beyond the last"),
        pytest.param(lambda path, right: changed(right, path, query_idx=np.array([[6]])),
                     "1_002_1_01.png is in train and in query", id="in two splits"),
        pytest.param(lambda path, right: changed(right, path, labels=np.ones((3, 1))),
                     "40 names, 3 labels and 40 cameras", id="lengths"),
        pytest.param(lambda path, right: changed(right, path, camId=np.ones((40, 1))),
                     "1_001_2_06.png is said to be by camera 1", id="cameras"),
        pytest.param(lambda path, right: changed(right, path, labels=np.full((40, 1), np.nan)),
                     "cannot convert float NaN to integer", id="labels"),
    ],
)  # fmt: skip
def test_files_that_are_not_the_protocol(
    miniature_cuhk03, tmp_path: Path, write: Callable[[Path, Path], object], message: str
) -> None:
    """Each is one line that says what is wrong and where the protocol is published."""
    path = tmp_path / "wrong.mat"
    write(path, miniature_cuhk03.protocol)
    with pytest.raises(DataError, match=message) as caught:
        cuhk03_mat.read_protocol(path)
    assert str(path) in str(caught.value)
    assert "zhunzhong07/person-re-ranking" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_extra(miniature_cuhk03, tmp_path: Path, monkeypatch) -> None:
    """What is missing, and the line that installs it."""
    cells = cuhk03_mat.read_protocol(miniature_cuhk03.protocol)
    monkeypatch.setitem(sys.modules, "h5py", None)
    line = r"needs h5py, which is not installed; run: pip install 'airnet\[cuhk03\]'"
    with pytest.raises(DataError, match=line):
        cuhk03_mat.extract(miniature_cuhk03.images, cells, tmp_path, boxes="labeled")


def test_finds_both_files(miniature_cuhk03, tmp_path: Path) -> None:
    """The images in a folder or one inside it; the protocol in the first place that has it."""
    folder = miniature_cuhk03.images.parent
    assert cuhk03_mat.find_images(folder) == miniature_cuhk03.images
    assert cuhk03_mat.find_images(folder.parent) == miniature_cuhk03.images
    assert cuhk03_mat.find_images(tmp_path / "cuhk03" / "cuhk-03.mat") == miniature_cuhk03.images
    (tmp_path / "none").mkdir()
    assert cuhk03_mat.find_images(tmp_path / "none") is None
    for given in (None, folder, miniature_cuhk03.protocol):
        found = cuhk03_mat.find_protocol("labeled", given=given, places=[tmp_path, folder])
        assert found == miniature_cuhk03.protocol


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(None, "not at .*/cuhk03/cuhk03_new_protocol_config_detected.mat",
                     id="nowhere"),
        pytest.param("nix.mat", "not at .*/cuhk03/nix.mat; get .*config_detected.mat", id="file"),
    ],
)  # fmt: skip
def test_no_protocol(miniature_cuhk03, given: str | None, message: str) -> None:
    """Each says which file it is and where it is published; the other boxes' will not do."""
    folder = miniature_cuhk03.images.parent
    path = None if given is None else folder / given
    with pytest.raises(DataError, match=message) as caught:
        cuhk03_mat.find_protocol("detected", given=path, places=[folder])
    assert "zhunzhong07/person-re-ranking" in str(caught.value)
