"""The checkpoint on disk: enough to run the network, one plain line if something is wrong."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from airnet_cli.core import checkpoint as module
from airnet_cli.core.checkpoint import (
    Best,
    model_fingerprint,
    read_checkpoint,
    read_training_state,
    restore_network,
    write_checkpoint,
    write_training_state,
)
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.errors import CheckpointError, OutputError

IDENTITIES = (2, 7, 1500)
PRESET = {
    "description": "für Tests",
    "model": {"variant": "baseline_abp", "backbone": "mobilenet_v2"},
    "evaluation": {"normalize_heads": True},
}


def network_of(seed: int, variant: str = "baseline_abp") -> AirNet:
    torch.manual_seed(seed)
    backbone = build_backbone("mobilenet_v2")
    return AirNet(backbone, variant=variant, identities=len(IDENTITIES)).eval()


def write(path: Path, network: AirNet) -> None:
    write_checkpoint(
        path,
        network,
        preset=PRESET,
        height_px=64,
        width_px=32,
        identities=IDENTITIES,
        training={"finished_epochs": 3, "seed": 9},
        normalize_heads=True,
    )


def adam(network: AirNet) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)


def one_step(network: AirNet, optimizer: torch.optim.Optimizer) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    sum(output.logits.square().sum() for output in network.train()(images)).backward()
    optimizer.step()
    network.eval()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A checkpoint whose batch statistics and weights are not a new network's."""
    network = network_of(0)
    one_step(network, adam(network))
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    write(path, network)
    return path


def header_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def rewritten(path: Path, good: Path, change) -> None:
    """Write a good file again with other metadata or other tensors."""
    header, tensors = header_of(good), safetensors.torch.load_file(good)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)


