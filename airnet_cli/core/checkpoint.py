"""The checkpoint on disk: one safetensors file that is enough to rebuild and run the network.

Weights are tensors. Everything else is JSON text in the file's metadata, one key each:

    format            "airnet-checkpoint"
    format_version    "2"
    network           variant, backbone, normalize_heads: the network's plain arguments
    preset            the resolved preset, for training and for the reader
    preprocessing     height_px, width_px, colour order, value range, mean, std, interpolation
    heads             name, first and last+1 position of each head's slice of the embedding
    identities        the person_id of each class, in order: the id -> label map
    training          finished epochs, planned epochs, seed
    versions          python, airnet and library versions that wrote it

The training state for resuming is a second file of the same form (`write_training_state`).
"""

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from airnet_cli.core.files import replacing_together
from airnet_cli.core.model.airnet import IMAGENET_MEAN, IMAGENET_STD, VARIANTS, AirNet, VariantName
from airnet_cli.core.model.backbone import BackboneName, build_backbone
from airnet_cli.core.model.weights import describe_file
from airnet_cli.errors import CheckpointError

FORMAT = "airnet-checkpoint"
STATE_FORMAT = "airnet-training-state"
FORMAT_VERSION = 2
"""Of both files. Version 1 is read too, see `upgrade_version_1`."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from disk."""

    path: Path
    variant: VariantName
    backbone: BackboneName
    normalize_heads: bool
    """Whether each head's vector gets length 1 before the heads are concatenated."""
    height_px: int
    width_px: int
    identities: tuple[int, ...]
    """The person_id of each class."""
    preset: dict[str, Any]
    """The resolved preset, as plain data; `config` validates it."""
    training: dict[str, Any]
    tensors: dict[str, Tensor]
    """Memory-mapped: the file must not change while they are used."""


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
    """What a training state records in addition to the tensors that it restores."""

    finished_epochs: int
    best: Best | None
    """None if no epoch has been scored yet, or none is chosen."""


