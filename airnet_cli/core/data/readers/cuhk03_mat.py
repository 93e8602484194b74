"""CUHK03 from its two official files: `cuhk-03.mat` with the images, and the new protocol's split.

`cuhk-03.mat` is a MATLAB 7.3 file, which is HDF5: `labeled` and `detected` are cell arrays of five
pairs of cameras, each a cell array of persons x 10 images (1-5 by camera 1, 6-10 by camera 2; empty
where there is none). HDF5 lists axes in the other order, so everything is read transposed. The
protocol, `cuhk03_new_protocol_config_{labeled,detected}.mat` (Zhong et al. 2017), is a MATLAB 5
file. h5py, which reads the images, comes with the extra `airnet[cuhk03]`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from airnet_cli.core.data.readers.cuhk03 import Boxes
from airnet_cli.core.data.readers.split_folders import FOLDERS, only_copy, with_folders
from airnet_cli.core.data.records import ImageRecord, Split
from airnet_cli.core.files import is_web_page
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, one_line

IMAGES_FILE = "cuhk-03.mat"
PROTOCOL_SOURCE = "github.com/zhunzhong07/person-re-ranking, folder evaluation/data/CUHK03"

# Pair of cameras, person in it, camera, image: the cell is (person, image) of that pair.
_NAME = re.compile(r"([1-5])_([0-9]{3})_([12])_([0-9]{2})\.png")
_INDICES: dict[str, Split] = {"train_idx": "train", "query_idx": "query", "gallery_idx": "gallery"}
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Cell:
    """One image of the protocol, and in which cell of `cuhk-03.mat` it lies."""

    record: ImageRecord
    pair: int
    """Of cameras, from 0."""
    person: int
    """Row of the pair's cell array, from 0; not the person id, which counts through all pairs."""
    image: int
    """Column, from 0; the first five are by camera 1."""


def find_images(source: Path) -> Path | None:
    """Find `cuhk-03.mat`: `source` itself, in it, or in one folder inside it; None if nowhere.

    Raises:
        DataError: there is more than one.
    """
    if source.is_file():
        return source
    found = [folder / IMAGES_FILE for folder in with_folders(source)]
    found = [path for path in found if path.is_file()]
    return only_copy(source, found, title=IMAGES_FILE, parts=())


def find_protocol(boxes: Boxes, *, given: Path | None, places: Sequence[Path]) -> Path:
    """Find the protocol's file: `given` (it, or its folder), else the first of `places` with it.

    Raises:
        DataError: it is nowhere; the message says where it is published.
    """
    name = f"cuhk03_new_protocol_config_{boxes}.mat"
    if given is not None:
        places = [given] if given.is_dir() else [given.parent]
        name = name if given.is_dir() else given.name
    for folder in places:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"the split of the new protocol is not at {places[0] / name}; get "
        f"cuhk03_new_protocol_config_{boxes}.mat from {PROTOCOL_SOURCE} and put it there, "
        "or give it with --protocol FILE"
    )


def read_protocol(path: Path) -> list[Cell]:
    """Read who is on which image and what each is for, in the protocol's order.

    Raises:
        DataError: it is not the protocol (a web page, another kind of MATLAB file), or it
            contradicts itself.
    """
    import scipy.io

    _check_kind(path, b"MATLAB 5.0", f"get {path.name} again from {PROTOCOL_SOURCE}")
    try:
        return _cells(scipy.io.loadmat(path))
    # scipy raises nearly anything on broken bytes, and its arrays may be of any kind.
    except Exception as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise DataError(
            f"{path} is damaged or not the new protocol of CUHK03: {what}; "
            f"get {path.name} again from {PROTOCOL_SOURCE}"
        ) from None


