"""One step of two processes next to the same step of one; started by test_distributed.py.

    python two_processes.py step cpu|cuda     both ranks compare loss and gradients
    python two_processes.py lost              rank 1 ends, and rank 0 says so

The environment is that of torchrun.
"""

import os
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.distributed import SINGLE, TIMEOUT, World, process_group
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone
from airnet_cli.core.training import Trainer
from airnet_cli.errors import TrainingError


def build_trainer(world: World, device: torch.device) -> Trainer:
    """A small AIR-Net in training, without data."""
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.BatchNorm2d(8), nn.ReLU())
    stage5 = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    network = AirNet(Backbone(trunk, stage5, 16, "", "", ""), variant="airnet", identities=4)
    unused: dict[str, Any] = dict.fromkeys(("schedule", "sampler", "loader", "labels"))
    return Trainer(
        network=network.to(device).train(),
        optimizer=torch.optim.Adam(network.parameters()),
        **unused,
        augmentation=Augmentation(
            flip_probability=0.5,
            erasing_probability=0.5,
            erasing_area=(0.02, 0.4),
            erasing_aspect=(0.3, 3.33),
            pad_crop_px=4,
        ),
        triplet_margin=0.2,
        label_smoothing=0.1,
        precision="fp32",
        device=device,
        seed=3,
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        clip_norm=0.0,
        average=None,
        world=world,
    )


def step(world: World, device: torch.device) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of a batch of 4 people x 2 images, of which `world` is given its part."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 64, 32), generator=random, dtype=torch.uint8)
    labels = torch.arange(4).repeat_interleave(2)
    trainer = build_trainer(world, device)
    network = world.parallel(trainer.network, device)
    for module in network.modules():  # on CPUs each process has batch statistics of its own
        if device.type == "cpu" and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    mine = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    loss = trainer.step(images[mine], labels[mine], np.random.default_rng(0), network=network)
    gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    return float(loss.total), gradients


def compare(device: torch.device) -> None:
    # With gloo, since NCCL wants a GPU for each process, and a machine may have only one.
    dist.init_process_group("gloo", timeout=TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size())
    loss, gradients = step(world, device)
    expected_loss, expected = step(SINGLE, device)
    assert abs(loss - expected_loss) < 1e-5, (loss, expected_loss)
    assert len(gradients) == len(expected) > 10
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert world.broadcast(lambda: "of rank 0") == "of rank 0"
    dist.destroy_process_group()


def lose_one() -> None:
    try:
        with process_group(torch.device("cpu")) as world:
            if world.rank == 1:
                os._exit(9)
            world.barrier()
    except TrainingError as error:
        sys.stdout.write(str(error))


if __name__ == "__main__":
    if sys.argv[1] == "step":
        compare(torch.device(sys.argv[2]))
    else:
        lose_one()
