"""Trains the same batches as one process or as a team: started by test_distributed.py.

    python team.py FOLDER SIZE

reads FOLDER/task.json (`paths`, `person_ids`, `cases`: options of `train` by name, `late`: the
member that joins a second after the others, or null) and forks SIZE processes that join as
torchrun's would; where one is late, a second team follows the first, with the same store. Each
writes, for each case, what it saw of the training into FOLDER/CASE-MEMBER.json, and the first one
its weights into FOLDER/CASE.safetensors.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from airnet_cli.core.averaging import WeightAverage
from airnet_cli.core.data.dataset import ImageDataset, TrainingLoader
from airnet_cli.core.data.sampler import BatchShare, IdentitySampler
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.distributed import Team, joining, synchronize_batch_norms
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone, build_backbone
from airnet_cli.core.training import Schedule, Trainer
from airnet_cli.errors import AirnetError

CPU = torch.device("cpu")


def small_backbone() -> Backbone:
    """Two convolutions with norms and one of stage 5."""

    def block(channels_in: int, channels: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    return Backbone(
        trunk=nn.Sequential(block(3, 8, 4), block(8, 16, 4)),
        stage5=block(16, 24, 1),
        channels=24,
        trunk_prefix="",
        stage5_prefix="",
        classifier_prefix="",
    )


def build_trainer(
    paths: list[str],
    person_ids: list[int],
    team: Team,
    *,
    backbone: str = "small",
    variant: str = "airnet",
    freeze_epochs: int = 0,
    ema_decay: float = 0.0,
    clip_norm: float = 0.0,
    pad_crop_px: int = 0,
    label_smoothing: float = 0.0,
) -> Trainer:
    torch.manual_seed(3)
    built = small_backbone() if backbone == "small" else build_backbone(backbone)
    network = AirNet(built, variant=variant, identities=6).to(memory_format=torch.channels_last)
    synchronize_batch_norms(network, team, CPU)
    sampler = IdentitySampler(person_ids, identities_per_batch=4, images_per_identity=2, seed=3)
    share = BatchShare(sampler, member=team.member, size=team.size)
    dataset = ImageDataset([Path(path) for path in paths], height_px=64, width_px=32)
    return Trainer(
        network=network,
        optimizer=torch.optim.Adam(
            [each for each in network.parameters() if each.requires_grad],
            lr=3.5e-4,
            weight_decay=5e-4,
        ),
        schedule=Schedule(
            shape="steps",
            learning_rate=3.5e-4,
            factor=0.1,
            epochs=[1],
            total_epochs=2,
            warmup_epochs=0,
            warmup_start=0.1,
        ),
        sampler=sampler,
        loader=TrainingLoader(dataset, share, workers=0, pin_memory=False),
        labels=torch.tensor(person_ids),
        augmentation=Augmentation(
            flip_probability=0.5,
            erasing_probability=0.5,
            erasing_area=(0.02, 0.4),
            erasing_aspect=(0.3, 3.33),
            pad_crop_px=pad_crop_px,
        ),
        triplet_margin=0.2,
        label_smoothing=label_smoothing,
        precision="fp32",
        device=CPU,
        seed=3,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        clip_norm=clip_norm,
        freeze_epochs=freeze_epochs,
        average=WeightAverage(network, decay=ema_decay) if ema_decay else None,
        team=team,
    )


@contextlib.contextmanager
def computing(dtype: str) -> Iterator[None]:
    """With "float64", what asks for float32 gets float64: rounding hides no mistake."""
    if dtype == "float32":
        yield
        return
    before = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = before
        torch.set_default_dtype(torch.float32)


def train(
    paths: list[str], person_ids: list[int], team: Team, *, dtype: str = "float32", **options
) -> tuple[list, dict]:
    """Losses and terms of two epochs, and the weights that came out, an average's too."""
    with computing(dtype):
        trainer = build_trainer(paths, person_ids, team, **options)
        reports = [
            [each.loss, each.images, *((h.identity_loss, h.triplet_loss) for h in each.heads)]
            for each in trainer.fit(epochs=2)
        ]
    weights = {name: tensor.contiguous() for name, tensor in trainer.network.state_dict().items()}
    if trainer.average is not None:
        average = trainer.average.network.state_dict()
        weights |= {f"average.{name}": tensor.contiguous() for name, tensor in average.items()}
    return reports, weights


def be_a_member(folder: Path, member: int, size: int, port: int) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(member),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(member),
        "LOCAL_WORLD_SIZE": str(size),
    }
    task = json.loads((folder / "task.json").read_text())
    try:
        with joining(CPU) as team:
            assert team == Team(member, size)
            for name, options in task["cases"].items():
                if options.pop("lost", False) and not team.leads:
                    os._exit(9)
                reports, weights = train(task["paths"], task["person_ids"], team, **options)
                (folder / f"{name}-{member}.json").write_text(json.dumps(reports))
                if team.leads:
                    save_file(weights, folder / f"{name}.safetensors")
    except AirnetError as error:
        (folder / f"error-{member}.txt").write_text(str(error))


def forked(work: Callable[[int], None], size: int) -> list[int]:
    """The exit codes of `size` processes that do `work`, each with its number."""
    children = []
    for member in range(size):
        child = os.fork()
        if not child:
            code = 1
            try:
                work(member)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def host_store(port: Connection) -> None:
    """Keep the store, as torchrun does, until this process is ended; it tells its port."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port.send(store.port)
    signal.pause()


def main(folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    # In a process of its own: one that has threads should not fork.
    receive, send = multiprocessing.Pipe(duplex=False)
    torchrun = multiprocessing.get_context("fork").Process(
        target=host_store, args=(send,), daemon=True
    )
    torchrun.start()
    port = receive.recv()
    late = json.loads((folder / "task.json").read_text())["late"]

    def join(member: int) -> None:
        if member == late:
            time.sleep(1)
        be_a_member(folder, member, size, port)

    if late is not None:
        forked(join, size)
    (folder / "codes.json").write_text(json.dumps(forked(join, size)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
