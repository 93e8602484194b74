"""Presets of strangers: what is accepted says what the file says; the rest is told in lines."""

import datetime
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from airnet_cli.config.presets import load_preset, preset_text, validate_preset
from airnet_cli.errors import PresetError

VALUES = ["9" * 400, "-1", "0", "1e400", "nan", "-inf", "true", "''", '"\\u0000"', '"<b>\\n"']
VALUES += ["[]", "[[]]", "{}", "{a = 1}", "2026-11-24", "07:00:00", "0x" + "f" * 400, "1_000"]
VALUES += ["[" * 400 + "]" * 400, "[1, 'a']", "1.0", "1e3", "'''x'''", "'imagenet'", "5"]
KEYS = ["data", "'a.b'", '""', "epochs", "model.variant", "a." * 200 + "a", "\u00fc", '"\\n"']


def odd_preset(text: str, chance: random.Random) -> str:
    """`text` with one to four lines that have another value or key, are gone, or stand twice."""
    lines = text.split("\n")
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(lines))
        key, equals, _ = lines[at].partition(" = ")
        match chance.randrange(6):
            case 0 | 1 if equals:
                lines[at] = f"{key} = {chance.choice(VALUES)}"
            case 2 if equals:
                lines[at] = lines[at].replace(key, chance.choice(KEYS), 1)
            case 3:
                del lines[at]
            case 4:
                lines.insert(chance.randrange(len(lines)), lines[at])
            case _:
                lines.insert(at, f"{chance.choice(KEYS)} = {chance.choice(VALUES)}")
    return "\n".join(lines)


def check_as_written(written: Any, read: Any) -> None:
    """Each value of the file is the preset's, and of the same kind."""
    if isinstance(written, dict):
        for key, value in written.items():
            check_as_written(value, read[key])
    elif isinstance(written, list):
        assert list(read) == written
    elif isinstance(written, datetime.date | datetime.time):
        assert read == str(written), "text without quotes"
    else:
        assert read == written
        assert isinstance(read, bool) == isinstance(written, bool)


@pytest.mark.parametrize("kind", ["values", "bytes"])
def test_odd_presets(tmp_path: Path, survive, damage, kind: str) -> None:
    """Other values, other keys, broken bytes: exactly the values of the file, or lines."""
    path = tmp_path / "mine.toml"
    texts = [preset_text("demo"), preset_text("market1501")]
    accepted = 0

    def attempt(chance: random.Random) -> None:
        nonlocal accepted
        text = chance.choice(texts)
        if kind == "values":
            path.write_text(odd_preset(text, chance), encoding="utf-8")
        else:
            path.write_bytes(damage(text.encode(), chance))
        preset = load_preset(str(path))
        check_as_written(tomllib.loads(path.read_bytes().decode()), preset.model_dump())
        accepted += 1

    survive(f"presets, {kind}", attempt)
    assert accepted > 50


def test_odd_overrides(survive) -> None:
    """Anything after `--set`: the value that was given, or lines."""
    keys = ["training.epochs", "model.init", "data.name", "training.erasing.area", "training"]
    accepted = 0

    def attempt(chance: random.Random) -> None:
        nonlocal accepted
        values = [*VALUES, "[" * 900, "\udcff", "a b", "9" * 900, "", "[40,\n70]", "'", "1\nb = 2"]
        key, value = chance.choice([*keys, *KEYS]), chance.choice(values)
        preset: Any = load_preset("demo", [f"{key}{chance.choice(('=', '=', ' = ', ''))}{value}"])
        for part in key.split("."):
            preset = getattr(preset, part)
        if isinstance(preset, str):
            assert preset in (value.strip(), value.strip("'\""), "\0", "<b>\n")
        else:
            check_as_written(tomllib.loads(f"a = {value}")["a"], preset)
        accepted += 1

    survive("overrides", attempt)
    assert accepted > 20


@pytest.mark.parametrize(
    "raw",
    [[], None, "x", {"data": {"name": "\udc80"}}, json.loads('{"a":' * 400 + "1" + "}" * 400)],
    ids=["list", "nothing", "text", "surrogate", "deep"],
)
def test_presets_of_runs(raw: Any) -> None:
    """Those in checkpoints and run folders are JSON that anyone may have written."""
    with pytest.raises(PresetError):
        validate_preset(raw, source="preset.json")
