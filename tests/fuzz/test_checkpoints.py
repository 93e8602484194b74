"""Checkpoints and weights of strangers: the very network that was written, or one line."""

import io
import json
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from airnet_cli.core import checkpoint as module
from airnet_cli.core.checkpoint import (
    Best,
    Checkpoint,
    fill_network,
    read_checkpoint,
    read_training_state,
    write_checkpoint,
    write_training_state,
)
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone
from airnet_cli.core.model.weights import load_weights
from airnet_cli.errors import AirnetError, WeightsError

IDENTITIES = (2, 7, 1500)


def small_backbone() -> Backbone:
    return Backbone(
        trunk=nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 1, bias=False))),
        stage5=nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)),
        channels=6,
        trunk_prefix="",
        stage5_prefix="layer4.",
        classifier_prefix="fc.",
    )


def small_network() -> AirNet:
    torch.manual_seed(0)
    return AirNet(small_backbone(), variant="airnet", identities=len(IDENTITIES))


def adam(network: AirNet) -> torch.optim.Optimizer:
    return torch.optim.Adam([each for each in network.parameters() if each.requires_grad])


def held(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


def write(path: Path, network: AirNet) -> None:
    write_checkpoint(
        path,
        network,
        preset={"training": {"seed": 3}},
        height_px=64,
        width_px=32,
        identities=IDENTITIES,
        training={"finished_epochs": 3},
    )


def write_state(path: Path, network: AirNet) -> torch.optim.Optimizer:
    optimizer = adam(network)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    sum(output.logits.square().sum() for output in network.train()(images)).backward()
    optimizer.step()
    best = Best(epoch=2, mAP=0.5, weights=held(network))
    write_training_state(path, network, optimizer, finished_epochs=3, best=best)
    return optimizer


def test_spoilt_checkpoints(tmp_path: Path, survive, damage) -> None:
    """Whatever byte is changed, it is noticed; what is accepted is the same to the last bit."""
    path, network = tmp_path / "model.safetensors", small_network()
    write(path, network)
    content, expected, filled = path.read_bytes(), read_checkpoint(path), small_network()
    weights = held(network)

    def attempt(chance: random.Random) -> None:
        path.write_bytes(damage(content, chance))
        read = read_checkpoint(path)
        fill_network(filled, read)
        assert same(held(filled), weights)
        assert described(read) == described(expected)

    survive("checkpoints", attempt)


def described(checkpoint: Checkpoint) -> tuple[Any, ...]:
    size = checkpoint.height_px, checkpoint.width_px
    return checkpoint.preset, size, checkpoint.identities, checkpoint.training


def test_spoilt_training_states(tmp_path: Path, survive, damage) -> None:
    """The same, and what is refused fills in nothing."""
    path, network = tmp_path / "training-state.safetensors", small_network()
    optimizer = write_state(path, network)
    content, weights = path.read_bytes(), held(network)

    def attempt(chance: random.Random) -> None:
        path.write_bytes(damage(content, chance))
        try:
            state = read_training_state(path, network, optimizer)
        finally:
            assert same(held(network), weights)
        assert state.best is not None
        assert (state.finished_epochs, state.best.epoch, state.best.mAP) == (3, 2, 0.5)
        assert same(state.best.weights, weights)

    survive("training states", attempt)


VALUES = [
    "",
    "{}",
    "[]",
    "null",
    "3",
    '"x"',
    "NaN",
    "1e999",
    "[" * 99_999,
    "{" * 9,
    "\0",
    "\x1b[2J",
]
VALUES += ['{"height_px": 64}', "[1, 1]", "9" * 5000, '{"a": ' * 5000, "true", "-1", '"\\ud800"']
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.float8_e4m3fn, torch.complex64]
BAD = [torch.nan, torch.inf, -torch.inf]


def changed(
    header: dict[str, str], tensors: dict[str, Tensor], chance: random.Random
) -> dict[str, Tensor]:
    """Other metadata, names, shapes, types and values, of the kind that somebody may make up."""
    for _ in range(chance.choice((0, 1, 1, 2))):
        name = chance.choice(list(tensors))
        tensor = tensors.pop(name)
        match chance.randrange(7):
            case 0:
                tensors[name[:-1]] = tensor
            case 1:
                tensors[name] = tensor.reshape(-1)[: chance.randrange(tensor.numel() + 1)].clone()
            case 2:
                tensors[name] = tensor.to(chance.choice(DTYPES))
            case 3 if tensor.is_floating_point() and tensor.numel():
                tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice(BAD)
                tensors[name] = tensor
            case 4:
                tensors[name] = tensor.unsqueeze(0)
            case 5:
                tensors |= {name: tensor, f"{name}\n": torch.ones(1)}
    for _ in range(chance.choice((0, 1, 2))):
        key = chance.choice([*header, "extra"])
        match chance.randrange(3):
            case 0:
                header.pop(key, None)
            case 1:
                header[key] = chance.choice(VALUES)
            case 2:
                header[chance.choice(list(header) or ["x"])] = header.get(key, "x")
    return tensors


