"""What a preset would train: its settings and its network, touching neither data nor weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from airnet_cli.config.schema import Preset
from airnet_cli.core.data.demo import TRAIN_IDENTITIES
from airnet_cli.workflows.build import describe_network
from airnet_cli.workflows.runs import flatten

PUBLISHED_IDENTITIES = {
    "market1501": 751,
    "cuhk03-labeled": 767,
    "cuhk03-detected": 767,
    "msmt17": 1041,
}
"""Training identities of the published data sets: for a dry run, which does not look at data."""


@dataclass(frozen=True)
class DryRun:
    """What a preset would train."""

    preset: Preset
    heads: tuple[str, ...]
    embedding_size: int
    parameters_without_classifiers: int
    parameters_with_classifiers: int | None
    """None where the number of identities is only known from the data."""

    def settings(self) -> Iterator[tuple[str, object]]:
        """The preset flattened to dotted keys, as `--set` takes them."""
        yield from flatten(self.preset).items()

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `train --dry-run --json` (docs/formats.md)."""
        return {
            "version": 1,
            "preset": self.preset.model_dump(mode="json"),
            "heads": list(self.heads),
            "embedding_size": self.embedding_size,
            "parameters": {
                "without_classifiers": self.parameters_without_classifiers,
                "with_classifiers": self.parameters_with_classifiers,
            },
        }


def dry_run(preset: Preset) -> DryRun:
    """Describe the network of `preset` without touching data or weights."""
    known = PUBLISHED_IDENTITIES | {"demo": TRAIN_IDENTITIES}
    network = describe_network(preset, identities=None)
    without = sum(parameter.numel() for parameter in network.parameters())
    of_data = known.get(preset.data.name)
    left = None if of_data is None else of_data - preset.training.val_ids
    identities = preset.training.train_ids or left
    classifiers = None if identities is None else identities * network.embedding_size
    return DryRun(
        preset=preset,
        heads=network.head_names,
        embedding_size=network.embedding_size,
        parameters_without_classifiers=without,
        parameters_with_classifiers=None if classifiers is None else without + classifiers,
    )
