"""Which runs are of one setting, and what rows are called."""

import pytest

from airnet_cli.config.presets import load_preset
from airnet_cli.workflows.settings import differing_keys, flatten, identity, labels, settings_of


def of(*overrides):
    return settings_of(load_preset("demo", overrides))


def test_flat_keys_are_those_of_set():
    """Each key of a flattened preset can be given back with --set."""
    preset = load_preset("demo")
    flat = flatten(preset)
    assert flat["training.erasing.area"] == [0.02, 0.4]
    assert all(not isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("training.seed=7", True),
        ("training.workers=5", True),
        ("evaluation.batch_size=7", True),
        ("description=other words", True),
        ("training.epochs=7", False),
        ("model.variant=baseline", False),
        ("evaluation.normalize_heads=true", False),
        ("training.train_ids=7", False),
    ],
)
def test_one_setting(override, is_same):
    """The seed, and what changes no score, do not make another setting."""
    assert (identity(of()) == identity(of(override))) is is_same


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([of()], ["airnet"]),
        ([of(), of("model.variant=baseline")], ["airnet", "baseline"]),
        (
            [of("training.epochs=4"), of("training.epochs=3")],
            ["airnet, epochs=4", "airnet, epochs=3"],
        ),
        (
            [of("data.height_px=96"), of("data.height_px=80")],
            ["airnet, 96 x 32", "airnet, 80 x 32"],
        ),
        (
            [of("model.init=a/x.pth"), of("model.init=b/y.pth")],
            ["airnet, init=x.pth", "airnet, init=y.pth"],
        ),
        (
            [of("model.init=a/x.pth"), of("model.init=b/x.pth")],
            ["airnet, init=a/x.pth", "airnet, init=b/x.pth"],
        ),
        (
            [{"model.variant": "airnet", "a.x": 1, "b.x": 1}, {"model.variant": "airnet"}],
            ["airnet, a.x=1, b.x=1", "airnet, a.x=(absent), b.x=(absent)"],
        ),
    ],
    ids=["alone", "variant", "epochs", "size", "files", "files of one name", "keys of one name"],
)
def test_labels_name_what_differs(settings, expected):
    """The variant first, then only what is not the same in all."""
    assert labels(settings) == expected


def test_differing_keys_are_in_the_order_of_the_preset():
    """Whatever the order in which they were set."""
    changed = of("training.epochs=3", "model.variant=baseline", "data.name=x")
    assert differing_keys([of(), changed]) == ["data.name", "model.variant", "training.epochs"]