def refusal(path: Path) -> str:
    """The one line, with the path, that a user reads about a bad checkpoint."""
    with pytest.raises(CheckpointError) as raised:
        restore_network(read_checkpoint(path))
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("variant", ["airnet", "airnet_gc"])
@torch.inference_mode()
def test_network_comes_back_exactly(tmp_path, variant, layout):
    """The same embedding to the last bit, in either memory layout, from the file alone."""
    network = network_of(1, variant).to(memory_format=layout)
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    write(tmp_path / "model.safetensors", network)
    restored = restore_network(read_checkpoint(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").write_bytes(b"")  # the network does not depend on the file
    assert not restored.training
    assert torch.equal(restored.embed(images), network.embed(images))


def test_all_that_is_needed_comes_back(good):
    """The network's arguments, the preset, the image size, ids by class, the training."""
    checkpoint = read_checkpoint(good)
    assert checkpoint.path == good
    assert (checkpoint.variant, checkpoint.backbone) == ("baseline_abp", "mobilenet_v2")
    assert checkpoint.normalize_heads
    assert checkpoint.preset == PRESET
    assert (checkpoint.height_px, checkpoint.width_px) == (64, 32)
    assert checkpoint.identities == IDENTITIES
    assert checkpoint.training == {"finished_epochs": 3, "seed": 9}


def test_equal_contents_are_equal_files(good):
    """Equal models have equal fingerprints, although safetensors writes keys in any order."""
    content = good.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    """A full disk leaves the previous checkpoint and no temporary file."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"of before")

    def fail(_tensors, filename, **_options):
        filename.write_bytes(b"half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OutputError, match="No space"):
        write(path, network_of(0))
    assert path.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [path]


# Older versions


def as_version_1(header: dict[str, str], **model: str) -> None:
    """Turn the metadata of `good` into those that version 1 wrote, with settings of its preset."""
    del header["network"]
    preset = PRESET | {"model": PRESET["model"] | {"attention": "none", **model}}
    header |= {"format_version": "1", "sha256": "0" * 64, "preset": json.dumps(preset)}


def test_a_version_1_checkpoint_is_read(tmp_path, good):
    """Its arguments come from its preset; its hash is not checked."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, lambda header, _: as_version_1(header))
    old, new = read_checkpoint(path), read_checkpoint(good)
    assert (old.variant, old.backbone, old.normalize_heads) == (
        new.variant, new.backbone, new.normalize_heads
    )  # fmt: skip
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    assert torch.equal(restore_network(old).embed(images), restore_network(new).embed(images))


@pytest.mark.parametrize("setting", [{"attention": "softmax"}, {"activation": "relu"}], ids=str)
def test_a_version_1_checkpoint_with_a_removed_setting_is_refused(tmp_path, good, setting):
    """Its network would silently be another one."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, lambda header, _: as_version_1(header, **setting))
    ((key, value),) = setting.items()
    assert f"was trained with model.{key} = '{value}'" in refusal(path)


# Files that are not checkpoints, or damaged ones


MISTAKES = {
    "gallery.npy": (lambda path: np.save(path, np.zeros((2, 3))), "a NumPy array, such as a gall"),
    "weights.pth": (lambda path: torch.save({"a": torch.ones(1)}, path), "a zip archive, such as"),
    "page": (lambda path: path.write_text("<html>404 Not Found</html>"), "an HTML or XML page"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com"), "a Git LFS po"),
    "empty": (lambda path: path.touch(), "an empty file"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_another_kind_of_file_is_named(tmp_path, name):
    """What people give by mistake."""
    make, message = MISTAKES[name]
    make(tmp_path / name)
    assert f"can't be read as airnet-checkpoint: it looks like {message}" in refusal(
        tmp_path / name
    )


@pytest.mark.parametrize("length", [9, 100, 10_000, -1])
def test_a_truncated_file_is_named(tmp_path, good, length):
    """However much of it a copy has."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(good.read_bytes()[:length])
    assert "it looks like a damaged or truncated safetensors file" in refusal(path)


def test_a_missing_file_is_named(tmp_path):
    """And the line says how to get one."""
    assert "does not exist; `airnet train` writes one" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, _: h.clear(), "is not an airnet-checkpoint file, but 'of another program'"),
        (lambda h, _: h.update(format_version="3"), "version 3, this airnet reads 1 to 2; update"),
        (lambda h, _: h.pop("identities"), "missing or damaged metadata ('identities')"),
        (lambda h, _: h.update(network=h["network"].replace("_abp", "_x")), "variant 'baseline_x'"),
        (lambda h, _: h.update(network=h["network"].replace("_v2", "_v4")), "'mobilenet_v4'"),
        (lambda _, t: t.pop("heads.I.norm.weight"), "mobilenet_v2): 'heads.I.norm.weight' is miss"),
        (lambda _, t: t.update(other=torch.ones(1)), "(1,), expected no such tensor"),
        (
            lambda _, t: t.update({"heads.I.norm.weight": torch.ones(3).double()}),
            "'heads.I.norm.weight' is float64 (3,), expected float32 (1280,)",
        ),
        (lambda _, t: t.clear(), "expected float32 (32,); and 317 more"),
        (lambda _, t: t["heads.I.norm.weight"].fill_(torch.nan), "NaN or infinity in heads.I.norm"),
    ],
    ids=[
        "other", "version", "no-ids", "variant", "backbone", "missing", "left-over", "shape",
        "empty", "nan",
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(tmp_path, good, change, message):
    """The line names what differs, and nothing is dropped silently."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, change)
    assert message in refusal(path)


# The fingerprint


def test_fingerprint_is_computed_once_per_file(tmp_path, monkeypatch):
    """Under any name of the file; a changed file has another one."""
    path, link = tmp_path / "model.safetensors", tmp_path / "link.safetensors"
    path.write_bytes(b"weights")
    link.symlink_to(path)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib, "file_digest", lambda file, name: read.append(file) or digest(file, name)
    )
    expected = hashlib.sha256(b"weights").hexdigest()
    assert model_fingerprint(path) == model_fingerprint(link) == expected
    assert len(read) == 1
    path.write_bytes(b"others!!")
    assert model_fingerprint(link) == hashlib.sha256(b"others!!").hexdigest()


# The training state


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> tuple[Path, AirNet, torch.optim.Optimizer, Best]:
    """A training state with a best epoch, and everything that is in it."""
    network = network_of(3)
    optimizer = adam(network)
    one_step(network, optimizer)
    weights = {name: tensor.clone() + 1 for name, tensor in network.state_dict().items()}
    best = Best(epoch=4, mAP=0.1 + 0.2, weights=weights)
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    write_training_state(path, network, optimizer, finished_epochs=7, best=best)
    return path, network, optimizer, best


@pytest.mark.parametrize("version", ["1", "2"])
def test_training_state_comes_back_exactly(tmp_path, state, version):
    """Weights, Adam's moments and steps, the best epoch, the number of finished epochs."""
    path, network, optimizer, best = state
    rewritten(tmp_path / "s", path, lambda header, _: header.update(format_version=version))
    other = network_of(4)
    other_optimizer = adam(other)
    read = read_training_state(tmp_path / "s", other, other_optimizer)
    assert read.finished_epochs == 7
    assert same(other.state_dict(), network.state_dict())
    assert read.best is not None
    assert (read.best.epoch, read.best.mAP) == (best.epoch, best.mAP)
    assert same(read.best.weights, best.weights)
    expected, found = optimizer.state_dict(), other_optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    assert all(same(found["state"][index], each) for index, each in expected["state"].items())


def test_a_training_state_that_does_not_fit_is_refused(tmp_path, state, good):
    """It is damaged, of another network, or a checkpoint; and it is not a checkpoint itself."""
    path, network, optimizer, _ = state
    assert "not an airnet-checkpoint file, but 'airnet-training-state'" in refusal(path)
    with pytest.raises(CheckpointError, match="not an airnet-training-state file, but 'airnet-ch"):
        read_training_state(good, network, optimizer)
    other = network_of(0, "baseline")
    with pytest.raises(CheckpointError, match=r"state\.safetensors' does not fit .*heads\.") as it:
        read_training_state(path, other, adam(other))
    assert "\n" not in str(it.value)
    rewritten(tmp_path / "s", path, lambda header, _: header.pop("finished_epochs"))
    with pytest.raises(CheckpointError, match="finished_epochs"):
        read_training_state(tmp_path / "s", network, optimizer)
    (tmp_path / "s").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_training_state(tmp_path / "s", nn.Linear(1, 1), optimizer)
