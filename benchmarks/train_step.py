"""A training epoch from files, beside the same steps on a ready batch in a loop written by hand."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional

from airnet_cli.config.presets import load_preset
from airnet_cli.core.data.demo import generate
from airnet_cli.core.data.manifest import load_prepared, manifest_path, write_manifest
from airnet_cli.core.runtime import seed_everything
from airnet_cli.core.training import Trainer
from airnet_cli.workflows.build import build_network, build_trainer, training_identities
from airnet_cli.workflows.memory import keep_freed_memory
from benchmarks.measure import Row, Sizes, in_turn


def rows(sizes: Sizes) -> Iterator[Row]:
    """The CPU preset's batch of 16 x 4, in float32.

    An epoch is short here: what is done once in it, reports and checks, weighs more than usual.
    """
    keep_freed_memory()
    people, each = sizes.pick((16, 4), (8, 4))
    identities = sizes.pick(3, 1) * people
    overrides = [
        "data.name=bench",
        "model.init=none",
        "training.precision=fp32",
        "training.workers=0",
        f"training.identities_per_batch={people}",
        f"training.images_per_identity={each}",
    ]
    preset = load_preset("market1501-cpu", overrides)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "bench" / "images"
        records = generate(
            images, seed=0, train_identities=identities, test_identities=2, processes=1
        )
        write_manifest(
            manifest_path(Path(folder), "bench"),
            name="bench", root=images, records=records, split_rule="drawn",
        )  # fmt: skip
        manifest = load_prepared(Path(folder), "bench")
        seed_everything(0)
        network = build_network(preset, identities=len(training_identities(preset, manifest)))
        trainer, _ = build_trainer(preset, network, manifest, device=torch.device("cpu"))
        batch = next(iter(trainer.loader))
        labels = trainer.labels[list(batch.indices)]
        trainer.sampler.set_epoch(0)
        steps = len(trainer.sampler)
        seconds, rival_seconds = in_turn(
            lambda: list(trainer.fit(epochs=1)),
            lambda: by_hand(trainer, batch.images, labels, steps),
            turns=sizes.pick(4, 2),
        )
    total = steps * people * each
    yield Row(
        path="train_step",
        case=f"{preset.model.backbone}, {preset.data.height_px} x {preset.data.width_px}, "
        f"{steps} steps of {people} x {each}",
        rival="the same network, losses and optimizer on a ready batch, by hand",
        seconds=seconds,
        rival_seconds=rival_seconds,
        target="at most 1.05 (95% of its images/s)",
        note=f"{total / seconds:.1f} and {total / rival_seconds:.1f} images/s",
    )


def by_hand(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """The limit: no reading, no augmentation, no reports."""
    network, optimizer = trainer.network.train(), trainer.optimizer
    ready = images.float() / 255
    same = labels[:, None] == labels[None, :]
    for _ in range(steps):
        terms = []
        for head in network(ready):
            unit = functional.normalize(head.pooled, dim=1)
            distances = 1 - unit @ unit.T
            positive = distances.masked_fill(~same, -9).amax(dim=1)
            negative = distances.masked_fill(same, 9).amin(dim=1)
            triplet = functional.relu(positive + trainer.triplet_margin - negative).mean()
            terms.append(functional.cross_entropy(head.logits, labels) + triplet)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(terms).mean().backward()
        optimizer.step()
