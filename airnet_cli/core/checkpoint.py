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
    sha256            of the whole file, with zeros in place of these 64 digits

The training state for resuming stands beside it, in the same form (`write_training_state`):
weights, their average where there is one, the optimizer's tensors, the loss scaler's numbers
(fp16), the best epoch so far with its weights where one is chosen, and the number of finished
epochs, so that it does not depend on another file.

A checkpoint may come from anyone. Tensors are mapped into memory and not read before their names,
shapes and types are those of the network that they are for.
"""

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from airnet_cli.core.files import replacing_together
from airnet_cli.core.model.airnet import IMAGENET_MEAN, IMAGENET_STD, AirNet
from airnet_cli.core.model.foreign import check_safetensors
from airnet_cli.errors import CheckpointError

FORMAT = "airnet-checkpoint"
FORMAT_VERSION = 1
STATE_FORMAT = "airnet-training-state"

LARGEST_FILE = 16 * 2**30
"""Bytes: the training state of the largest network with a hundred thousand identities."""

_UNSEALED = {
    FORMAT: {"preset", "preprocessing", "heads", "identities", "training", "versions"},
    STATE_FORMAT: {"finished_epochs", "scaler", "best"},
}
"""The metadata of files from before there was `sha256`. With any other key beside them, a file
without it is one whose hash was spoilt."""

_ADAM = {"step", "exp_avg", "exp_avg_sq"}
"""What the optimizer keeps for each parameter."""

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
    """Mapped from the file, which must stay as it is while they are used."""


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
        "preprocessing": {"height_px": height_px, "width_px": width_px, **_PREPROCESSING},
        "heads": {name: [s.start, s.stop] for name, s in network.head_slices.items()},
        "identities": identities,
        "training": training,
        "versions": library_versions(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    _save(path, tensors, FORMAT, described)


_PREPROCESSING = {
    "colour": "RGB",
    "range": "0-1",
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
    "interpolation": "bilinear, antialiased",
}
"""What images go through beside the change of their size: no checkpoint has another."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; the network is built from it by `workflows/build.py`.

    Raises:
        CheckpointError: no such file, not a checkpoint, one that was damaged after it was written,
            one of another format version or with another preprocessing.
    """
    tensors, described = _load(path, FORMAT)
    checks = {"preset": dict, "preprocessing": dict, "identities": list, "training": dict}
    garbled = [key for key, kind in checks.items() if not isinstance(described.get(key), kind)]
    if not garbled:
        preprocessing = described["preprocessing"]
        sides = [preprocessing.pop(key, None) for key in ("height_px", "width_px")]
        garbled += ["preprocessing"] * any(type(side) is not int or side < 1 for side in sides)
        garbled += ["identities"] * any(type(each) is not int for each in described["identities"])
    if garbled:
        raise CheckpointError(
            f"checkpoint '{path}' lacks or garbles {' and '.join(map(repr, garbled))} in its "
            "metadata; get or train it anew"
        )
    for key, ours in _PREPROCESSING.items():
        if preprocessing.get(key) != ours:
            raise CheckpointError(
                f"checkpoint '{path}' was trained on images prepared in another way: {key} is "
                f"{json.dumps(preprocessing.get(key))[:80]}, this airnet has {json.dumps(ours)}; "
                "use the airnet that wrote it"
            )
    return Checkpoint(
        path=path,
        preset=described["preset"],
        height_px=sides[0],
        width_px=sides[1],
        identities=tuple(described["identities"]),
        training=described["training"],
        tensors=tensors,
    )


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
    """Make copies of the checkpoint's tensors those of a network that was built from its preset.

    Its own may be without memory: they are replaced, so an optimizer of before has nothing of them,
    and lie on the CPU as in the file.

    Raises:
        CheckpointError: tensors missing, left over, of another shape or type, or not finite.
    """
    misfit = f"checkpoint '{checkpoint.path}' does not fit the network of its own preset"
    _check_fit(checkpoint.tensors, network.state_dict(), misfit)
    _check_finite(checkpoint.tensors, f"checkpoint '{checkpoint.path}'")
    # Copies: the checkpoint's are a map of its file.
    copies = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(copies, strict=True, assign=True)


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
        CheckpointError: no such file, not a training state, one that was damaged after it was
            written, or one of another network.
    """
    tensors, described = _load(path, STATE_FORMAT)
    source = f"training state '{path}'"
    misfit = f"{source} is of another network"
    network_state = network.state_dict()
    parts = {_NETWORK: network_state}
    if average is not None:
        parts[_AVERAGE] = average.state_dict()
    if described.get("best") is not None:
        parts[_BEST] = network_state
    for prefix, expected in parts.items():
        _check_fit(_named(tensors, prefix), expected, misfit)
    known = (_OPTIMIZER, *parts)
    _check_fit({name: t for name, t in tensors.items() if not name.startswith(known)}, {}, misfit)
    try:
        moments = _moments(_named(tensors, _OPTIMIZER), optimizer, misfit)
        _check_finite(tensors, source)
        finished_epochs, best = _progress(described)
        if scaler is not None and scaler.is_enabled():
            values = described["scaler"]
            if not all(_is_finite(value) for value in values.values()):
                raise ValueError("scaler")
            scaler.load_state_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source} lacks or garbles {error} in its metadata; start the run again"
        ) from None
    network.load_state_dict(_named(tensors, _NETWORK), strict=True)
    if average is not None:
        average.load_state_dict(_named(tensors, _AVERAGE), strict=True)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    weights = _named(tensors, _BEST)
    return TrainingState(finished_epochs, None if best is None else Best(*best, weights))


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _progress(described: Mapping[str, Any]) -> tuple[int, tuple[int, float] | None]:
    """Finished epochs, and epoch and mAP of the best one; or a ValueError with the key."""
    finished, best = described["finished_epochs"], described.get("best")
    if type(finished) is not int or finished < 0:
        raise ValueError("finished_epochs")
    if best is None:
        return finished, None
    if type(best["epoch"]) is not int or not _is_finite(best["mAP"]):
        raise ValueError("best")
    return finished, (best["epoch"], float(best["mAP"]))


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _moments(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, misfit: str
) -> dict[int, dict[str, Tensor]]:
    """Adam's tensors by parameter: torch takes any, and fails at the next step.

    Raises:
        CheckpointError: they are not those of the optimizer's parameters.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if not number.isascii() or not number.isdigit() or len(number) > 9:
            raise CheckpointError(f"{misfit}: {_OPTIMIZER}{key} is no tensor of Adam's")
        moments.setdefault(int(number), {})[name] = tensor
    for index, state in moments.items():
        shape = parameters[index].shape if index < len(parameters) else None
        expected = {name: torch.Size() if name == "step" else shape for name in _ADAM}
        if {name: tensor.shape for name, tensor in state.items()} != expected or not all(
            tensor.dtype == torch.float32 for tensor in state.values()
        ):
            raise CheckpointError(
                f"{misfit}: {_OPTIMIZER}{index} does not fit the parameter of that number"
            )
    return moments


def _check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], misfit: str) -> None:
    """Raise CheckpointError where names, shapes or types differ."""
    problems = list(_misfits(found, expected))
    if problems:
        more = f" and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        raise CheckpointError(f"{misfit}: {'; '.join(problems[:MOST_SHOWN])}{more}")


MOST_SHOWN = 3
"""Tensors that do not fit, in a message."""


def _misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in found:
            yield f"{name} is missing"
        elif (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            yield f"{name} is {_form(found[name])} and should be {_form(tensor)}"
    for name in found.keys() - expected.keys():
        yield f"{name[:200]} is left over"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError for NaN and infinity: embeddings would be neither near nor far."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source} holds NaN or infinity in {name}; get or train it anew")


def _save(path: Path, tensors: dict[str, Tensor], kind: str, described: dict[str, Any]) -> None:
    header = {"format": kind, "format_version": str(FORMAT_VERSION), "sha256": _NO_DIGEST}
    header |= {key: json.dumps(value) for key, value in described.items()}
    # In a folder of its own: safetensors writes under another name there, and renames.
    with replacing_together((path,)) as (temporary,):
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
            _seal(temporary)
        except safetensors.SafetensorError as error:  # how it tells of a full disk
            raise OSError(f"{error}") from None


_NO_DIGEST = "0" * 64


def _seal(path: Path) -> None:
    """Put the metadata into the order of their keys, and the file's hash into them.

    safetensors writes them in an order that is another one in each process; the same contents are
    to be the same file.
    """
    with path.open("r+b") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the same JSON, as short as it can be written"
        text = text.ljust(length)
        digest = hashlib.sha256(start + text)
        hashlib.file_digest(file, lambda: digest)
        file.seek(8)
        file.write(text.replace(_quoted(_NO_DIGEST), _quoted(digest.hexdigest())))


def _quoted(digest: str) -> bytes:
    """How the hash stands in the header: nothing else in it can look like this."""
    return f'"sha256":"{digest}"'.encode()


def _is_sealed(path: Path, said: str) -> bool:
    """Whether the file's hash is what its metadata say."""
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(int.from_bytes(start, "little"))
        # Of another length, the digits would not be what was replaced.
        if len(said) != len(_NO_DIGEST) or header.count(_quoted(said)) != 1:
            return False
        digest = hashlib.sha256(start + header.replace(_quoted(said), _quoted(_NO_DIGEST)))
        return hashlib.file_digest(file, lambda: digest).hexdigest() == said


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist; `airnet train` writes one")
    try:
        check_safetensors(path)
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path.stat().st_size:,} bytes are more than any has")
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
            described = {k: v for k, v in header.items() if k not in ("format", "format_version")}
            said = described.pop("sha256", None)
            if said is None:
                is_whole = described.keys() <= _UNSEALED[kind]
            else:
                is_whole = _is_sealed(path, said)
            if not is_whole:
                raise CheckpointError(
                    f"'{path}' was changed or damaged after it was written: its hash is another; "
                    "get it again from where it came, or train anew"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
        return tensors, {key: json.loads(value) for key, value in described.items()}
    except CheckpointError:
        raise
    # Beside its own error, safetensors raises what torch does on types that it lacks.
    except Exception as error:
        raise CheckpointError(f"'{path}' can't be read as {kind}: {error}; is it whole?") from None