def extract(
    images: Path, cells: Sequence[Cell], folder: Path, *, boxes: Boxes, progress: Progress = silent
) -> list[str]:
    """Write the images of `cells` as PNG under `folder`, by the paths of their records.

    Returns:
        The paths of those that `images` does not have.

    Raises:
        DataError: h5py is missing; `images` is not `cuhk-03.mat`; or the disk is full.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"reading {images} needs h5py, which is not installed; run: pip install "
            "'airnet[cuhk03]' (or give the image folders of the new protocol, which need nothing)"
        ) from error
    _check_kind(images, b"MATLAB 7.3", f"download {IMAGES_FILE} again")
    for name in FOLDERS.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    try:
        with h5py.File(images, "r") as file:
            pairs = [file[reference] for reference in file[boxes][()].ravel()]
            for done, cell in enumerate(cells):
                if done % 100 == 0:
                    progress("extracting", done, len(cells), "images")
                pixels = _pixels(file, pairs, cell)
                if pixels is None:
                    missing.append(cell.record.path)
                else:
                    Image.fromarray(pixels).save(folder / cell.record.path)
    # h5py raises nearly anything where the file is broken or another one.
    except Exception as error:
        raise DataError(
            f"can't extract the {boxes} images of {images}: {one_line(error)}; "
            f"is the disk full, or is it not {IMAGES_FILE} of CUHK03? then download it again"
        ) from None
    progress("extracting", len(cells), len(cells), "images")
    return missing


def _cells(content: dict[str, Any]) -> list[Cell]:
    """Make sense of the protocol's six arrays; KeyError or ValueError if they do not fit."""
    names = [str(np.asarray(entry).ravel()[0]) for entry in content["filelist"].ravel()]
    person_ids, camera_ids = _integers(content["labels"]), _integers(content["camId"])
    if not len(names) == len(person_ids) == len(camera_ids):
        raise ValueError(
            f"{len(names)} names, {len(person_ids)} labels and {len(camera_ids)} cameras"
        )
    split_of: dict[int, Split] = {}
    for key, split in _INDICES.items():
        for number in _integers(content[key]):
            if not 1 <= number <= len(names):
                raise ValueError(f"{key} has the number {number} for {len(names)} images")
            if number in split_of:
                raise ValueError(f"{names[number - 1]} is in {split_of[number]} and in {split}")
            split_of[number] = split
    return [
        _cell(names[number - 1], person_ids[number - 1], camera_ids[number - 1], split)
        for number, split in sorted(split_of.items())
    ]


def _integers(values: npt.NDArray[Any]) -> list[int]:
    """MATLAB may keep whole numbers as floats."""
    return [int(value) for value in values.ravel()]


def _cell(name: str, person_id: int, camera_id: int, split: Split) -> Cell:
    match = _NAME.fullmatch(name)
    if match is None or person_id < 1:
        raise ValueError(f"{name!r} of person {person_id} is not an image of CUHK03")
    pair, person, camera, image = (int(part) for part in match.groups())
    if not camera == camera_id == (1 if image <= 5 else 2):
        raise ValueError(f"{name} is said to be by camera {camera_id}")
    record = ImageRecord(f"{FOLDERS[split]}/{name}", person_id, camera, split)
    return Cell(record=record, pair=pair - 1, person=person - 1, image=image - 1)


def _pixels(file: Any, pairs: Sequence[Any], cell: Cell) -> npt.NDArray[np.uint8] | None:
    """Give one image, (height, width, 3); None if the cell is empty or does not exist."""
    if cell.pair >= len(pairs):
        return None
    references = pairs[cell.pair]  # (10, persons)
    if cell.image >= references.shape[0] or cell.person >= references.shape[1]:
        return None
    pixels = file[references[cell.image, cell.person]][()]
    # MATLAB writes an empty cell as its size: two numbers.
    if pixels.ndim != 3:
        return None
    return np.ascontiguousarray(pixels.T)  # (3, W, H) -> (H, W, 3)


def _check_kind(path: Path, kind: bytes, advice: str) -> None:
    """Raise unless a file begins as MATLAB writes this kind; plain HDF5 is like MATLAB 7.3."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise DataError(
            f"can't read {path}: {error.strerror or error}; give a file that can be read"
        ) from error
    found = b"MATLAB 7.3" if start.startswith(_HDF5) else start[: len(kind)]
    if found == kind:
        return
    if found.startswith(b"MATLAB "):
        what = f"a {found.decode()} file, and it must be {kind.decode()}"
    else:
        what = "a web page, not a MATLAB file" if is_web_page(start) else "not a MATLAB file"
    raise DataError(f"{path} is {what}; {advice}")
