"""Damaged checkpoints and weights: a network of finite numbers, or one line, never a traceback."""

import io
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from airnet_cli.core.checkpoint import read_checkpoint, restore_network, write_checkpoint
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone, build_backbone
from airnet_cli.core.model.weights import load_weights

CASES = 100


def test_damaged_checkpoints(tmp_path: Path, survive, damage) -> None:
    """Cut, flipped and moved bytes, mostly in the header, which describes everything."""
    path = tmp_path / "model.safetensors"
    network = AirNet(build_backbone("mobilenet_v2"), variant="baseline", identities=2)
    preset: dict[str, Any] = {"training": {"seed": 3}}
    write_checkpoint(
        path, network, preset=preset, height_px=64, width_px=32, identities=(2, 7), training={}
    )
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")

    def attempt(chance: random.Random) -> None:
        start = chance.choice((length, length, len(content)))
        path.write_bytes(damage(content[:start], chance) + content[start:])
        restored = restore_network(read_checkpoint(path))
        assert all(tensor.isfinite().all() for tensor in restored.state_dict().values())

    survive("checkpoints", attempt, cases=CASES)


def small_backbone() -> Backbone:
    return Backbone(
        trunk=nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)),
        stage5=nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)),
        channels=6,
        trunk_prefix="",
        stage5_prefix="layer4.",
        classifier_prefix="fc.",
    )


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    stage5 = {f"layer4.{name}": tensor for name, tensor in backbone.stage5.state_dict().items()}
    return dict(backbone.trunk.state_dict()) | stage5


def saved(state: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


STATE = state_of(small_backbone())
WEIGHTS = {
    "zip.pth": saved(STATE),
    "old.pth": saved({"state_dict": STATE}, _use_new_zipfile_serialization=False),
    "x.safetensors": safetensors.torch.save(STATE),
}


@pytest.mark.filterwarnings("ignore:.*pickle protocol")
@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(tmp_path: Path, survive, damage, name: str) -> None:
    """Files for `model.init`, in each of their forms."""
    path = tmp_path / name

    def attempt(chance: random.Random) -> None:
        path.write_bytes(damage(WEIGHTS[name], chance))
        backbone = small_backbone()
        load_weights(backbone, path)
        assert all(tensor.isfinite().all() for tensor in state_of(backbone).values())

    survive(f"weights, {name}", attempt, cases=CASES)
