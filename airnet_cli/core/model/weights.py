"""Initial weights of a backbone: which public file, its hash, and a strict report of its keys.

A file loads only if every key of the backbone is in it and every key of it is used, the ImageNet
classifier and (for a new GC block) the block's own keys excepted. Plain ResNet weights therefore
never go into an IBN network silently: its 13 mixed norms would be missing. Nothing is unpickled
but with `weights_only=True`, after a look at what it would be.
"""

import hashlib
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from airnet_cli.core.model.backbone import Backbone, BackboneName
from airnet_cli.core.model.foreign import check_pth, check_safetensors
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


@dataclass(frozen=True)
class WeightsReport:
    """What went where."""

    source: Path
    loaded: int
    """Tensors of the backbone that were filled."""
    left_out: tuple[str, ...]
    """Keys of the file that the backbone has no place for, all of the ImageNet classifier."""
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
    """The local copy of the published file for `name`, downloaded if need be, its hash checked.

    Raises:
        WeightsError: it is not here and can't be downloaded, or its sha256 is not the published
        one.
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
            "delete it and run again to download it anew"
        )
    return path


def load_weights(backbone: Backbone, path: Path) -> WeightsReport:
    """Fill `backbone` from a .safetensors or .pth file with torchvision's or IBN-Net's key names.

    A `module.` prefix and a wrapping `state_dict` are stripped.

    Raises:
        WeightsError: no such file, not a weights file, keys, shapes or types that do not fit (all
            are listed), NaN or infinity.
    """
    source = _strip(read_state_dict(path))
    targets = _targets(backbone)
    missing = [k for k in targets if k not in source and not k.endswith("num_batches_tracked")]
    new = [key for key in missing if _is_global_context(key)]
    missing = [key for key in missing if not _is_global_context(key)]
    extra = [key for key in source if key not in targets]
    left_out = [key for key in extra if key.startswith(backbone.classifier_prefix)]
    extra = [key for key in extra if not key.startswith(backbone.classifier_prefix)]
    misshapen = [
        f"{key} {tuple(source[key].shape)} for {tuple(target.shape)}"
        for key, target in targets.items()
        if key in source and source[key].shape != target.shape
    ]
    mistyped = [
        f"{key} {str(source[key].dtype).removeprefix('torch.')}"
        for key, target in targets.items()
        # Half or double weights are those of the same network; whole numbers are not.
        if key in source and source[key].is_floating_point() != target.is_floating_point()
    ]
    problems = [
        f"{label}: {_shorten(keys)}"
        for label, keys in (
            ("missing", missing),
            ("left over", extra),
            ("wrong shape", misshapen),
            ("wrong type", mistyped),
        )
        if keys
    ]
    if problems:
        hint = ""
        if any(".IN." in key for key in missing) and not any(".IN." in key for key in source):
            hint = " (plain ResNet weights do not fit an IBN network; IBN-Net publishes its own)"
        raise WeightsError(
            f"weights '{path}' do not fit this backbone{hint}; " + "; ".join(problems)
        )
    for key, target in targets.items():
        if key in source and not source[key].to(target.dtype).isfinite().all():
            raise WeightsError(f"weights '{path}' hold NaN or infinity in {key}; get them anew")
    with torch.no_grad():
        for key, target in targets.items():
            if key in source:
                target.copy_(source[key])
    loaded = sum(key in source for key in targets)
    return WeightsReport(path, loaded, tuple(left_out), tuple(new))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, or of a .pth file read with `weights_only=True`.

    Raises:
        WeightsError: no such file, or something that is not a plain dictionary of tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"weights '{path}' do not exist; model.init is imagenet, none, or the path of a "
            ".safetensors or .pth file"
        )
    try:
        if path.suffix == ".safetensors":
            check_safetensors(path)
            return dict(safetensors.torch.load_file(path))
        check_pth(path)
        with warnings.catch_warnings():  # of forms that torch will not read one day
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # torch's reader raises nearly anything on broken bytes (KeyError, UnicodeDecodeError, ...).
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):  # whose text says how to run it all the same
            reason = "it is broken or holds more than tensors, and code from a file is never run"
        raise WeightsError(
            f"weights '{path}' can't be read: {reason}; "
            "model.init takes a whole .safetensors or .pth file of named tensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in content.items()
    ):
        raise WeightsError(f"weights '{path}' hold no plain dictionary of named tensors")
    return content


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers in memory: not sparse, not quantized, no mere shape."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in state.items()}


def _targets(backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's tensors under the names of the public files."""
    trunk = {backbone.trunk_prefix + k: v for k, v in backbone.trunk.state_dict().items()}
    stage5 = {backbone.stage5_prefix + k: v for k, v in backbone.stage5.state_dict().items()}
    return trunk | stage5


def _is_global_context(key: str) -> bool:
    return key.startswith(("gc3.", "gc4."))


def _shorten(keys: list[str]) -> str:
    shown = ", ".join(keys[:MOST_KEYS_SHOWN])
    return (
        shown if len(keys) <= MOST_KEYS_SHOWN else f"{shown} and {len(keys) - MOST_KEYS_SHOWN} more"
    )


MOST_KEYS_SHOWN = 6
