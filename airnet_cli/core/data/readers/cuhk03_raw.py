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

from airnet_cli.core.data.problems import listed
from airnet_cli.core.data.readers.cuhk03 import FOLDERS, Boxes
from airnet_cli.core.data.records import ImageRecord, Split
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

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
    places = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    found = [folder / IMAGES_FILE for folder in places if (folder / IMAGES_FILE).is_file()]
    if len(found) > 1:
        names = ", ".join(path.relative_to(source).as_posix() for path in found)
        raise DataError(f"{source} holds more than one {IMAGES_FILE} ({names}); give one of them")
    return found[0] if found else None


def find_protocol(boxes: Boxes, *, given: Path | None, places: Sequence[Path]) -> Path:
    """Find the protocol's file: `given` (it, or its folder), else the first of `places` with it.

    Raises:
        DataError: it is nowhere; the message says where it is published.
    """
    name = f"cuhk03_new_protocol_config_{boxes}.mat"
    if given is not None:
        path = given / name if given.is_dir() else given
        if path.is_file():
            return path
        raise DataError(
            f"there is no {path}; give {name} with --protocol, it is published at {PROTOCOL_SOURCE}"
        )
    for folder in places:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{name}, the split of the new protocol, is not beside {places[0] / IMAGES_FILE}; "
        f"get it from {PROTOCOL_SOURCE} and put it there, or give it with --protocol FILE"
    )


def read_protocol(path: Path) -> list[Cell]:
    """Read who is on which image and what each is for, in the protocol's order.

    Raises:
        DataError: it is not the protocol (a web page, another kind of MATLAB file), or it
            contradicts itself.
    """
    import scipy.io

    advice = f"get {path.name} again from {PROTOCOL_SOURCE}"
    head = _head(path)
    if head.startswith(b"MATLAB 7.3") or _HDF5 in head:
        raise DataError(
            f"{path} is a MATLAB 7.3 file, and the protocol is a MATLAB 5 file (is it "
            f"{IMAGES_FILE}?); {advice}"
        )
    if not head.startswith(b"MATLAB 5.0"):
        raise DataError(f"{path} {_what_else(head)}; {advice}")
    try:
        content = scipy.io.loadmat(path)
    # scipy raises nearly anything on broken bytes (ValueError, TypeError, zlib.error, ...).
    except Exception as error:
        raise DataError(f"{path} is damaged ({_one_line(error)}); {advice}") from None
    try:
        return _cells(content)
    # And its arrays may be of any kind.
    except Exception as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else _one_line(error)
        raise DataError(f"{path} is not the new protocol of CUHK03: {what}; {advice}") from None


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
    _check_images_file(images)
    for name in FOLDERS.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    try:
        with h5py.File(images, "r") as file:
            pairs = _pairs(images, file, boxes)
            for done, cell in enumerate(cells):
                if done % 100 == 0:
                    progress("extracting", done, len(cells), "images")
                pixels = _pixels(file, pairs, cell)
                if pixels is None:
                    missing.append(cell.record.path)
                else:
                    Image.fromarray(pixels).save(folder / cell.record.path)
    except DataError:
        raise
    # h5py raises nearly anything where the file is broken.
    except Exception as error:
        raise DataError(
            f"can't extract the images of {images}: {_one_line(error)}; "
            "is the disk full, or the file cut off? then download it again"
        ) from None
    progress("extracting", len(cells), len(cells), "images")
    return missing


