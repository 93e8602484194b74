"""The checkpoint on disk: one safetensors file that is enough to rebuild and run the network.

Weights as tensors; everything else as JSON text in the file's metadata, one key each:

    format            "airnet-checkpoint"
    format_version    "1"
    preset            the resolved preset
    preprocessing     height_px, width_px, colour order, value range, mean, std, interpolation
    heads             name, first and last+1 position of each head's slice of the embedding
    identities        the person_id of each class, in order: the id -> label map
    training          finished epochs, planned epochs, seed
    versions          python, airnet and library versions that wrote it

The training state for resuming stands beside it, in the same form (`write_training_state`):
weights, their average where there is one, the optimizer's tensors, the loss scaler's numbers
(fp16), the best epoch so far with its weights where one is chosen, and the number of finished
epochs, so that it does not depend on another file.
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from airnet_cli.core.files import replacing
from airnet_cli.core.model.airnet import IMAGENET_MEAN, IMAGENET_STD, AirNet
from airnet_cli.errors import CheckpointError

FORMAT = "airnet-checkpoint"
FORMAT_VERSION = 1
STATE_FORMAT = "airnet-training-state"

_OPTIMIZER = "optimizer."
_NETWORK = "network."
_AVERAGE = "average."
_BEST = "best."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from disk."""

    path: Path
    preset: dict[str, Any]
    """The resolved preset, as plain data; `config` validates it."""
    height_px: int
    width_px: int
    identities: tuple[int, ...]
    """The person_id of each class."""
    training: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Best:
    """The best epoch so far, by the scores that a run chooses its weights by."""

    epoch: int
    """1 for the first."""
    mAP: float
    weights: dict[str, Tensor]
    """On the CPU."""


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What a training state says beside what it fills in."""

    finished_epochs: int
    best: Best | None
    """None where no epoch has been scored yet, or none is chosen."""


def library_versions() -> dict[str, str]:
    """Versions of Python, airnet and the libraries that numbers depend on."""
    names = ("torch", "torchvision", "numpy", "pillow", "safetensors")
    versions = {name: metadata.version(name) for name in names}
    from airnet_cli import __version__

    return {"python": platform.python_version(), "airnet": __version__, **versions}


def write_checkpoint(
    path: Path,
    network: AirNet,
    *,
    preset: dict[str, Any],
    height_px: int,
    width_px: int,
    identities: tuple[int, ...],
    training: dict[str, Any],
) -> None:
    """Write `network` and what is needed to run it, whole or not at all."""
    described = {
        "preset": preset,
        "preprocessing": {
            "height_px": height_px,
            "width_px": width_px,
            "colour": "RGB",
            "range": "0-1",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bilinear, antialiased",
        },
        "heads": {name: [s.start, s.stop] for name, s in network.head_slices.items()},
        "identities": identities,
        "training": training,
        "versions": library_versions(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    _save(path, tensors, FORMAT, described)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; the network is built from it by `workflows/build.py`.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one of another format version.
    """
    tensors, described = _load(path, FORMAT)
    try:
        preprocessing = described["preprocessing"]
        return Checkpoint(
            path=path,
            preset=described["preset"],
            height_px=int(preprocessing["height_px"]),
            width_px=int(preprocessing["width_px"]),
            identities=tuple(described["identities"]),
            training=described["training"],
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint '{path}' lacks or garbles {error} in its metadata"
        ) from None


def model_fingerprint(checkpoint: Path) -> str:
    """The SHA-256 (hex) of a checkpoint file: embeddings are comparable where it is the same.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        with checkpoint.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' can't be read: {error.strerror or error}"
        ) from None


def fill_network(network: AirNet, checkpoint: Checkpoint) -> None:
    """Load the checkpoint's tensors into a network that was built from its preset.

    Raises:
        CheckpointError: tensors missing, left over or of another shape.
    """
    try:
        network.load_state_dict(checkpoint.tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint '{checkpoint.path}' does not fit the network of its own preset: "
            f"{_details(error)}"
        ) from None


def write_training_state(
    path: Path,
    network: AirNet,
    optimizer: torch.optim.Optimizer,
    *,
    finished_epochs: int,
    average: AirNet | None = None,
    scaler: torch.amp.GradScaler | None = None,
    best: Best | None = None,
) -> None:
    """Write what `read_training_state` needs to go on, whole or not at all."""
    tensors = {_NETWORK + name: t.contiguous() for name, t in network.state_dict().items()}
    if average is not None:
        tensors |= {_AVERAGE + name: t.contiguous() for name, t in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            tensors[f"{_OPTIMIZER}{index}.{name}"] = tensor.contiguous()
    described: dict[str, Any] = {"finished_epochs": finished_epochs}
    if scaler is not None and scaler.is_enabled():
        described["scaler"] = scaler.state_dict()
    if best is not None:
        tensors |= {_BEST + name: tensor.contiguous() for name, tensor in best.weights.items()}
        described["best"] = {"epoch": best.epoch, "mAP": best.mAP}
    _save(path, tensors, STATE_FORMAT, described)


def read_training_state(
    path: Path,
    network: AirNet,
    optimizer: torch.optim.Optimizer,
    *,
    average: AirNet | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> TrainingState:
    """Put the state at `path` back into what is given, and return the rest of it.

    Raises:
        CheckpointError: no such file, not a training state, or one of another network.
    """
    tensors, described = _load(path, STATE_FORMAT)

    def named(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(_OPTIMIZER):
            index, name = key.removeprefix(_OPTIMIZER).split(".")
            state.setdefault(int(index), {})[name] = tensor
    try:
        network.load_state_dict(named(_NETWORK), strict=True)
        if average is not None:
            average.load_state_dict(named(_AVERAGE), strict=True)
        if scaler is not None and scaler.is_enabled():
            scaler.load_state_dict(described["scaler"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        best = described.get("best")
        return TrainingState(
            int(described["finished_epochs"]),
            None if best is None else Best(int(best["epoch"]), float(best["mAP"]), named(_BEST)),
        )
    except KeyError as error:
        raise CheckpointError(f"training state '{path}' lacks {error} in its metadata") from None
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"training state '{path}' is of another network: {_details(error)}"
        ) from None


def _details(error: Exception) -> str:
    """What torch says of the tensors that do not fit, on one line, without its heading."""
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in lines[1:4] or lines)


def _save(path: Path, tensors: dict[str, Tensor], kind: str, described: dict[str, Any]) -> None:
    header = {"format": kind, "format_version": str(FORMAT_VERSION)}
    header |= {key: json.dumps(value) for key, value in described.items()}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
            _sort_metadata(temporary)
        except safetensors.SafetensorError as error:  # how it tells of a full disk
            raise OSError(f"{error}") from None


def _sort_metadata(path: Path) -> None:
    """Put the metadata into the order of their keys, so that the same contents are the same file.

    safetensors writes them in an order that is another one in each process.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the same JSON, as short as it can be written"
        file.seek(8)
        file.write(text.ljust(length))


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist; `airnet train` writes one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != kind:
                raise CheckpointError(
                    f"'{path}' is no {kind} file, but {header.get('format', 'something else')}"
                )
            if header.get("format_version") != str(FORMAT_VERSION):
                raise CheckpointError(
                    f"'{path}' has format version {header.get('format_version')}, "
                    f"this airnet reads {FORMAT_VERSION}; update airnet"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
        plain = ("format", "format_version")
        return tensors, {k: json.loads(v) for k, v in header.items() if k not in plain}
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"'{path}' can't be read as {kind}: {error}; is it whole?") from None
