"""A validated preset becomes a network, an optimizer, loaders: the one place that knows both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from airnet_cli.config.presets import validate_preset
from airnet_cli.config.schema import Preset
from airnet_cli.core.averaging import WeightAverage
from airnet_cli.core.checkpoint import Checkpoint, fill_network
from airnet_cli.core.data.dataset import ImageDataset, TrainingLoader
from airnet_cli.core.data.manifest import Manifest, count_splits
from airnet_cli.core.data.records import SPLITS
from airnet_cli.core.data.sampler import BatchShare, IdentitySampler
from airnet_cli.core.data.splits import IdentitySplit, hold_out, split_identities
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.distributed import ALONE, Team, synchronize_batch_norms
from airnet_cli.core.model.airnet import (
    AirNet,
    interaction_poolings,
    start_interaction_at_identity,
)
from airnet_cli.core.model.backbone import Backbone, build_backbone, replace_relu6
from airnet_cli.core.model.weights import load_imagenet, load_weights
from airnet_cli.core.training import RATE_FACTOR, Schedule, Trainer
from airnet_cli.errors import CheckpointError, DataError, TrainingError


def build_network(preset: Preset, *, identities: int | None) -> AirNet:
    """A new network with the preset's initial weights, channels-last (the faster layout on CPUs
    and GPUs).

    Raises:
        WeightsError: `model.init` can't be had or does not fit.
    """
    backbone = _build_backbone(preset)
    match preset.model.init:
        case "none":
            pass
        case "imagenet":
            load_imagenet(backbone, preset.model.backbone)
        case path:
            load_weights(backbone, Path(path).expanduser())
    network = _build_heads(backbone, preset, identities=identities)
    if preset.training.interaction_init == "identity":
        start_interaction_at_identity(network)
    return _channels_last(network)


def describe_network(preset: Preset, *, identities: int | None) -> AirNet:
    """The network without memory or weights: its shape and parameter counts, and what the tensors
    of a checkpoint fill.
    """
    with torch.device("meta"):
        return _build_heads(_build_backbone(preset), preset, identities=identities)


def restore_network(checkpoint: Checkpoint) -> tuple[AirNet, Preset]:
    """The network of a checkpoint, ready to embed, and the preset it was trained with.

    Raises:
        PresetError: its preset is not one that this airnet understands.
        CheckpointError: its tensors do not fit, or are not finite.
    """
    preset = validate_preset(checkpoint.preset, source=str(checkpoint.path))
    size = (preset.data.height_px, preset.data.width_px)
    if size != (checkpoint.height_px, checkpoint.width_px):
        raise CheckpointError(
            f"checkpoint '{checkpoint.path}' contradicts itself: its images have "
            f"{checkpoint.height_px} x {checkpoint.width_px} pixels, those of its preset "
            f"{size[0]} x {size[1]}; get or train it anew"
        )
    # Without memory for as many identities as it says, nor weights that are drawn for nothing.
    network = describe_network(preset, identities=len(checkpoint.identities))
    fill_network(network, checkpoint)
    return _channels_last(network).eval(), preset


def build_trainer(
    preset: Preset,
    network: AirNet,
    manifest: Manifest,
    *,
    device: torch.device,
    team: Team = ALONE,
) -> tuple[Trainer, tuple[int, ...]]:
    """Everything that training needs, and the person_id of each class.

    In a team, of the share of this process; the batch norms of `network` are synchronised.

    Raises:
        DataError: fewer training identities than a batch needs.
        TrainingError: the identities of a batch can't be dealt to the team evenly.
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
    if training.identities_per_batch % team.size:
        raise TrainingError(
            f"the {training.identities_per_batch} people of a batch can't be dealt evenly to "
            f"{team.size} processes; start as many as divide training.identities_per_batch, or "
            "change that"
        )
    synchronize_batch_norms(network, team, device)
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
        BatchShare(sampler, member=team.member, size=team.size) if team.size > 1 else sampler,
        workers=training.workers,
        pin_memory=device.type == "cuda",
    )
    trainer = Trainer(
        network=network,
        optimizer=torch.optim.Adam(
            _parameter_groups(network, interaction_factor=training.interaction_lr_factor),
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            # One kernel a step where launching kernels costs; its roundings are others than those
            # of the plain one, which CPU runs keep.
            fused=True if device.type == "cuda" else None,
        ),
        schedule=Schedule(
            shape=training.schedule,
            learning_rate=training.learning_rate,
            factor=training.learning_rate_factor,
            epochs=training.learning_rate_epochs,
            total_epochs=training.epochs,
            warmup_epochs=training.warmup_epochs,
            warmup_start=training.warmup_start,
        ),
        sampler=sampler,
        loader=loader,
        labels=torch.tensor([label_of[person_id] for person_id in person_ids]),
        augmentation=Augmentation(
            flip_probability=training.flip_probability,
            erasing_probability=training.erasing.probability,
            erasing_area=training.erasing.area,
            erasing_aspect=training.erasing.aspect,
            pad_crop_px=training.pad_crop_px,
        ),
        triplet_margin=training.triplet_margin,
        label_smoothing=training.label_smoothing,
        precision=training.precision,
        device=device,
        seed=training.seed,
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16"),
        clip_norm=training.clip_norm,
        freeze_epochs=training.freeze_epochs,
        average=(WeightAverage(network, decay=training.ema_decay) if training.ema_decay else None),
        team=team,
    )
    return trainer, identities


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


def _build_backbone(preset: Preset) -> Backbone:
    backbone = build_backbone(preset.model.backbone)
    if preset.model.activation == "relu":
        replace_relu6(backbone)
    return backbone


def _build_heads(backbone: Backbone, preset: Preset, *, identities: int | None) -> AirNet:
    return AirNet(
        backbone,
        variant=preset.model.variant,
        identities=identities,
        attention=preset.model.attention,
    )


def _parameter_groups(network: AirNet, *, interaction_factor: float) -> list[dict[str, Any]]:
    """What the optimizer trains: all in one group, or Wu and Wv in one with a rate of their own."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    interaction = [
        parameter for pooling in interaction_poolings(network) for parameter in pooling.parameters()
    ]
    if interaction_factor == 1 or not interaction:
        return [{"params": trained}]
    own = {id(parameter) for parameter in interaction}
    return [
        {"params": [parameter for parameter in trained if id(parameter) not in own]},
        {"params": interaction, RATE_FACTOR: interaction_factor},
    ]


def _channels_last(network: AirNet) -> AirNet:
    return network.to(memory_format=torch.channels_last)