def _cells(content: dict[str, Any]) -> list[Cell]:
    """Make sense of the protocol's six arrays; KeyError or ValueError where there is none."""
    names = [str(np.asarray(entry).ravel()[0]) for entry in content["filelist"].ravel()]
    person_ids, camera_ids = _integers(content, "labels"), _integers(content, "camId")
    if len(set(names)) != len(names):
        raise ValueError("a name is in filelist twice")
    if not len(names) == len(person_ids) == len(camera_ids):
        raise ValueError(
            f"{len(names)} names, {len(person_ids)} labels and {len(camera_ids)} cameras"
        )
    cells: list[Cell] = []
    split_of: dict[int, Split] = {}
    person_id_of: dict[tuple[int, int], int] = {}
    for key, split in _INDICES.items():
        for number in _integers(content, key):
            if not 1 <= number <= len(names):
                raise ValueError(f"{key} has the number {number} for {len(names)} images")
            if number in split_of:
                raise ValueError(f"{names[number - 1]} is in {split_of[number]} and in {split}")
            split_of[number] = split
    for number, split in sorted(split_of.items()):
        name = names[number - 1]
        person_id, camera_id = person_ids[number - 1], camera_ids[number - 1]
        match = _NAME.fullmatch(name)
        if match is None or person_id < 1:
            raise ValueError(f"{name!r} of person {person_id} is no image of CUHK03")
        pair, person, view, image = (int(part) for part in match.groups())
        if not view == camera_id == (1 if image <= 5 else 2):
            raise ValueError(f"{name} is said to be by camera {camera_id}")
        if person_id_of.setdefault((pair, person), person_id) != person_id:
            other = person_id_of[pair, person]
            raise ValueError(f"{name} is of person {person_id}, other images of {other}")
        record = ImageRecord(
            path=f"{FOLDERS[split]}/{name}", person_id=person_id, camera_id=camera_id, split=split
        )
        cells.append(Cell(record=record, pair=pair - 1, person=person - 1, image=image - 1))
    return cells


def _integers(content: dict[str, Any], key: str) -> list[int]:
    """Read an array of whole numbers, which MATLAB may keep as floats."""
    values: npt.NDArray[Any] = content[key].ravel()
    if values.dtype.kind not in "iuf" or not (values == np.trunc(values)).all():
        raise ValueError(f"{key} has values that are no whole numbers")
    return [int(value) for value in values]


def _check_images_file(path: Path) -> None:
    """Raise unless the file begins like a MATLAB 7.3 file, or plain HDF5."""
    head = _head(path)
    if head.startswith(b"MATLAB 7.3") or head.startswith(_HDF5):
        return
    if head.startswith(b"MATLAB 5.0"):
        what = (
            "is a MATLAB 5 file, and the official one is MATLAB 7.3 (saved again, or is it the "
            "protocol?)"
        )
    else:
        what = _what_else(head)
    raise DataError(
        f"{path} {what}; download {IMAGES_FILE} again, or give the image folders of the new "
        "protocol"
    )


def _pairs(path: Path, file: Any, boxes: Boxes) -> list[npt.NDArray[Any]]:
    """Give for each pair of cameras the references to its images, (10, persons)."""
    if boxes not in file:
        raise DataError(
            f"{path} has no '{boxes}' (it has {listed(sorted(file)) or 'nothing'}), so it is not "
            f"{IMAGES_FILE} of CUHK03; download it again"
        )
    pairs: list[npt.NDArray[Any]] = []
    for reference in _array(file[boxes]).ravel():
        cell = _array(file[reference]) if _is_reference(reference) else np.empty(0)
        if cell.ndim != 2 or not cell.size or not _is_reference(cell.flat[0]):
            raise DataError(
                f"'{boxes}' in {path} is no cell array of cell arrays, so it is not {IMAGES_FILE} "
                "of CUHK03; download it again"
            )
        pairs.append(cell)
    return pairs


def _pixels(
    file: Any, pairs: Sequence[npt.NDArray[Any]], cell: Cell
) -> npt.NDArray[np.uint8] | None:
    """Give one image, (height, width, 3); None where the cell is empty or not there."""
    if cell.pair >= len(pairs):
        return None
    references = pairs[cell.pair]
    if cell.image >= references.shape[0] or cell.person >= references.shape[1]:
        return None
    pixels = _array(file[references[cell.image, cell.person]])
    # MATLAB writes an empty cell as its size: two numbers.
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        return None
    return np.ascontiguousarray(pixels.T)  # (3, W, H) -> (H, W, 3)


def _array(item: Any) -> npt.NDArray[Any]:
    """Read an HDF5 data set."""
    import h5py

    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ValueError(f"{item.name} is not an array")
    return np.asarray(item[()])


def _is_reference(value: object) -> bool:
    import h5py

    return isinstance(value, h5py.Reference)


def _head(path: Path) -> bytes:
    """Read how a file begins: MATLAB writes its own header into HDF5's first 512 bytes."""
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise DataError(
            f"can't read {path}: {error.strerror or error}; give a file that can be read"
        ) from error


def _what_else(head: bytes) -> str:
    """Say what a file that is no MATLAB file looks like: a saved web page is the usual case."""
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not a MATLAB file"
    return "is not a MATLAB file" if head else "is an empty file"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