@pytest.mark.parametrize("kind", ["checkpoint", pytest.param("state", marks=pytest.mark.soak)])
def test_made_up_files(tmp_path: Path, survive, kind: str) -> None:
    """With the right hash, or none, of whatever is in them: it fits and is finite, or one line."""
    path, network = tmp_path / "x.safetensors", small_network()
    optimizer = write_state(path, network)
    if kind == "checkpoint":
        write(path, network)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]

    def attempt(chance: random.Random) -> None:
        here = dict(header, sha256="0" * 64)
        tensors = changed(here, safetensors.torch.load(content), chance)
        if chance.random() < 0.2:
            here.pop("sha256", None)
        path.write_bytes(safetensors.torch.save(tensors, here))
        if here.get("sha256") == "0" * 64:
            module._seal(path)
        if kind == "checkpoint":
            read = read_checkpoint(path)
            assert all(type(each) is int for each in read.identities)
            fill_network(network, read)
        else:
            read_training_state(path, network, optimizer)
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
        assert tensors.keys() == safetensors.torch.load(content).keys()

    accepted, _ = survive(f"made up, {kind}", attempt)
    assert accepted > 5, "some changes do no harm"


def random_header(chance: random.Random) -> bytes:
    """A header whose shapes, types and places are anything."""
    numbers = [0, 1, 4, 24, 2**31, 2**40, 2**63 - 1, 2**64, -1]
    types = ["F32", "F64", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "C64", "X", ""]
    entries: dict[str, Any] = {
        f"t{number}": {
            "dtype": chance.choice(types),
            "shape": chance.choices(numbers, k=chance.randrange(4)),
            "data_offsets": chance.choices(numbers, k=chance.choice((2, 2, 2, 1, 3))),
        }
        for number in range(chance.randrange(4))
    }
    entries["__metadata__"] = {"format": "airnet-checkpoint", "format_version": "1"}
    text = json.dumps(entries).encode()
    length = chance.choice([len(text)] * 8 + [0, 2**32, 2**64 - 1, len(text) - 1])
    return struct.pack("<Q", length) + text + bytes(chance.choice((0, 4, 24)))


def test_made_up_headers(tmp_path: Path, survive) -> None:
    """Overlaps, overflows, holes and unknown types are refused by what reads them."""
    path, network = tmp_path / "x.safetensors", small_network()

    def attempt(chance: random.Random) -> None:
        path.write_bytes(random_header(chance))
        reader: Callable[[], object] = chance.choice(
            (
                lambda: fill_network(network, read_checkpoint(path)),
                lambda: load_weights(small_backbone(), path),
            )
        )
        reader()

    accepted, _ = survive("headers", attempt)
    assert not accepted


def public_state() -> dict[str, Tensor]:
    backbone = small_backbone()
    stage5 = {f"layer4.{name}": tensor for name, tensor in backbone.stage5.state_dict().items()}
    return dict(backbone.trunk.state_dict()) | stage5


