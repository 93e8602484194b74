"""A disk that is full, and files that are cut off: one line each, and nothing taken for whole."""

import contextlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from airnet_cli.core.checkpoint import (
    read_checkpoint,
    read_training_state,
    write_checkpoint,
    write_training_state,
)
from airnet_cli.core.data.manifest import read_manifest, write_manifest
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.files import write_json
from airnet_cli.core.gallery import files, read_gallery
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.errors import AirnetError

ROWS, DIMENSIONS = 300, 8


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may grow beyond `room` bytes: the system refuses it as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def network() -> AirNet:
    torch.manual_seed(0)
    backbone = build_backbone("mobilenet_v2")
    return AirNet(backbone, variant="baseline", identities=3).eval()


@pytest.fixture(scope="module")
def optimizer(network: AirNet) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters())


def write_gallery(path: Path, seed: int) -> None:
    rows = np.random.default_rng(seed).random((ROWS, DIMENSIONS), dtype=np.float32)
    columns = {"path": [f"{number:04}.png" for number in range(ROWS)]}
    record = {
        "dimensions": DIMENSIONS,
        "dtype": "float32",
        "fingerprint": str(seed),
        "heads": {"A1": [0, DIMENSIONS]},
        "normalize_heads": False,
        "flip": False,
    }
    files.write_gallery(path, files.Gallery(path, rows, columns, {}, {}), record)


def write_set(path: Path, seed: int) -> None:
    records = [ImageRecord(f"{number}.png", number, seed, "train") for number in range(100)]
    write_manifest(path, name="few", root=path.parent, records=records, split_rule="by hand")


@pytest.fixture
def writers(network, optimizer) -> dict[str, Callable[[Path, int], None]]:
    """Each writes a file anew, different for another seed."""

    def checkpoint(path: Path, seed: int) -> None:
        write_checkpoint(
            path,
            network,
            preset={},
            height_px=64,
            width_px=32,
            identities=(1, 2, 3),
            training={"seed": seed},
        )

    def state(path: Path, seed: int) -> None:
        write_training_state(path, network, optimizer, finished_epochs=seed)

    return {
        "model.safetensors": checkpoint,
        "training-state.safetensors": state,
        "gallery.npy": write_gallery,
        "manifest.jsonl": write_set,
        "scores.json": lambda path, seed: write_json(path, {"values": [seed] * 1000}),
    }


NAMES = (
    "model.safetensors",
    "training-state.safetensors",
    "gallery.npy",
    "manifest.jsonl",
    "scores.json",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("room", [0, 100, 3000], ids=lambda room: f"{room} bytes left")
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, writers, name, room) -> None:
    """Whatever could be written of the new one is removed."""
    path = tmp_path / name
    writers[name](path, 1)
    before = contents(tmp_path)
    refused = pytest.raises(AirnetError, match=r"can't write .*(too large|os error 27)")
    with refused as raised, full_disk(room):
        writers[name](path, 2)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert contents(tmp_path) == before
    writers[name](path, 2)  # and when there is room again, it is written
    assert contents(tmp_path)[name] != before[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_is_no_folder_is_one_line(tmp_path, writers, name) -> None:
    """A file where a folder should be; a read-only folder is told in the same way."""
    (tmp_path / "file").write_text("mine")
    reasons = r"(Not a directory|File exists|is a file, not a folder)"
    with pytest.raises(AirnetError, match=rf"can't write .*{reasons}") as raised:
        writers[name](tmp_path / "file" / name, 1)
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_folder_is_one_line(tmp_path, writers, name) -> None:
    """And what is in it stays."""
    path = tmp_path / name
    writers[name](path, 1)
    before = contents(tmp_path)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(AirnetError, match=r"can't write .*Permission denied"):
            writers[name](path, 2)
    finally:
        tmp_path.chmod(0o755)
    assert contents(tmp_path) == before


CUT = (
    "model.safetensors",
    "training-state.safetensors",
    "gallery.npy",
    "gallery.csv",
    "gallery.json",
    "manifest.jsonl",
)


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_off_is_never_taken_for_a_whole_one(
    tmp_path, writers, network, optimizer, name
) -> None:
    """At each length that a copy may have stopped at: one line that names it."""
    written = tmp_path / ("gallery.npy" if name.startswith("gallery") else name)
    writers[written.name](written, 1)
    read: dict[str, Callable[[], object]] = {
        "model.safetensors": lambda: read_checkpoint(written),
        "training-state.safetensors": lambda: read_training_state(written, network, optimizer),
        "manifest.jsonl": lambda: read_manifest(written),
    }
    check = read.get(written.name, lambda: read_gallery(written))
    check()
    path = tmp_path / name
    for length in interesting_lengths(path):
        os.truncate(path, length)
        with pytest.raises(AirnetError) as raised:
            check()
        assert "\n" not in str(raised.value), length
        assert path.name in str(raised.value) or written.name in str(raised.value), length


def interesting_lengths(path: Path) -> list[int]:
    """From nearly whole to nothing: ends of parts and lines, some of everything between."""
    content = path.read_bytes()
    size = len(content)
    header = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 128
    lines = [at + 1 for at, byte in enumerate(content[: 2**16]) if byte == 10]
    wanted = {0, 1, 2, 7, 8, 9, header - 1, header, header + 1, size // 3, size // 2}
    wanted |= {size - 1, size - 2, size - 4, size - 64, size - 4096, *lines[:20], *lines[-20:]}
    if path.suffix == ".json":
        wanted |= set(range(size))
        wanted -= {size - 1}  # all but the last line's end: still the whole object
    return sorted((each for each in wanted if 0 <= each < size), reverse=True)


def test_a_stopped_gallery_is_none(tmp_path, writers) -> None:
    """While the new one is being written, the old one's record is not beside the new rows."""
    path = tmp_path / "gallery.npy"
    write_gallery(path, 1)
    for missing in (".json", ".csv", ".npy"):
        shutil.copytree(tmp_path, copy := tmp_path.with_name(f"without{missing}"))
        (copy / f"gallery{missing}").unlink()
        with pytest.raises(AirnetError, match="gallery"):
            read_gallery(copy / "gallery.npy")
