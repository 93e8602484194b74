"""The settings of a run as flat dotted keys: which runs are of one setting, and what differs.

Two runs are of one setting when everything but the seed is the same. Left out too are a preset's
description and what does not change what is computed: how many processes read images, and how many
images are embedded at once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from airnet_cli.config.schema import Preset

Settings = Mapping[str, object]
"""Dotted keys, as `--set` takes them, and plain JSON values."""

SEED = "training.seed"
VARIANT = "model.variant"

_NOT_A_SETTING = frozenset({"description", SEED, "training.workers", "evaluation.batch_size"})

_HEIGHT, _WIDTH = "data.height_px", "data.width_px"


def flatten(preset: Preset) -> dict[str, object]:
    """All values of a preset under dotted keys, in the preset's order."""
    return dict(_flatten("", preset.model_dump(mode="json")))


def settings_of(preset: Preset) -> dict[str, object]:
    """What runs of one setting have in common: all but the seed and what changes no score."""
    return {key: value for key, value in flatten(preset).items() if key not in _NOT_A_SETTING}


def identity(settings: Settings) -> str:
    """Text that is equal for equal settings, whatever the order of their keys."""
    return json.dumps(dict(settings), sort_keys=True)


def labels(settings: Sequence[Settings]) -> list[str]:
    """A name for each of `settings`: its variant, then what is not the same in all of them.

    Keys are shortened to their last part, and paths to their last part, where they stay different.

    >>> labels([{"model.variant": "airnet", "training.epochs": 16},
    ...         {"model.variant": "baseline", "training.epochs": 16}])
    ['airnet', 'baseline']
    >>> labels([{"model.variant": "airnet", "training.epochs": 16},
    ...         {"model.variant": "airnet", "training.epochs": 30}])
    ['airnet, epochs=16', 'airnet, epochs=30']
    """
    differing = differing_keys(settings)
    short = [_label(each, differing, full=False) for each in settings]
    if len(set(short)) == len({identity(each) for each in settings}):
        return short
    return [_label(each, differing, full=True) for each in settings]


def differing_keys(settings: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all of `settings`, in the order of the preset."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [
        key for key in keys if len({json.dumps(each.get(key, _ABSENT)) for each in settings}) > 1
    ]


_ABSENT = "(absent)"


def show_value(value: object, *, full: bool = False) -> str:
    """A setting's value for people; of a path its last part, unless `full`.

    >>> [show_value(value) for value in (True, [10, 14], "weights/resnet18.pth", 0.2)]
    ['true', '[10, 14]', 'resnet18.pth', '0.2']
    """
    if isinstance(value, str):
        return value if full else PurePath(value).name or value
    return json.dumps(value)


def _label(settings: Settings, differing: Sequence[str], *, full: bool) -> str:
    words = [str(settings.get(VARIANT, "?"))]
    for key in differing:
        if key in (_HEIGHT, _WIDTH):
            size = f"{settings.get(_HEIGHT)} x {settings.get(_WIDTH)}"
            words += [size] if size not in words else []
        elif key != VARIANT:
            last = key.rpartition(".")[2]
            is_clear = sum(other.rpartition(".")[2] == last for other in differing) == 1
            value = show_value(settings.get(key, _ABSENT), full=full)
            words.append(f"{last if is_clear else key}={value}")
    return ", ".join(words)


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, below in value.items():
        yield from _flatten(f"{prefix}.{key}" if prefix else key, below)
