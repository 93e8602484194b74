"""Pydantic's problems with a preset as plain lines: one for each, all at once.

A line has the dotted path, the value given and what is allowed; an unknown key has the nearest
valid one. What is allowed is read from the schema, not from pydantic's message, so that a missing
value, a wrong type and a wrong value are all answered in the same words.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from airnet_cli.config.schema import Preset

_LONGEST_VALUE = 60  # characters of a given value that are shown
_MOST_LINES = 50  # problems that are explained: to find the nearest key takes milliseconds

_LIMITS = {"ge": "{} or more", "gt": "above {}", "le": "{} or less", "lt": "below {}"}


def explain_problems(
    error: ValidationError, raw: Mapping[str, object], *, overridden: Collection[str] = ()
) -> list[str]:
    """One line for each problem of the preset `raw`, in the schema's order.

    `overridden` are the dotted keys that came from `--set`; their lines say so.
    """
    lines: dict[str, None] = {}  # a list with two bad numbers is one problem
    problems = error.errors(include_url=False)
    for number, problem in enumerate(problems):
        if len(lines) == _MOST_LINES:
            lines[f"and {len(problems) - number:,} more"] = None
            break
        keys = [key for key in problem["loc"] if isinstance(key, str)]
        path = ".".join(keys)
        match problem["type"]:
            case "extra_forbidden":
                line = f"{path}: no such key; {nearest_key(path, _all_keys())}"
            case "json_invalid":
                line = "it is nested too deeply, or has text that is no valid Unicode"
            case "missing" if len(keys) == len(problem["loc"]):
                line = f"{path}: missing; must be {_allowed(_annotation(keys))}"
            case "value_error":
                line = _broken_rule(path, problem["msg"], problem["input"], overridden)
            case _:
                given = _value_at(raw, keys)
                line = f"{path} = {show(given)}: must be {_allowed(_annotation(keys))}"
                if isinstance(given, str):
                    line += _nearest_choice(given, _annotation(keys))
        lines[line + (" (from --set)" if path in overridden else "")] = None
    return list(lines)


def nearest_key(name: str, known: Iterable[str]) -> str:
    """Which of the dotted keys `known` someone who typed `name` may have meant, as half a sentence.

    >>> nearest_key("training.epoch", ["training.epochs", "training.seed"])
    'nearest: training.epochs'
    >>> nearest_key("variant", ["model.variant", "data.name"])
    'nearest: model.variant'
    """
    known = list(known)
    last = name.rpartition(".")[2]
    lasts = {key.rpartition(".")[2]: key for key in reversed(known)}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    near += [lasts[key] for key in difflib.get_close_matches(last, lasts, n=1, cutoff=0.6)]
    near += difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"nearest: {near[0]}"
    section = name.rpartition(".")[0]
    inside = f"{section}." if any(key.startswith(f"{section}.") for key in known) else ""
    beside = dict.fromkeys(
        inside + key.removeprefix(inside).partition(".")[0]
        for key in known
        if key.startswith(inside)
    )
    return f"there are: {', '.join(beside)}"


def leaf_annotations(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The annotation of each value of `model`, under its dotted key."""
    leaves: dict[str, Any] = {}
    for name, annotation in model.__annotations__.items():
        if name == "model_config":
            continue
        if _is_table(annotation):
            leaves |= leaf_annotations(annotation, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = annotation
    return leaves


def is_text(annotation: Any) -> bool:
    """Whether a value of this annotation is free text."""
    return _strip(annotation)[0] is str


def show(value: object) -> str:
    """A value as someone would type it in TOML, cut where it is long.

    >>> show([0.4, True, "none"])
    '[0.4, true, "none"]'
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _broken_rule(path: str, message: str, given: object, overridden: Collection[str]) -> str:
    """The line for a rule between values, with those that its message names."""
    message = message.removeprefix("Value error, ")
    if not path:  # between tables: the message has its values
        return message
    named = [
        f"{key} = {show(value)}" + (" (from --set)" if f"{path}.{key}" in overridden else "")
        for key, value in (given.items() if isinstance(given, dict) else ())
        if re.search(rf"\b{key}\b", message)
    ]
    return f"{path}: {message}" + (f"; given: {', '.join(named)}" if named else "")


def _nearest_choice(given: str, annotation: Any) -> str:
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    near = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    return f"; nearest: {near[0]}" if near else ""


def _all_keys() -> list[str]:
    """The dotted keys of the schema, tables before what is in them."""
    keys: dict[str, None] = {}
    for leaf in leaf_annotations(Preset):
        parts = leaf.split(".")
        keys |= dict.fromkeys(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return list(keys)


def _value_at(raw: object, keys: Iterable[str]) -> object:
    for key in keys:
        raw = raw[key] if isinstance(raw, dict) else raw
    return raw


def _annotation(keys: Iterable[str]) -> Any:
    annotation: Any = Preset
    for key in keys:
        annotation = annotation.__annotations__[key]
    return annotation


def _allowed(annotation: Any) -> str:
    """What a value of this annotation may be, in words.

    >>> from typing import Annotated
    >>> from pydantic import Field
    >>> _allowed(Annotated[int, Field(ge=1)])
    'a whole number, 1 or more'
    >>> _allowed(tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]])
    'a list of 2, each a number, above 0 and below 1'
    """
    kind, limits = _strip(annotation)
    if _is_table(kind):
        return f"a table with {', '.join(leaf_annotations(kind))}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is Ellipsis:
            return f"a list, each {_allowed(parts[0])}"
        return f"a list of {len(parts)}, each {_allowed(parts[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text, not empty",
    }
    if not limits:
        return words[kind]
    return f"{words[kind]}, {' and '.join(limits)}"


def _strip(annotation: Any) -> tuple[Any, list[str]]:
    """The type inside an `Annotated`, and its limits in words."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    kind, *fields = get_args(annotation)
    limits = [
        words.format(getattr(limit, name))
        for field in fields
        for limit in field.metadata
        for name, words in _LIMITS.items()
        if hasattr(limit, name)
    ]
    return kind, limits


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
