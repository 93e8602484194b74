"""Pydantic's problems with a preset as plain lines: one for each, all at once.

A line has the dotted path, the value given and what pydantic says of it; an unknown key has the
nearest valid one.
"""

import difflib
import json
from collections.abc import Collection

from pydantic import BaseModel, ValidationError

from airnet_cli.config.schema import Preset

REMOVED: dict[str, object] = {
    "model.attention": "none",
    "model.activation": "default",
    "training.freeze_epochs": 0,
    "training.interaction_init": "default",
    "training.interaction_lr_factor": 1.0,
}
"""Settings that airnet no longer has, with the defaults that presets stored by older versions name.
Their results are in docs/log.md."""

_LONGEST_VALUE = 60  # characters of a given value that are shown
_MOST_LINES = 50


def explain_problems(error: ValidationError, *, overridden: Collection[str] = ()) -> list[str]:
    """One line for each problem, in the schema's order; at most 50 and their number.

    `overridden` are the dotted keys that came from `--set`; their lines say so.
    """
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        path = ""
        for part in problem["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        says = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        match problem["type"]:
            case "extra_forbidden" if path in REMOVED:
                line = f"{path}: no such key; it was removed, leave it out"
            case "extra_forbidden":
                line = f"{path}: no such key; {nearest_key(path)}"
            case "missing":
                line = f"{path}: missing"
            case "value_error" | "json_invalid":  # the rules of the schema give their values
                line = f"{path}: {says}" if path else says
            case _:
                line = f"{path} = {show(problem['input'])}: {says}"
        lines.append(line + (" (from --set)" if path.partition("[")[0] in overridden else ""))
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"and {len(lines) - _MOST_LINES:,} more"]
    return lines


def nearest_key(name: str) -> str:
    """Which key of a preset someone who typed `name` may have meant, as half a sentence.

    >>> nearest_key("training.epoch"), nearest_key("variant")
    ('nearest: training.epochs', 'nearest: model.variant')
    """
    keys = leaf_types(Preset)
    keys |= {key.rpartition(".")[0]: dict for key in keys}
    lasts = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.8)
    near += [lasts[key] for key in difflib.get_close_matches(name.rpartition(".")[2], lasts, n=1)]
    if near:
        return f"nearest: {near[0]}"
    return "airnet train --preset market1501 --dry-run lists all keys"


def leaf_types(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """The type of each value of `model`, without its limits, under its dotted key."""
    leaves: dict[str, object] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            leaves |= leaf_types(kind, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = kind
    return leaves


def show(value: object) -> str:
    """A value as someone would type it in TOML, cut where it is long.

    >>> show([0.4, True, "none"])
    '[0.4, true, "none"]'
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