def library_versions() -> dict[str, str]:
    """Versions of Python, airnet and the libraries that results depend on."""
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
    normalize_heads: bool = False,
) -> None:
    """Write `network` and everything that is needed to run it.

    A killed process leaves the old file or the new one. Equal contents give equal bytes.

    Raises:
        OutputError: the system refused to write the file.
    """
    described = {
        "network": {
            "variant": network.variant,
            "backbone": network.backbone,
            "normalize_heads": normalize_heads,
        },
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
    _save(path, network.state_dict(), FORMAT, described)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this version or an older one; `restore_network` builds its network.

    Raises:
        CheckpointError: there is no such file, or it is damaged, something else, of a newer format
            version, or was trained with a setting that airnet no longer has.
    """
    tensors, described = _load(path, FORMAT)
    try:
        if described["format_version"] == 1:
            described = upgrade_version_1(described, path)
        return Checkpoint(
            path=path,
            **described["network"],
            height_px=described["preprocessing"]["height_px"],
            width_px=described["preprocessing"]["width_px"],
            identities=tuple(described["identities"]),
            preset=described["preset"],
            training=described["training"],
            tensors=tensors,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint '{path}' has missing or damaged metadata ({error}); copy it again, or "
            "train again"
        ) from None


def upgrade_version_1(described: dict[str, Any], path: Path) -> dict[str, Any]:
    """The metadata of a version 1 checkpoint as version 2 has them.

    Version 1 had no `network`: its arguments are taken from the preset. It had a hash of the file,
    `sha256`, which is no longer checked.

    Raises:
        CheckpointError: its network used a setting that airnet no longer has.
    """
    model, evaluation = described["preset"]["model"], described["preset"]["evaluation"]
    for key, default in (("attention", "none"), ("activation", "default")):
        value = model.get(key, default)
        if value != default:
            raise CheckpointError(
                f"checkpoint '{path}' was trained with model.{key} = {value!r}, a setting that "
                "airnet no longer has, so its network can't be rebuilt; train again without it"
            )
    network = {
        "variant": model["variant"],
        "backbone": model["backbone"],
        "normalize_heads": evaluation["normalize_heads"],
    }
    return {**described, "network": network}


def restore_network(checkpoint: Checkpoint) -> AirNet:
    """The network of a checkpoint, on the CPU, channels-last and in evaluation mode.

    Its tensors are copies: the file may change afterwards.

    Raises:
        CheckpointError: the variant or the backbone is unknown; tensors are missing, left over, of
            another shape or type, or not finite.
    """
    if checkpoint.variant not in VARIANTS or checkpoint.backbone not in get_args(BackboneName):
        raise CheckpointError(
            f"checkpoint '{checkpoint.path}' has a network that this airnet does not know (variant "
            f"{checkpoint.variant!r}, backbone {checkpoint.backbone!r}); update airnet"
        )
    # On the meta device no memory is taken for weights that the checkpoint's replace.
    with torch.device("meta"):
        network = AirNet(
            build_backbone(checkpoint.backbone),
            variant=checkpoint.variant,
            identities=len(checkpoint.identities),
        )
    _check_tensors(checkpoint, network.state_dict())
    copies = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(copies, strict=True, assign=True)
    return network.to(memory_format=torch.channels_last).eval()


def model_fingerprint(checkpoint: Path) -> str:
    """The SHA-256 (hex) of a checkpoint file: embeddings are comparable if it is the same.

    It is computed once per process, unless the file changes.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        status = checkpoint.stat()
        return _file_sha256(checkpoint.resolve(), status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{checkpoint}' can't be read: {error.strerror or error}"
        ) from None


@functools.lru_cache(maxsize=32)
def _file_sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Write what `read_training_state` needs to resume: the weights, their average and the best
    epoch's if there are any, Adam's tensors, the loss scaler's numbers and the finished epochs.

    Raises:
        OutputError: the system refused to write the file.
    """
    described: dict[str, Any] = {"finished_epochs": finished_epochs}
    tensors: dict[str, Tensor] = {}
    for prefix, module in _modules(network, average).items():
        tensors |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    if scaler is not None and scaler.is_enabled():
        described["scaler"] = scaler.state_dict()
    if best is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in best.weights.items()}
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
    """Restore the state at `path` into the arguments, and return the rest of it.

    Raises:
        CheckpointError: there is no such file, or it is damaged, something else, or the state of
            another network.
    """
    tensors, described = _load(path, STATE_FORMAT)
    best = described.get("best")
    try:
        for prefix, module in _modules(network, average).items():
            module.load_state_dict(_without(prefix, tensors), strict=True)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _without("optimizer.", tensors).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if scaler is not None and scaler.is_enabled():
            scaler.load_state_dict(described["scaler"])
        return TrainingState(
            described["finished_epochs"],
            None if best is None else Best(best["epoch"], best["mAP"], _without("best.", tensors)),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())  # torch's reasons have several lines
        raise CheckpointError(
            f"training state '{path}' does not fit the network of its run ({reason:.300}); train "
            "again in a new run folder"
        ) from None


def _modules(network: AirNet, average: AirNet | None) -> dict[str, AirNet]:
    return {"network.": network} | ({} if average is None else {"average.": average})


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _check_tensors(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if names, shapes or types differ from `expected`, or for NaN."""
    forms = {name: _form(tensor) for name, tensor in checkpoint.tensors.items()}
    wanted = {name: _form(tensor) for name, tensor in expected.items()}
    problems = [
        f"{name!r} is {forms.get(name, 'missing')}, expected {wanted.get(name, 'no such tensor')}"
        for name in wanted | forms
        if forms.get(name) != wanted.get(name)
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"checkpoint '{checkpoint.path}' does not fit its network ({checkpoint.variant}, "
            f"{checkpoint.backbone}): {'; '.join(problems[:3])}{more}"
        )
    for name, tensor in checkpoint.tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"checkpoint '{checkpoint.path}' has NaN or infinity in {name}: training diverged "
                "or the file is damaged; train again, perhaps with a lower training.learning_rate"
            )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _save(
    path: Path, tensors: Mapping[str, Tensor], kind: str, described: Mapping[str, Any]
) -> None:
    header = {"format": kind, "format_version": str(FORMAT_VERSION)}
    header |= {key: json.dumps(value) for key, value in described.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # In a folder of its own: safetensors writes under a second name there, and renames.
    with replacing_together((path,)) as (temporary,):
        try:
            safetensors.torch.save_file(contiguous, temporary, metadata=header)
        except safetensors.SafetensorError as error:  # a full disk, for one
            raise OSError(f"{error}") from None
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort a file's metadata: safetensors has no fixed order, so fingerprints would differ."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
        file.write(text.encode().ljust(length))


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file of `kind`, in any version that is read."""
    if not path.exists():
        raise CheckpointError(f"checkpoint '{path}' does not exist; `airnet train` writes one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
        if header.get("format") == kind:
            texts = {k: v for k, v in header.items() if k not in ("format", "sha256")}
            described = {key: json.loads(text) for key, text in texts.items()}
    except (safetensors.SafetensorError, OSError, ValueError):
        raise CheckpointError(
            f"'{path}' can't be read as {kind}: it looks like {describe_file(path)}; "
            "give a run folder or its model.safetensors"
        ) from None
    if header.get("format") != kind:
        raise CheckpointError(
            f"'{path}' is not an {kind} file, but {header.get('format', 'of another program')!r}; "
            "give a run folder or its model.safetensors"
        )
    if described.get("format_version") not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"'{path}' has format version {described.get('format_version')!r}, this airnet reads "
            f"1 to {FORMAT_VERSION}; update airnet"
        )
    return tensors, described
