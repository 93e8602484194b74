"""The checkpoint on disk: enough to run the network, refused in one line where it is broken."""

import json
import pickle
import re
import shutil

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
from airnet_cli.core.files import remove_parts
from airnet_cli.core.model.airnet import IMAGENET_MEAN, IMAGENET_STD, AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.core.model.foreign import LARGEST_HEADER
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
    assert re.fullmatch("[0-9a-f]{64}", header.pop("sha256"))
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


def test_what_a_kill_leaves_of_safetensors_own_file_is_removed(tmp_path, network, monkeypatch):
    """safetensors writes `.tmpXXXXXX` first, beside the file: a run would keep it for ever."""
    save, left = safetensors.torch.save_file, tmp_path / "left"

    def save_in_two_steps(tensors, path, metadata):
        unfinished = path.with_name(".tmpAb12Cd")
        save(tensors, unfinished, metadata=metadata)
        shutil.copytree(tmp_path / "run", left)  # as it is if the process is killed now
        unfinished.rename(path)

    monkeypatch.setattr(safetensors.torch, "save_file", save_in_two_steps)
    write(tmp_path / "run" / "model.safetensors", network)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.safetensors"]
    assert list(left.iterdir())
    remove_parts(left)
    assert not list(left.iterdir())


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
    """Write the good checkpoint again with another header or other tensors, and the right hash."""
    header = header_of(good) | {"sha256": "0" * 64}
    tensors = safetensors.torch.load_file(good)
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)
    if "sha256" in header:
        checkpoint_module._seal(path)


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
        (lambda h, _: h.update(identities="[1, true]"), "garbles 'identities'"),
        (
            lambda h, _: h.update(preprocessing=h["preprocessing"].replace("0.485", "0.5")),
            "prepared in another way: mean is [0.5, 0.456, 0.406], this airnet has [0.485",
        ),
        (lambda h, _: h.update(preprocessing=h["preprocessing"].replace("RGB", "BGR")), 'is "BGR'),
    ],
    ids=[
        "format",
        "none",
        "version",
        "no-preset",
        "no-ids",
        "size",
        "ids",
        "json",
        "true",
        "mean",
        "colour",
    ],
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
            "heads.I.norm.weight is float32 (3,) and should be float32 (1280,)",
        ),
        (
            lambda _, t: t.update({"heads.I.norm.weight": t["heads.I.norm.weight"].double()}),
            "heads.I.norm.weight is float64 (1280,) and should be float32 (1280,)",
        ),
        (lambda _, t: t["heads.I.norm.weight"].fill_(torch.nan), "NaN or infinity in heads.I.norm"),
        (lambda _, t: t["heads.I.norm.bias"][7:8].fill_(-torch.inf), "infinity in heads.I.norm.bi"),
    ],
    ids=["missing", "left-over", "shape", "type", "nan", "infinity"],
)
def test_tensors_must_fit_exactly(tmp_path, good, change, message):
    """Nothing is dropped silently: the tensor is named."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, change)
    checkpoint = read_checkpoint(path)
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        fill_network(network_of(0, "baseline_abp"), checkpoint)
    assert str(path) in one_line(raised)


SPOILT = {
    "a weight": lambda content: content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
    "height": lambda content: content.replace(b'height_px\\": 64', b'height_px\\": 68'),
    "a person": lambda content: content.replace(b"[2, 7, 1500]", b"[2, 3, 1500]"),
    "a name": lambda content: content.replace(b'"heads.I.norm.bias"', b'"heads.I.norm.bjas"'),
    "the hash": lambda content: re.sub(b'sha256":"(.)', rb'sha256":"z', content),
    "a shorter hash": lambda content: re.sub(b'sha256":"..', b'sha256":"', content),
    "the hash's name": lambda content: content.replace(b'"sha256"', b'"shb256"'),
    "the hash's name, to a known one": lambda content: content.replace(b'"sha256"', b'"preset"'),
}


@pytest.mark.parametrize("name", SPOILT)
def test_any_changed_byte_is_noticed(tmp_path, good, name):
    """In the weights or in what is said about them: it would be another network, silently."""
    content = good.read_bytes()
    spoilt = SPOILT[name](content)
    assert spoilt != content
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoilt)
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        read_checkpoint(path)
    one_line(raised)


def test_a_checkpoint_of_before_the_hash_is_read(tmp_path, good, network):
    """It has no hash and nothing else that is unknown."""
    path = tmp_path / "model.safetensors"
    rewritten(path, good, lambda header, _: header.pop("sha256"))
    fill_network(network, read_checkpoint(path))
    rewritten(path, good, lambda header, _: header.update(shb256=header.pop("sha256")))
    with pytest.raises(CheckpointError, match="was changed or damaged after it was written"):
        read_checkpoint(path)


def test_a_huge_header_is_not_read(tmp_path, good):
    """Neither one that is said to be huge, nor one that is."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="has 10 bytes, and should begin with 4,611,6"):
        read_checkpoint(path)
    length = LARGEST_HEADER + 1
    path.write_bytes(length.to_bytes(8, "little") + b"{}".ljust(length))
    with pytest.raises(CheckpointError, match="it describes its tensors by 16,777,217 bytes"):
        read_checkpoint(path)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, t: t.update({"optimizer.0.step": torch.ones(2)}), "optimizer.0 does not fit"),
        (lambda _, t: t.pop("optimizer.0.exp_avg"), "optimizer.0 does not fit the parameter"),
        (lambda _, t: t.update({"optimizer.9999.step": torch.ones(())}), "optimizer.9999 does not"),
        (lambda _, t: t.update({"optimizer.x.step": torch.ones(())}), "x.step is no tensor"),
        (lambda _, t: t["optimizer.0.exp_avg"].fill_(torch.nan), "NaN or infinity in optimizer.0."),
        (lambda _, t: t.pop("network.heads.A1.norm.bias"), "heads.A1.norm.bias is missing"),
        (lambda _, t: t.pop("best.heads.A1.norm.bias"), "heads.A1.norm.bias is missing"),
        (lambda h, _: h.update(finished_epochs="1e999"), "garbles finished_epochs"),
        (lambda h, _: h.update(best='{"epoch": 1, "mAP": NaN}'), "garbles best"),
        (lambda h, _: h.update(best='{"epoch": 1}'), "garbles 'mAP'"),
        (lambda h, _: h.update(best="[1]"), "in its metadata"),
    ],
    ids=[
        "step", "moment", "number", "letter", "nan", "weight", "best", "epochs", "mAP", "no-mAP",
        "list",
    ],
)  # fmt: skip
def test_a_training_state_that_does_not_fit_is_refused(tmp_path, state_of_best, change, message):
    """What torch would take, and fail on at the next step, is named; nothing was filled in."""
    network, good_state = state_of_best
    path = tmp_path / "state.safetensors"
    rewritten(path, good_state, change)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        read_training_state(path, network, adam(network))
    assert str(path) in one_line(raised)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.fixture(scope="module")
def state_of_best(tmp_path_factory):
    """A network and a training state of it that has a best epoch."""
    network = network_of(6, "baseline")
    optimizer = adam(network)
    one_step(network, optimizer)
    weights = {name: t.clone() + 1 for name, t in network.state_dict().items()}
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    best = Best(epoch=4, mAP=0.3, weights=weights)
    write_training_state(path, network, optimizer, finished_epochs=6, best=best)
    return network, path


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
