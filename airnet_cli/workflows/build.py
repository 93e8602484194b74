"""A validated preset becomes a network, an optimizer, loaders: the one place that knows both."""

from dataclasses import dataclass
from pathlib import Path

import torch

from airnet_cli.config.presets import validate_preset
from airnet_cli.config.schema import Preset, Training
from airnet_cli.core import checkpoint as core_checkpoint
from airnet_cli.core.averaging import WeightAverage
from airnet_cli.core.checkpoint import Checkpoint
from airnet_cli.core.data.dataset import ImageDataset, TrainingLoader
from airnet_cli.core.data.manifest import Manifest, count_splits
from airnet_cli.core.data.records import SPLITS
from airnet_cli.core.data.sampler import BatchShare, IdentitySampler
from airnet_cli.core.data.splits import IdentitySplit, hold_out, split_identities
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.distributed import SINGLE, World
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.core.model.weights import load_imagenet, load_weights
from airnet_cli.core.training import Schedule, Trainer
from airnet_cli.errors import DataError, TrainingError


def build_network(preset: Preset, *, identities: int | None) -> AirNet:
    """A new network with the preset's initial weights, channels-last (the faster layout on CPUs
    and GPUs).

    Raises:
        WeightsError: `model.init` can't be had or does not fit.
    """
    backbone = build_backbone(preset.model.backbone)
    match preset.model.init:
        case "none":
            pass
        case "imagenet":
            load_imagenet(backbone, preset.model.backbone)
        case path:
            load_weights(backbone, Path(path).expanduser())
    network = AirNet(backbone, variant=preset.model.variant, identities=identities)
    return network.to(memory_format=torch.channels_last)


def describe_network(preset: Preset, *, identities: int | None) -> AirNet:
    """The network without memory or weights: its shape and parameter counts."""
    with torch.device("meta"):
        backbone = build_backbone(preset.model.backbone)
        return AirNet(backbone, variant=preset.model.variant, identities=identities)


def restore_network(checkpoint: Checkpoint) -> tuple[AirNet, Preset]:
    """The network of a checkpoint, ready to embed, and the preset it was trained with.

    Raises:
        PresetError: its preset is not one that this airnet understands.
        CheckpointError: its tensors do not fit, or are not finite.
    """
    preset = validate_preset(checkpoint.preset, source=str(checkpoint.path))
    return core_checkpoint.restore_network(checkpoint), preset


def build_trainer(
    preset: Preset,
    network: AirNet,
    manifest: Manifest,
    *,
    device: torch.device,
    world: World = SINGLE,
) -> tuple[Trainer, tuple[int, ...]]:
    """Everything that training needs, and the person_id of each class.

    Of several processes, each loads its share of every batch.

    Raises:
        DataError: fewer training identities than a batch needs.
        TrainingError: the identities of a batch can't be divided evenly among the processes.
    """
    training = preset.training
    identities = training_identities(preset, manifest)
    label_of = {person_id: label for label, person_id in enumerate(identities)}
    records = [record for record in manifest.split("train") if record.person_id in label_of]
    person_ids = [record.person_id for record in records]
    if len(identities) < training.identities_per_batch:
        raise DataError(
            f"there are {len(identities)} identities of data set '{manifest.name}' to train on; "
            f"training.identities_per_batch = {training.identities_per_batch} needs as many"
        )
    if training.identities_per_batch % world.size:
        raise TrainingError(
            f"the {training.identities_per_batch} people of a batch can't be divided evenly "
            f"among {world.size} processes; start as many as divide training.identities_per_batch"
        )
    sampler = IdentitySampler(
        person_ids,
        identities_per_batch=training.identities_per_batch,
        images_per_identity=training.images_per_identity,
        seed=training.seed,
    )
    loader = TrainingLoader(
        ImageDataset(
            [manifest.root / record.path for record in records],
            height_px=preset.data.height_px,
            width_px=preset.data.width_px,
        ),
        BatchShare(sampler, member=world.rank, size=world.size) if world.size > 1 else sampler,
        workers=training.workers,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.Adam(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        # One kernel a step where launching kernels costs; it rounds differently from the plain one,
        # which CPU runs keep.
        fused=True if device.type == "cuda" else None,
    )
    trainer = Trainer(
        network=network,
        optimizer=optimizer,
        schedule=_schedule(training),
        sampler=sampler,
        loader=loader,
        labels=torch.tensor([label_of[person_id] for person_id in person_ids]),
        augmentation=_augmentation(training),
        triplet_margin=training.triplet_margin,
        label_smoothing=training.label_smoothing,
        precision=training.precision,
        device=device,
        seed=training.seed,
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16"),
        clip_norm=training.clip_norm,
        average=(WeightAverage(network, decay=training.ema_decay) if training.ema_decay else None),
        world=world,
    )
    return trainer, identities


def _schedule(training: Training) -> Schedule:
    return Schedule(
        shape=training.schedule,
        learning_rate=training.learning_rate,
        factor=training.learning_rate_factor,
        epochs=training.learning_rate_epochs,
        total_epochs=training.epochs,
        warmup_epochs=training.warmup_epochs,
        warmup_start=training.warmup_start,
    )


def _augmentation(training: Training) -> Augmentation:
    return Augmentation(
        flip_probability=training.flip_probability,
        erasing_probability=training.erasing.probability,
        erasing_area=training.erasing.area,
        erasing_aspect=training.erasing.aspect,
        pad_crop_px=training.pad_crop_px,
    )


def training_identities(preset: Preset, manifest: Manifest) -> tuple[int, ...]:
    """The person_id of each class that `preset` trains on.

    Raises:
        DataError: the data set has fewer identities than the preset asks for.
    """
    return _split_identities(preset, manifest).train


@dataclass(frozen=True)
class Validation:
    """Training people who are held out, to choose an epoch by."""

    manifest: Manifest
    """Its queries and gallery are of the data set's training images."""
    camera_filter: bool
    """False where the training images are by one camera."""


def build_validation(preset: Preset, manifest: Manifest) -> Validation | None:
    """Hold out as many people as `preset` says; None where it says none.

    Raises:
        DataError: the data set has fewer identities than the preset asks for, or nobody who is held
            out can be searched for.
    """
    training = preset.training
    if not training.val_ids:
        return None
    held_out = hold_out(
        manifest.split("train"),
        person_ids=_split_identities(preset, manifest).validation,
        seed=training.seed,
    )
    rule = f"{training.val_ids} training identities, held out with seed {training.seed}"
    ordered = sorted(held_out.records, key=lambda record: SPLITS.index(record.split))
    return Validation(
        Manifest(
            name=manifest.name,
            root=manifest.root,
            records=tuple(ordered),
            split_rule=rule,
            counts=count_splits(ordered),
        ),
        camera_filter=held_out.camera_filter,
    )


def _split_identities(preset: Preset, manifest: Manifest) -> IdentitySplit:
    return split_identities(
        (record.person_id for record in manifest.split("train")),
        train_ids=preset.training.train_ids,
        val_ids=preset.training.val_ids,
        seed=preset.training.seed,
    )
