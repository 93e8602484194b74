"""The checkpoint on disk: enough to run the network, refused in one line where it is broken."""

import json
import pickle
import re

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from airnet_cli.core import checkpoint as checkpoint_module
from airnet_cli.core.checkpoint import (
    Best,
    fill_network,
    library_versions,
    read_checkpoint,
    read_training_state,
    write_checkpoint,
    write_training_state,
)
from airnet_cli.core.model.airnet import IMAGENET_MEAN, IMAGENET_STD, AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.errors import CheckpointError, OutputError

IDENTITIES = (2, 7, 1500)
PRESET = {"description": "für Tests", "training": {"learning_rate": 3.5e-4, "seed": 0}}


def network_of(seed: int, variant: str = "airnet", identities: int = 3) -> AirNet:
    torch.manual_seed(seed)
    return AirNet(build_backbone("mobilenet_v2"), variant=variant, identities=identities).eval()


def write(path, network) -> None:
    write_checkpoint(
        path,
        network,
        preset=PRESET,
        height_px=64,
        width_px=32,
        identities=IDENTITIES,
        training={"finished_epochs": 3, "seed": 9},
    )


def adam(network: AirNet) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)


def one_step(network: AirNet, optimizer: torch.optim.Optimizer) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    sum(output.logits.square().sum() for output in network.train()(images)).backward()
    optimizer.step()
    optimizer.zero_grad()
    network.eval()


@pytest.fixture(scope="module")
def network() -> AirNet:
    """A network whose batch statistics and weights are not a new one's."""
    network = network_of(0, "baseline_abp")
    one_step(network, adam(network))
    return network


@pytest.fixture(scope="module")
def good(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    write(path, network)
    return path


def header_of(path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def one_line(raised) -> str:
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_network_comes_back_exactly(tmp_path, layout):
    """The same embedding to the last bit, in either memory layout, from the file alone."""
    network = network_of(1).to(memory_format=layout)
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    expected = network.embed(images)
    write(tmp_path / "model.safetensors", network)
    other = network_of(2).to(memory_format=layout)
    assert not torch.equal(other.embed(images), expected)
    fill_network(other, read_checkpoint(tmp_path / "model.safetensors"))
    assert torch.equal(other.embed(images), expected)


def test_all_that_is_needed_comes_back(good):
    """Preset, size of the images, ids by class (defect 9), state of the training."""
    checkpoint = read_checkpoint(good)
    assert checkpoint.path == good
    assert checkpoint.preset == PRESET
    assert (checkpoint.height_px, checkpoint.width_px) == (64, 32)
    assert checkpoint.identities == IDENTITIES
    assert checkpoint.training == {"finished_epochs": 3, "seed": 9}


def test_header_is_text_that_anyone_can_read(good, network):
    """The documented keys, JSON each; preprocessing, heads and versions included."""
    header = header_of(good)
    assert (header.pop("format"), header.pop("format_version")) == ("airnet-checkpoint", "1")
    described = {key: json.loads(value) for key, value in header.items()}
    assert described.keys() == {
        "preset", "preprocessing", "heads", "identities", "training", "versions"
    }  # fmt: skip
    assert described["preprocessing"]["mean"] == list(IMAGENET_MEAN)
    assert described["preprocessing"]["std"] == list(IMAGENET_STD)
    assert described["preprocessing"]["colour"] == "RGB"
    assert described["heads"] == {"I": [0, 1280]}
    assert described["versions"] == library_versions()
    assert torch.__version__.startswith(described["versions"]["torch"])


def test_writing_fails_whole(tmp_path, network, monkeypatch):
    """A full disk in the middle leaves the checkpoint of before and nothing beside it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"of before")

    def fail(_tensors, filename, **_options):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.safetensors.torch, "save_file", fail)
    with pytest.raises(OutputError, match="No space"):
        write(path, network)
    assert path.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_contents_are_the_same_file(tmp_path, network):
    """Whatever process writes it: the fingerprint is that of the file."""
    write(tmp_path / "a.safetensors", network)
    content = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


class Payload:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return type(self.victim).touch, (self.victim,)


def damaged(kind: str, content: bytes, tmp_path) -> bytes:
    """Return the bytes of a good checkpoint after a mishap."""
    match kind:
        case "truncated":
            return content[: len(content) // 2]
        case "one-byte-short":
            return content[:-1]
        case "header-only":
            return content[:100]
        case "empty":
            return b""
        case "flipped-length":
            return bytes([content[0] ^ 0xFF, *content[1:8]]) + content[8:]
        case "flipped-header":
            return content[:8] + bytes([content[8] ^ 0xFF]) + content[9:]
        case "text":
            return b"<html>404 Not Found</html>" * 10
        case "pickle":
            return pickle.dumps({"a": Payload(tmp_path / "ran")})
    raise AssertionError(kind)


MISHAPS = [
    "truncated", "one-byte-short", "header-only", "empty", "flipped-length", "flipped-header",
    "text", "pickle",
]  # fmt: skip


@pytest.mark.parametrize("kind", MISHAPS)
def test_damaged_file_is_one_line(tmp_path, good, kind):
    """Whatever happened to it; and a pickle under this name is never run."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(kind, good.read_bytes(), tmp_path))
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        read_checkpoint(path)
    one_line(raised)
    assert not (tmp_path / "ran").exists()


def rewritten(path, good, change) -> None:
    """Write the good checkpoint again with another header or other tensors."""
    header = header_of(good)
    tensors = safetensors.torch.load_file(good)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, _: h.update(format="other"), "is no airnet-checkpoint file, but other"),
        (lambda h, _: h.clear(), "is no airnet-checkpoint file, but something else"),
        (lambda h, _: h.update(format_version="2"), "format version 2, this airnet reads 1; upd"),
        (lambda h, _: h.pop("preset"), "lacks or garbles 'preset'"),
        (lambda h, _: h.pop("identities"), "lacks or garbles 'identities'"),
        (lambda h, _: h.update(preprocessing='{"height_px": "x", "width_px": 1}'), "garbles"),
        (lambda h, _: h.update(identities="3"), "garbles"),
        (lambda h, _: h.update(preset="{broken"), "is it whole?"),
    ],
    ids=["format", "none", "version", "no-preset", "no-ids", "size", "ids", "json"],
)
def test_other_headers_are_refused(tmp_path, good, change, message):
    """What it is instead, or what it lacks."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, change)
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        read_checkpoint(path)
    assert str(path) in one_line(raised)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, t: t.pop("heads.I.norm.weight"), "heads.I.norm.weight"),
        (lambda _, t: t.update(other=torch.ones(1)), "other"),
        (
            lambda _, t: t.update({"heads.I.norm.weight": torch.ones(3)}),
            "heads.I.norm.weight",
        ),
    ],
    ids=["missing", "left-over", "shape"],
)
def test_tensors_must_fit_exactly(tmp_path, good, change, message):
    """Nothing is dropped silently: the tensor is named."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, change)
    checkpoint = read_checkpoint(path)
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        fill_network(network_of(0, "baseline_abp"), checkpoint)
    assert str(path) in one_line(raised)


