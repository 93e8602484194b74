"""Settings reach network and optimizer, and a checkpoint is rebuilt by the preset inside it."""

from pathlib import Path

import pytest
import torch

from airnet_cli.config.presets import load_preset
from airnet_cli.config.schema import Evaluation, Model, Preset, Training
from airnet_cli.core.checkpoint import read_checkpoint, write_checkpoint
from airnet_cli.core.data.dataset import TrainingLoader
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.core.distributed import World
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.training import Trainer
from airnet_cli.errors import TrainingError
from airnet_cli.workflows import build
from airnet_cli.workflows.build import build_network, build_trainer, restore_network


@pytest.fixture
def preset_with(tiny_overrides: tuple[str, ...]):
    """Return a function that lays more overrides over the tiny preset."""

    def load(*overrides: str) -> Preset:
        return load_preset("demo", [*tiny_overrides, *overrides])

    return load


def built(preset: Preset) -> AirNet:
    torch.manual_seed(0)
    return build_network(preset, identities=8).eval()


def images() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 32), generator=random, dtype=torch.uint8)


@torch.inference_mode()
def test_a_checkpoint_is_rebuilt_with_its_settings(preset_with, tmp_path: Path) -> None:
    """The same embedding, bit by bit, from the file alone."""
    preset = preset_with("model.variant=parallel_abp")
    network = built(preset)
    path = tmp_path / "model.safetensors"
    write_checkpoint(
        path,
        network,
        preset=preset.model_dump(mode="json"),
        height_px=64,
        width_px=32,
        identities=tuple(range(8)),
        training={},
    )
    restored, of_checkpoint = restore_network(read_checkpoint(path))
    assert of_checkpoint == preset
    assert torch.equal(restored.embed(images()), network.embed(images()))


def test_a_checkpoint_of_before_these_settings_is_the_paper(preset_with, tmp_path: Path) -> None:
    """A preset without the newer keys is read, and means what it meant."""
    preset = preset_with()
    old = preset.model_dump(mode="json")
    sections = {"model": Model, "training": Training, "evaluation": Evaluation}
    new = [
        (section, name)
        for section, schema in sections.items()
        for name, field in schema.model_fields.items()
        if not field.is_required()
    ]
    assert ("training", "ema_decay") in new
    for section, name in new:
        del old[section][name]
    path = tmp_path / "model.safetensors"
    write_checkpoint(
        path,
        built(preset),
        preset=old,
        height_px=64,
        width_px=32,
        identities=tuple(range(8)),
        training={},
    )
    assert restore_network(read_checkpoint(path))[1] == preset


def test_settings_of_training_reach_the_trainer(preset_with, tiny_data_root: Path) -> None:
    """Each by its own name; without them there is no average and nothing is clipped."""
    manifest = load_prepared(tiny_data_root, "tiny")

    def trainer_of(*overrides: str) -> Trainer:
        preset = preset_with(*overrides)
        return build_trainer(preset, built(preset), manifest, device=torch.device("cpu"))[0]

    plain = trainer_of()
    assert (plain.average, plain.clip_norm) == (None, 0)
    assert (plain.schedule.shape, plain.schedule.warmup_epochs) == ("steps", 0)
    assert plain.augmentation.pad_crop_px == 0
    trainer = trainer_of(
        "training.epochs=9",
        "training.schedule=cosine",
        "training.warmup_epochs=4",
        "training.warmup_start=0.2",
        "training.clip_norm=3",
        "training.ema_decay=0.75",
        "training.pad_crop_px=5",
        "training.label_smoothing=0.1",
    )
    rate = plain.schedule.learning_rate
    assert [trainer.schedule.at(epoch) for epoch in (0, 4, 9)] == pytest.approx(
        [0.2 * rate, rate, 0]
    )
    assert (trainer.clip_norm, trainer.label_smoothing) == (3, 0.1)
    assert trainer.augmentation.pad_crop_px == 5
    name, average = "trunk.0.1.weight", trainer.scored_network
    before = average.state_dict()[name].clone()
    with torch.no_grad():
        trainer.network.state_dict()[name].fill_(0)
    assert trainer.average is not None
    trainer.average.update(trainer.network)
    torch.testing.assert_close(average.state_dict()[name], 0.75 * before)


def test_people_that_can_not_be_divided_evenly_are_refused(
    preset_with, tiny_data_root: Path
) -> None:
    """The line has both numbers and says what to change."""
    preset = preset_with("training.identities_per_batch=4")
    manifest = load_prepared(tiny_data_root, "tiny")
    message = "the 4 people of a batch can't be divided evenly among 3 processes; start as many as"
    with pytest.raises(TrainingError, match=message):
        build_trainer(
            preset, built(preset), manifest, device=torch.device("cpu"), world=World(0, 3)
        )


@pytest.mark.parametrize(
    ("device", "is_cuda"), [("cpu", False), ("mps", False), ("cuda", True)], ids=str
)
def test_what_only_a_cuda_device_gets(
    monkeypatch, preset_with, tiny_data_root: Path, device: str, is_cuda: bool
) -> None:
    """Fused Adam and pinned memory; on a CPU the optimizer's roundings stay what they were."""
    asked: list[bool] = []

    def loader(*args, pin_memory: bool, **settings) -> TrainingLoader:
        asked.append(pin_memory)
        return TrainingLoader(*args, pin_memory=False, **settings)

    monkeypatch.setattr(build, "TrainingLoader", loader)
    preset = preset_with()
    manifest = load_prepared(tiny_data_root, "tiny")
    trainer, _ = build_trainer(preset, built(preset), manifest, device=torch.device(device))
    assert bool(trainer.optimizer.defaults["fused"]) == is_cuda
    assert asked == [is_cuda]
