"""Initial weights of a backbone: which public file, its hash, and a strict report of its keys.

A file loads only if every key of the backbone is in it and every key of the file is used. Only the
ImageNet classifier may be left over, and only the keys of a new GC block may be missing. So plain
ResNet weights never go into an IBN network silently: its 13 mixed norms would be missing.
Pickles are read with `weights_only=True`, which runs no code from the file.
"""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from airnet_cli.core.model.backbone import Backbone, BackboneName
from airnet_cli.errors import WeightsError

_IBN_RELEASE = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"

IMAGENET_FILES: dict[BackboneName, str] = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url,
    "resnet50_gc": torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url,
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url,
    "mobilenet_v2": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url,
    "resnet50_ibn": _IBN_RELEASE + "resnet50_ibn_a-d9d0bb7b.pth",
    "resnet18_ibn": _IBN_RELEASE + "resnet18_ibn_a-2f571257.pth",
}
"""Where ImageNet weights are published; the name ends with the start of the file's sha256."""

MOST_KEYS_SHOWN = 6

_GLOBAL_CONTEXT = ("gc3.", "gc4.")
"""Prefixes of the keys of GC blocks."""

_SIGNATURES = {
    b"\x93NUMPY": "a NumPy array, such as a gallery or features",
    b"PK\x03\x04": "a zip archive, such as a data set or a .pth file of PyTorch",
    b"\x80\x02": "a pickle, such as an old .pth file of PyTorch",
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself",
    b"<": "an HTML or XML page, such as the error page of a download",
    b"{": "JSON text",
}
"""What people give by mistake, by first bytes."""


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors of a file were used."""

    source: Path
    loaded: int
    """Tensors of the backbone that were filled."""
    left_out: tuple[str, ...]
    """Keys of the file that were not used, all of the ImageNet classifier."""
    new: tuple[str, ...]
    """Keys of the backbone that keep their random start, all of GC blocks."""


def load_imagenet(backbone: Backbone, name: BackboneName) -> WeightsReport:
    """Fill `backbone` with its published ImageNet weights, downloading them on first use.

    Raises:
        WeightsError: no connection (the message says where to put the file), a wrong hash, or keys
            that do not fit.
    """
    return load_weights(backbone, imagenet_file(name))


def imagenet_file(name: BackboneName) -> Path:
    """The local copy of the published file for `name`, downloaded on first use.

    Its hash is checked every time.

    Raises:
        WeightsError: it can't be downloaded, or its sha256 is not the published one.
    """
    url = IMAGENET_FILES[name]
    filename = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise WeightsError(
                f"model.init = imagenet needs {filename}, which could not be downloaded "
                f"({reason}); put it at {path}, or give a file with --set model.init=PATH, or "
                "start from random weights with --set model.init=none"
            ) from None
    expected = filename.rsplit("-", 1)[-1].removesuffix(".pth")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WeightsError(
            f"{path} has sha256 {found[:8]}…, the published file {expected}…; "
            "delete it and run again to download it"
        )
    return path


def load_weights(backbone: Backbone, path: Path) -> WeightsReport:
    """Fill `backbone` from a .safetensors or .pth file with torchvision's or IBN-Net's key names.

    A `module.` prefix and a wrapping `state_dict` are stripped.

    Raises:
        WeightsError: there is no such file, or it is not a weights file; keys, shapes or types do
            not fit (all are listed); a tensor has NaN or infinity.
    """
    source = {k.removeprefix("module."): t for k, t in read_state_dict(path).items()}
    targets = _targets(backbone)
    missing = [k for k in targets if k not in source and not k.endswith("num_batches_tracked")]
    new = [key for key in missing if key.startswith(_GLOBAL_CONTEXT)]
    left_over = [key for key in source if key not in targets]
    classifier = [key for key in left_over if key.startswith(backbone.classifier_prefix)]
    fitting = {key: (source[key], target) for key, target in targets.items() if key in source}
    problems = {
        "missing": [key for key in missing if key not in new],
        "left over": [key for key in left_over if key not in classifier],
        "wrong shape": [
            f"{key} {tuple(found.shape)} for {tuple(target.shape)}"
            for key, (found, target) in fitting.items()
            if found.shape != target.shape
        ],
        # Half or double precision is fine, integers are not weights.
        "wrong type": [
            f"{key} {str(found.dtype).removeprefix('torch.')}"
            for key, (found, target) in fitting.items()
            if found.is_floating_point() != target.is_floating_point()
        ],
    }
    listed = [f"{label}: {_shorten(keys)}" for label, keys in problems.items() if keys]
    if listed:
        hint = ""
        if any(".IN." in key for key in missing) and not any(".IN." in key for key in source):
            hint = " (plain ResNet weights do not fit an IBN network; IBN-Net publishes its own)"
        raise WeightsError(f"weights '{path}' do not fit this backbone{hint}; " + "; ".join(listed))
    for key, (found, target) in fitting.items():
        if not found.to(target.dtype).isfinite().all():
            raise WeightsError(
                f"weights '{path}' have NaN or infinity in {key}; download the file again"
            )
    with torch.no_grad():
        for found, target in fitting.values():
            target.copy_(found)
    return WeightsReport(path, len(fitting), tuple(classifier), tuple(new))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, or of a .pth file read with `weights_only=True`.

    Raises:
        WeightsError: there is no such file, or it is not a plain dictionary of tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"weights '{path}' do not exist; model.init is imagenet, none, or the path of a "
            ".safetensors or .pth file"
        )
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises nearly anything on damaged files (KeyError, UnicodeDecodeError, ...).
    except Exception as error:
        # Without the rest of torch's text, which says how to run the code in the file.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged or has more than tensors, and code from a file is never run"
        raise WeightsError(
            f"weights '{path}' can't be read: it looks like {describe_file(path)} ({reason}); "
            "model.init takes a .safetensors or .pth file of named tensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise WeightsError(
            f"weights '{path}' are not a plain dictionary of named tensors; save the state_dict() "
            "of the network, not the network or a list"
        )
    return content


def describe_file(path: Path) -> str:
    """What a file that is not a whole weights file looks like, by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        return f"no readable file ({error.strerror})"
    if start[8:9] == b"{":  # the length of the header, then the header
        return "a damaged or truncated safetensors file"
    for signature, description in _SIGNATURES.items():
        if start.startswith(signature):
            return description
    return "a damaged file or a file of another kind" if start else "an empty file"


def _targets(backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's tensors under the names of the public files."""
    trunk = {backbone.trunk_prefix + k: v for k, v in backbone.trunk.state_dict().items()}
    stage5 = {backbone.stage5_prefix + k: v for k, v in backbone.stage5.state_dict().items()}
    return trunk | stage5


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_KEYS_SHOWN} more" if len(keys) > MOST_KEYS_SHOWN else ""
    return ", ".join(keys[:MOST_KEYS_SHOWN]) + more