def saved(state: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


STATE = public_state()
WEIGHTS = {
    "zip.pth": saved(STATE),
    "old.pth": saved({"state_dict": STATE}, _use_new_zipfile_serialization=False),
    "x.safetensors": safetensors.torch.save(STATE),
}


@pytest.mark.filterwarnings("ignore:.*pickle protocol")
@pytest.mark.parametrize("name", WEIGHTS)
def test_spoilt_weights(tmp_path: Path, survive, damage, name: str) -> None:
    """Finite tensors in every place, or one line; of a zip, whose parts have checksums, the same
    tensors as before.
    """
    path = tmp_path / name

    def attempt(chance: random.Random) -> None:
        path.write_bytes(damage(WEIGHTS[name], chance))
        backbone = small_backbone()
        load_weights(backbone, path)
        filled = held(backbone.trunk) | {f"layer4.{k}": t for k, t in held(backbone.stage5).items()}
        assert all(tensor.isfinite().all() for tensor in filled.values())
        if name == "zip.pth":
            assert same(filled, STATE)

    survive(f"weights, {name}", attempt)


class Payload:
    """A call that runs while it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def test_pickles_are_never_run(tmp_path: Path, survive, damage) -> None:
    """Under any name, whole or spoilt: neither weights nor a checkpoint, and no code was run."""
    victim = tmp_path / "ran"
    hostile = {"conv1.weight": torch.ones(4, 3, 1, 1), "x": Payload(victim)}
    contents = [pickle.dumps({"x": Payload(victim)}, protocol=each) for each in range(6)]
    contents += [saved(hostile), saved(hostile, _use_new_zipfile_serialization=False)]
    contents += [saved(hostile, pickle_protocol=4)]
    names = ["x.pth", "x.pth.tar", "x.safetensors", "x.npy", "x"]

    def attempt(chance: random.Random) -> None:
        path = tmp_path / chance.choice(names)
        content = chance.choice(contents)
        path.write_bytes(damage(content, chance) if chance.random() < 0.7 else content)
        try:
            if chance.random() < 0.3:
                read_checkpoint(path)
            else:
                load_weights(small_backbone(), path)
        finally:
            assert not victim.exists()

    accepted, _ = survive("pickles", attempt)
    assert not accepted


def tuples(depth: int) -> bytes:
    """A dictionary with a key that holds another twice, and so on: to hash it takes years."""
    nested = b"".join(b"q%ch%ch%c\x86" % (number, number, number) for number in range(depth))
    return b"\x80\x02}K\x01" + b"\x85" + nested + b"K\x01s."


def zipped(content: bytes, *, kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as opened:
        opened.writestr("x/data.pkl", content)
        opened.writestr("x/version", "3\n")
    return file.getvalue()


def bomb() -> bytes:
    """Weights that are packed to a hundredth; it might as well be three gigabytes."""
    good = zipfile.ZipFile(io.BytesIO(saved({"x": torch.zeros(4)})))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        for member in good.infolist():
            if member.filename.endswith("/data/0"):
                with opened.open(member.filename, "w", force_zip64=True) as data:
                    for _ in range(8):
                        data.write(bytes(2**22))
            else:
                size = b"J" + struct.pack("<i", 2**23)
                content = good.read(member).replace(b"K\x04", size)
                opened.writestr(member.filename, content)
    return file.getvalue()


def old(content: bytes) -> bytes:
    """As torch wrote files before 1.6: the pickle comes fourth."""
    start = b"".join(pickle.dumps(each, protocol=2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
    return start + content + pickle.dumps([], protocol=2)


ARRAY = (
    b"\x80\x02}X\x01\x00\x00\x00xc__builtin__\nbytearray\n\x8a\x05" + struct.pack("<q", 10**10)[:5]
)
ARRAY += b"\x85Rs."

NASTY = {
    "packed.pth": bomb,
    "array.pth": lambda: zipped(ARRAY),
    "old-array.pth": lambda: old(ARRAY),
    "tuples.pth": lambda: zipped(tuples(60)),
    "old-tuples.pth": lambda: old(tuples(60)),
    "lists.pth": lambda: zipped(b"\x80\x02" + b"]" * 10**7 + b"."),
    "sets.pth": lambda: old(b"\x80\x02" + b"\x8f" * 10**7 + b"."),
    "many.pth": lambda: many(101_000),
    "claims.pth": lambda: saved({"x": torch.zeros(3)}).replace(b"K\x03", b"M\xff\xff"),
    "claims.safetensors": lambda: struct.pack("<Q", 2**31) + bytes(100),
    "nested.safetensors": lambda: struct.pack("<Q", 2**24) + b'{"a":'.ljust(2**24, b"["),
}


def many(count: int) -> bytes:
    entry = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0
    )
    entries = b"".join(entry + b"%08d" % number for number in range(count))
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, len(entries), 4, 0)
    return b"PK\3\4" + entries + end


@pytest.mark.soak
def test_nasty_weights(tmp_path: Path, in_child) -> None:
    """What is small and asks for gigabytes or years is refused, within 2 GB and two minutes."""
    for name, content in NASTY.items():
        (tmp_path / name).write_bytes(content())
    program = """
import sys
from pathlib import Path
from airnet_cli.core.model.weights import read_state_dict
from airnet_cli.errors import WeightsError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, "read", len(read_state_dict(path)))
    except WeightsError as error:
        print(path.name, "refused", error)
"""
    lines = in_child(program, str(tmp_path)).splitlines()
    assert {line.split()[0]: line.split()[1] for line in lines} == dict.fromkeys(NASTY, "refused")


@pytest.mark.soak
def test_a_million_identities_take_no_memory(tmp_path: Path, in_child) -> None:
    """They are held against the tensors before a classifier is made for them."""
    from airnet_cli.config.presets import load_preset
    from airnet_cli.workflows.build import describe_network

    preset = load_preset("demo", ["model.backbone=mobilenet_v2"])
    described = describe_network(preset, identities=1)
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in described.state_dict().items()
    }
    described.state_dict = lambda: tensors  # type: ignore[method-assign, assignment]
    write_checkpoint(
        tmp_path / "model.safetensors",
        described,
        preset=preset.model_dump(mode="json"),
        height_px=preset.data.height_px,
        width_px=preset.data.width_px,
        identities=(1,) * 1_000_000,
        training={},
    )
    program = """
import sys
from pathlib import Path
from airnet_cli.core.checkpoint import read_checkpoint
from airnet_cli.workflows.build import restore_network
try:
    restore_network(read_checkpoint(Path(sys.argv[1])))
except Exception as error:
    print(type(error).__name__, error)
"""
    said = in_child(program, str(tmp_path / "model.safetensors"))
    assert said.startswith("CheckpointError")
    assert "classifier.weight is float32 (1, 1280) and should be float32 (1000000, 1280)" in said


def test_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    """Nor are weights of a checkpoint's name taken for one."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS["zip.pth"])
    with pytest.raises(AirnetError, match="can't be read as airnet-checkpoint"):
        read_checkpoint(path)
    with pytest.raises(WeightsError, match="can't be read"):
        load_weights(small_backbone(), path)