@pytest.mark.parametrize(
    "read",
    [read_checkpoint, lambda path: read_training_state(path, nn.Linear(1, 1), None)],
    ids=["checkpoint", "state"],
)
def test_missing_file_is_one_line(tmp_path, read):
    """Its name, and how to get one."""
    path = tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match="does not exist; `airnet train` writes") as raised:
        read(path)
    assert str(path) in one_line(raised)


def test_training_state_comes_back_exactly(tmp_path):
    """Weights, the optimizer's moments and steps, the number of finished epochs."""
    network = network_of(3, "baseline")
    optimizer = adam(network)
    one_step(network, optimizer)
    path = tmp_path / "state.safetensors"
    write_training_state(path, network, optimizer, finished_epochs=7)
    other = network_of(4, "baseline")
    other_optimizer = adam(other)
    assert read_training_state(path, other, other_optimizer).finished_epochs == 7
    state = other.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in network.state_dict().items())
    expected, found = optimizer.state_dict(), other_optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, values in expected["state"].items():
        assert values.keys() == found["state"][index].keys()
        assert all(torch.equal(t, found["state"][index][k]) for k, t in values.items())


def test_training_state_and_checkpoint_are_not_mixed_up(tmp_path, good, network):
    """Each reader refuses the other's file by its name."""
    state = tmp_path / "state.safetensors"
    write_training_state(state, network, adam(network), finished_epochs=1)
    with pytest.raises(CheckpointError, match="no airnet-checkpoint file, but airnet-training"):
        read_checkpoint(state)
    with pytest.raises(CheckpointError, match="no airnet-training-state file, but airnet-check"):
        read_training_state(good, network, adam(network))


def test_training_state_of_another_network_names_what_differs(tmp_path, network):
    """One line with the file and a tensor that does not fit."""
    path = tmp_path / "state.safetensors"
    write_training_state(path, network, adam(network), finished_epochs=1)
    other = network_of(0, "baseline")
    with pytest.raises(CheckpointError, match=r"heads\.") as raised:
        read_training_state(path, other, adam(other))
    assert str(path) in one_line(raised)


def test_training_state_without_its_number_of_epochs(tmp_path, network):
    """A header that lacks a key is one line as well."""
    path = tmp_path / "state.safetensors"
    write_training_state(path, network, adam(network), finished_epochs=1)
    rewritten(path, path, lambda header, _: header.pop("finished_epochs"))
    with pytest.raises(CheckpointError, match="finished_epochs") as raised:
        read_training_state(path, network, adam(network))
    assert str(path) in one_line(raised)


def test_best_epoch_travels_in_the_training_state(tmp_path):
    """Its number, its score to the last bit and its weights; without one there is none."""
    network = network_of(5, "baseline")
    weights = {name: t.clone() + 1 for name, t in network.state_dict().items()}
    path = tmp_path / "state.safetensors"
    best = Best(epoch=4, mAP=0.1 + 0.2, weights=weights)
    write_training_state(path, network, adam(network), finished_epochs=6, best=best)
    state = read_training_state(path, network, adam(network))
    assert state.finished_epochs == 6
    assert state.best is not None
    assert (state.best.epoch, state.best.mAP) == (4, 0.1 + 0.2)
    assert state.best.weights.keys() == weights.keys()
    assert all(torch.equal(t, weights[name]) for name, t in state.best.weights.items())
    write_training_state(path, network, adam(network), finished_epochs=6)
    assert read_training_state(path, network, adam(network)).best is None
