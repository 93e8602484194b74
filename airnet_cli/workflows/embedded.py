"""What `embed` reports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airnet_cli.core.gallery.place import MilvusPlace
from airnet_cli.workflows.runs import Model

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EmbeddedGallery:
    """What one call did for a gallery."""

    path: Path | str | MilvusPlace
    """The .npy file, the folder, the URL, or the place of the collection."""
    record: dict[str, Any]
    """What made the rows; `rows` are all rows of the gallery, None if parts are missing."""
    skipped: tuple[dict[str, str], ...]
    """Path and reason of each image that could not be read."""
    model: Model
    device: str
    images: int
    """Computed by this call, those that were skipped included."""
    images_before: int
    """Computed by an earlier call."""
    seconds: dict[str, float]
    """Where the time went: total, reading (waiting for images), network, writing."""
    details: dict[str, Any] = field(default_factory=dict)
    """Of a folder: the new `part` and how many rows it `replaced`. With shards: how many there
    are in `total`, were `done` by this call, exist from before (`there`), and are `missing`."""

    @property
    def shards(self) -> dict[str, int]:
        """How many parts there are, if the gallery is computed in shards; else empty."""
        shards: dict[str, int] = self.details.get("shards", {})
        return shards

    @property
    def images_per_second(self) -> float:
        """Over everything: reading, network and writing."""
        return self.images / self.seconds["total"] if self.seconds["total"] else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `embed --json` (docs/formats.md)."""
        described = ("rows", "dimensions", "dtype", "fingerprint", "checkpoint", "run", "heads")
        settings = ("normalize_heads", "flip", "precision", "runtime")
        return {
            "version": JSON_VERSION,
            "gallery": str(self.path),
            **{key: self.record[key] for key in (*described, *settings)},
            "skipped": list(self.skipped),
            **self.details,
            "device": self.device,
            "images": self.images,
            "images_before": self.images_before,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
        }


def split_seconds(total: float, reading: float, network: float) -> dict[str, float]:
    """Where the time went; what is neither reading nor network is writing."""
    writing = max(0.0, total - reading - network)
    return {"total": total, "reading": reading, "network": network, "writing": writing}
