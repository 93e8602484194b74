"""Find a preset by name or path, lay `--set` overrides over it, and validate the whole once.

Presets are complete, commented TOML files; none inherits from another. A wheel has them inside
the package (`airnet_cli/presets`), a checkout next to it (`presets/`). A preset is never changed
without being validated: changes go over the raw values. All mistakes are told at once, a line each,
in pydantic's words.
"""

import difflib
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

import airnet_cli
from airnet_cli.config.schema import Preset
from airnet_cli.errors import PresetError

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


def load_preset(name_or_path: str, overrides: Sequence[str] = ()) -> Preset:
    """Read a preset, lay `overrides` over it and validate the result.

    `name_or_path` with a slash or ending in `.toml` is a path and must exist; anything else is the
    name of a preset that comes with the package. Each of `overrides` is `dotted.key=value`; the
    value is read as TOML where it is TOML (`5`, `[40, 70]`, `false`) and as text otherwise.

    Raises:
        PresetError: The preset does not exist, is not TOML or does not fit the schema; one line for
            each problem, all at once.
    """
    path = find_preset(name_or_path)
    return _validate(_read(path), source=str(path), overrides=overrides)


def validate_preset(raw: Mapping[str, object], *, source: str) -> Preset:
    """The preset in `raw`, which was read from `source` (a checkpoint, a run folder).

    Raises:
        PresetError: `raw` does not fit the schema, or uses a setting that was removed; one line for
            each problem, all at once.
    """
    if not isinstance(raw, Mapping):
        raise PresetError(f"the preset in {source} is not a table of values")
    return _validate(_without_removed(raw), source=source)


def changed_preset(preset: Preset, values: Mapping[str, object], *, source: str) -> Preset:
    """`preset` with other `values`, by `section.key`; `source` says in errors which preset it is.

    Raises:
        PresetError: the schema refuses one of the values.
    """
    raw = preset.model_dump(mode="json")
    for key, value in values.items():
        section, _, name = key.partition(".")
        raw[section][name] = value
    return _validate(raw, source=source)


def _without_removed(raw: Mapping[str, object]) -> dict[str, object]:
    """`raw` without the settings that older versions of airnet had, where they have the defaults.

    Raises:
        PresetError: a removed setting has another value, so today's network would differ.
    """
    kept = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for key, default in REMOVED.items():
        section, _, name = key.partition(".")
        table = kept.get(section)
        value = table.pop(name, default) if isinstance(table, dict) else default
        if value != default:
            raise PresetError(
                f"{key} = {_show(value)}: this setting was removed; train again without it"
            )
    return kept


def overridden_keys(overrides: Sequence[str]) -> set[str]:
    """The dotted keys that `overrides` set.

    >>> overridden_keys(["model.variant = baseline"])
    {'model.variant'}
    """
    return {override.partition("=")[0].strip() for override in overrides}


def list_presets() -> dict[str, str]:
    """The names of the presets that come with the package, in order, and a line about each."""
    return {
        name: str(_read(_folder() / f"{name}.toml").get("description", ""))
        for name in preset_names()
    }


def preset_names() -> list[str]:
    """The names of the presets that come with the package, in order."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def preset_text(name_or_path: str) -> str:
    """The TOML of a preset as it is, comments included.

    Raises:
        PresetError: There is no such preset.
    """
    return _text(find_preset(name_or_path))


def find_preset(name_or_path: str) -> Path:
    """The file of a preset given by name or path; whether a path exists shows when it is read.

    Raises:
        PresetError: There is no preset of that name.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return Path(name_or_path)
    names = preset_names()
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, n=2, cutoff=0.5)
        hint = f"nearest: {' or '.join(near)}" if near else f"there are: {', '.join(names)}"
        raise PresetError(f"no preset has the name {_show(name_or_path)}; {hint} (airnet presets)")
    return _folder() / f"{name_or_path}.toml"


