"""MATLAB files of CUHK03 from strangers: what crashes C libraries is a line, memory is bounded."""

import random
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from airnet_cli.core.data.readers import cuhk03_raw
from airnet_cli.core.processes import Apart
from airnet_cli.errors import DataError

pytestmark = pytest.mark.soak


def test_spoilt_protocols(miniature_cuhk03, tmp_path: Path, survive, damage) -> None:
    """What is accepted contradicts itself nowhere."""
    content = miniature_cuhk03.protocol.read_bytes()
    path = tmp_path / "spoilt.mat"

    with Apart("crashed") as helper:

        def attempt(chance: random.Random) -> None:
            path.write_bytes(damage(content, chance))
            cells = helper.call(cuhk03_raw.load_protocol, path, "get it again")
            assert len({(cell.pair, cell.person, cell.image) for cell in cells}) == len(cells)
            for cell in cells:
                assert cell.record.person_id >= 1
                assert cell.record.camera_id == (1 if cell.image < 5 else 2)

        accepted, refused = survive("spoilt protocols", attempt)
    assert accepted
    assert refused


def test_spoilt_images(miniature_cuhk03, tmp_path: Path, survive, damage) -> None:
    """Each image is written or named as missing, whatever became of its pixels."""
    cells = cuhk03_raw.read_protocol(miniature_cuhk03.protocol)[::13]
    content = miniature_cuhk03.images.read_bytes()
    path, folder = tmp_path / "spoilt.mat", tmp_path / "out"
    for cell in cells:
        (folder / cell.record.path).parent.mkdir(parents=True, exist_ok=True)

    with Apart("crashed") as helper:

        def attempt(chance: random.Random) -> None:
            path.write_bytes(damage(content, chance))
            missing = helper.call(cuhk03_raw.extract_some, path, cells, folder, "labeled")
            for cell in cells:
                file = folder / cell.record.path
                assert file.is_file() is (cell.record.path not in missing)
                file.unlink(missing_ok=True)

        accepted, refused = survive("spoilt images of CUHK03", attempt)
    assert accepted
    assert refused
    assert not [each for each in tmp_path.iterdir() if each.suffix == ".png"]


def element(kind: int, content: bytes) -> bytes:
    """An element of a MATLAB 5 file."""
    return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def array(array_class: int, shape: tuple[int, ...], name: bytes, content: bytes) -> bytes:
    """An array: flags, dimensions and name, then its content."""
    head = element(6, struct.pack("<II", array_class, 0))
    head += element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name)
    return element(14, head + content)


def nested() -> bytes:
    """Cells in cells, so deep that a reader that calls itself has no stack left."""
    innermost = array(6, (1, 1), b"", element(9, b"\0" * 8))
    heads = [b""] * 20_000
    length = len(innermost)
    for depth in range(len(heads)):
        fixed = array(1, (1, 1), b"filelist" if depth == len(heads) - 1 else b"", b"")
        heads[depth] = struct.pack("<II", 14, len(fixed) - 8 + length) + fixed[8:]
        length += len(heads[depth])
    return b"".join(reversed(heads)) + innermost


def bomb() -> bytes:
    """Four gigabytes of zeros in a few megabytes."""
    press = zlib.compressobj(9)
    head = press.compress(struct.pack("<II", 14, 2**32 - 8)) + press.flush(zlib.Z_FULL_FLUSH)
    zeros = press.compress(b"\0" * 2**20) + press.flush(zlib.Z_FULL_FLUSH)
    packed = head + zeros * 2**12  # nothing looks back over a full flush
    return struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize("make", [nested, bomb])
def test_protocols_that_crash_their_reader(tmp_path: Path, make) -> None:
    """One line, and the process that asked is alive."""
    path = tmp_path / "cuhk03_new_protocol_config_labeled.mat"
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(head + make())
    with pytest.raises(DataError, match=r"(is damaged|is not the new protocol)") as raised:
        cuhk03_raw.read_protocol(path)
    assert "\n" not in str(raised.value)


def huge(file: h5py.File) -> h5py.Dataset:
    """A terabyte, of which nothing is in the file."""
    return file.create_dataset("x", shape=(3, 2**20, 2**19), dtype="u1", chunks=(3, 64, 64))


def elsewhere(file: h5py.File) -> h5py.Dataset:
    """The bytes of another file, whatever it is."""
    return file.create_dataset("x", shape=(3, 4, 4), dtype="u1", external=[("secret", 0, 48)])


def virtual(file: h5py.File) -> h5py.Dataset:
    """An array of another file."""
    layout = h5py.VirtualLayout(shape=(3, 4, 4), dtype="u1")
    layout[:] = h5py.VirtualSource("secret.h5", "x", shape=(3, 4, 4))
    return file.create_virtual_dataset("x", layout)


def group(file: h5py.File) -> h5py.Group:
    """No array at all."""
    return file.create_group("x")


@pytest.mark.parametrize("make", [huge, elsewhere, virtual, group])
def test_images_that_are_none(miniature_cuhk03, tmp_path: Path, make) -> None:
    """An image that is too large, or in another file, or no array, is one line; nothing is read."""
    (tmp_path / "secret").write_bytes(bytes(48))
    path = tmp_path / "cuhk-03.mat"
    with h5py.File(path, "w") as file:
        image = make(file)
        cells = np.full((10, 2), image.ref, dtype=h5py.ref_dtype)
        pair = file.create_dataset("pair", data=cells)
        file["labeled"] = np.full((1, 5), pair.ref, dtype=h5py.ref_dtype)
    cell = cuhk03_raw.read_protocol(miniature_cuhk03.protocol)[0]
    with pytest.raises(DataError, match=r"x (has .* values|lies in another file|is no array)"):
        cuhk03_raw.extract(path, [cell], tmp_path / "out", boxes="labeled")
    assert not list((tmp_path / "out").rglob("*.png"))