def _folder() -> Path:
    """Where the presets lie: inside an installed package, or beside it in a checkout."""
    package = Path(airnet_cli.__file__).resolve().parent
    for folder in (package / "presets", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise PresetError(
        f"this installation has no presets: neither {package / 'presets'} nor "
        f"{package.parent / 'presets'} exists; install airnet again"
    )


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise PresetError(f"the preset {path} is not valid TOML: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PresetError(f"the preset {path} is not text in UTF-8: {error.reason}") from error
    except OSError as error:
        raise PresetError(
            f"the preset {path} can't be read: {error.strerror}; give the path of a .toml file or "
            f"a name: {', '.join(preset_names())}"
        ) from error


def _validate(raw: dict[str, object], *, source: str, overrides: Sequence[str] = ()) -> Preset:
    problems = [problem for each in overrides if (problem := _lay_over(raw, each))]
    # As JSON because its strict mode is the one that fits TOML: it takes a list for a tuple and 1
    # for 1.0, but neither "12" nor true for a number.
    text = json.dumps(_with_selection(raw), default=str)
    try:
        preset = Preset.model_validate_json(text, strict=True)
    except ValidationError as error:
        explained = _explain(error, overridden_keys(overrides))
        problems = [*explained, *problems]
    if problems:
        raise PresetError(*problems, f"in the preset {source}")
    return preset


def _with_selection(raw: Mapping[str, object]) -> Mapping[str, object]:
    """Held-out people select the epoch, unless `evaluation.select` says otherwise.

    Not a rule of the schema: pydantic would validate what such a rule returns as Python, whose
    strict mode takes no list for a tuple.
    """
    training, evaluation = raw.get("training"), raw.get("evaluation")
    if not isinstance(training, Mapping) or not isinstance(evaluation, Mapping):
        return raw
    if not training.get("val_ids") or "select" in evaluation:
        return raw
    return {**raw, "evaluation": {**evaluation, "select": "val"}}


def _explain(error: ValidationError, overridden: Collection[str]) -> list[str]:
    """One line for each problem, in the schema's order: the dotted path, the value, what is wrong.

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
                line = f"{path}: no such key; {_nearest_key(path)}"
            case "missing":
                line = f"{path}: missing"
            case "value_error" | "json_invalid":  # the rules of the schema give their values
                line = f"{path}: {says}" if path else says
            case _:
                line = f"{path} = {_show(problem['input'])}: {says}"
        lines.append(line + (" (from --set)" if path.partition("[")[0] in overridden else ""))
    return lines


def _nearest_key(name: str) -> str:
    """Which key of a preset someone who typed `name` may have meant, as half a sentence."""
    keys = list(_leaf_types(Preset))
    keys += dict.fromkeys(key.rpartition(".")[0] for key in keys)
    by_last_part = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.8)
    last_parts = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, n=1)
    near += [by_last_part[part] for part in last_parts]
    if near:
        return f"nearest: {near[0]}"
    return "airnet train --preset market1501 --dry-run lists all keys"


def _leaf_types(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """The type of each value of `model`, without its limits, under its dotted key."""
    leaves: dict[str, object] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            leaves |= _leaf_types(kind, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = kind
    return leaves


def _show(value: object) -> str:
    """A value as someone would type it in TOML, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _lay_over(raw: dict[str, object], override: str) -> str | None:
    """Lay `dotted.key=value` over `raw`; or say why that can't be done."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        return f"--set {override}: must be dotted.key=value, as in training.epochs=5"
    *sections, last = key.split(".")
    table: object = raw
    for section in sections:
        table = table.setdefault(section, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return f"--set {override}: {'.'.join(sections)} is not a table"
    value = _toml_value(text)
    is_text = _leaf_types(Preset).get(key) is str
    table[last] = text if is_text and not isinstance(value, str) else value
    return None


def _toml_value(text: str) -> object:
    """`text` as a TOML value; what is not one (`baseline_abp`) is text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text
