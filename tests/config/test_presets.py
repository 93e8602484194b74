"""Presets: found by name and path, overridden, validated; every mistake in plain words, at once."""

import re
import tomllib
from pathlib import Path

import pytest

from airnet_cli.config import presets
from airnet_cli.config.presets import (
    changed_preset,
    find_preset,
    list_presets,
    load_preset,
    preset_names,
    preset_text,
    validate_preset,
)
from airnet_cli.errors import PresetError

PAPER = ["cuhk03-detected", "cuhk03-labeled", "market1501", "msmt17"]


def lines(name_or_path: str, *overrides: str) -> list[str]:
    with pytest.raises(PresetError) as caught:
        load_preset(name_or_path, overrides)
    return str(caught.value).splitlines()


def problems(*overrides: str) -> list[str]:
    """The problems that overrides of `market1501` cause, without the line that names the file."""
    *found, last = lines("market1501", *overrides)
    assert last == f"in the preset {find_preset('market1501')}"
    return found


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_accepted(name):
    """Each file of presets/ fits the schema, and its header gives the command that runs it."""
    assert load_preset(name).description
    text = preset_text(name)
    assert f"airnet train --preset {name}" in text
    assert re.search(r"^# (Expected|Scores|Numbers): ", text, re.MULTILINE)


def test_the_presets_of_the_paper_share_their_recipe():
    """The four data sets of the paper differ in their name and description alone."""
    dumps = [load_preset(name).model_dump(exclude={"description"}) for name in PAPER]
    names = [dump["data"].pop("name") for dump in dumps]
    assert names == PAPER
    assert all(dump == dumps[0] for dump in dumps)


def test_the_recipe_of_the_paper():
    """Section 4.2, number by number."""
    preset = load_preset("market1501")
    training = preset.training
    assert (preset.data.height_px, preset.data.width_px) == (384, 192)
    assert (preset.model.variant, preset.model.backbone) == ("airnet", "resnet50_ibn")
    assert training.identities_per_batch * training.images_per_identity == 64
    assert (training.epochs, training.learning_rate, training.learning_rate_epochs) == (
        200,
        3.5e-4,
        (40, 70),
    )
    assert (training.triplet_margin, training.weight_decay) == (0.2, 5e-4)
    assert (training.label_smoothing, preset.evaluation.normalize_heads) == (0, False)


def test_list_presets_is_one_line_each():
    """The list has all names in order, each with a description of one line."""
    described = list_presets()
    assert list(described) == preset_names()
    assert set(PAPER) | {"demo", "market1501-cpu"} <= set(preset_names())
    assert all("\n" not in description for description in described.values())


def test_preset_text_is_the_file_as_it_is():
    """What is printed is TOML with its comments."""
    text = preset_text("demo")
    assert text == find_preset("demo").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert tomllib.loads(text)["data"]["name"] == "demo"


@pytest.mark.parametrize("relative", ["mine.toml", "./mine.toml", "folder/mine"])
def test_a_preset_by_path(relative, tmp_path, monkeypatch):
    """What has a slash or ends in .toml is a path, relative to where the user is."""
    path = tmp_path / relative
    path.parent.mkdir(exist_ok=True)
    path.write_text(preset_text("demo").replace('name = "demo"', 'name = "mine"'))
    monkeypatch.chdir(tmp_path)
    assert load_preset(relative).data.name == "mine"


def test_presets_inside_the_package_come_first(tmp_path, monkeypatch):
    """An installed package has them inside, a checkout beside it; without either it says so."""
    package = tmp_path / "airnet_cli"
    package.mkdir()
    monkeypatch.setattr(presets.airnet_cli, "__file__", str(package / "__init__.py"))
    with pytest.raises(PresetError, match="this installation has no presets"):
        preset_names()
    for folder, name in ((tmp_path, "beside"), (package, "inside")):
        (folder / "presets").mkdir()
        (folder / "presets" / f"{name}.toml").write_text("")
        assert preset_names() == [name]


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("training.epochs=5", "training", "epochs", 5),
        ("training.epochs = 5", "training", "epochs", 5),
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("training.learning_rate=1", "training", "learning_rate", 1.0),
        ("training.learning_rate_epochs=[3, 4]", "training", "learning_rate_epochs", (3, 4)),
        ("training.learning_rate_epochs=[]", "training", "learning_rate_epochs", ()),
        ("evaluation.normalize_heads=true", "evaluation", "normalize_heads", True),
        ("model.variant=baseline", "model", "variant", "baseline"),
        ('model.variant="baseline"', "model", "variant", "baseline"),
        ("model.init=weights/a=b.pth", "model", "init", "weights/a=b.pth"),
        ("data.name=123", "data", "name", "123"),
        ("data.name=2024-01-01", "data", "name", "2024-01-01"),
        ("data.name=true", "data", "name", "true"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_override(override, section, key, expected):
    """A value is read as TOML where it is TOML, as text otherwise; nothing else changes."""
    before = load_preset("market1501").model_dump()
    after = load_preset("market1501", [override]).model_dump()
    before[section][key] = expected
    assert after == before


def test_override_of_a_nested_table_and_the_last_one_counts():
    """Keys go as deep as the tables; of two overrides of one key the later one counts."""
    preset = load_preset(
        "market1501", ["training.erasing.area=[0.1, 0.2]", "training.seed=1", "training.seed=7"]
    )
    assert preset.training.erasing.area == (0.1, 0.2)
    assert preset.training.seed == 7


def test_an_override_can_supply_what_the_file_lacks(tmp_path):
    """Overrides go over the raw data: the whole is validated once, after them."""
    path = tmp_path / "short.toml"
    path.write_text(preset_text("demo").replace("seed = 1", ""))
    assert lines(str(path))[0] == "training.seed: missing"
    assert load_preset(str(path), ["training.seed=3"]).training.seed == 3


VARIANTS = (
    "'baseline', 'baseline_abp', 'baseline_gc', 'parallel_gc', 'parallel_abp', 'airnet_gc' "
    "or 'airnet'"  # Table 3
)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.variant=airnett", f'model.variant = "airnett": should be {VARIANTS} (from --set)'),
        (
            "training.epochs=0",
            "training.epochs = 0: should be greater than or equal to 1 (from --set)",
        ),
        ("training.epochs=ten", 'training.epochs = "ten": should be a valid integer (from --set)'),
        ("training.epochs=true", "training.epochs = true: should be a valid integer (from --set)"),
        ('training.epochs="12"', 'training.epochs = "12": should be a valid integer (from --set)'),
        (
            "training.learning_rate=nan",
            "training.learning_rate = NaN: should be a finite number (from --set)",
        ),
        ("training.erasing.area=[0.02]", "training.erasing.area[1]: missing (from --set)"),
        (
            "training.erasing.area=[0.1, 3]",
            "training.erasing.area[1] = 3: should be less than 1 (from --set)",
        ),
        (
            "training.learning_rate_epochs=[70, 40]",
            "training: learning_rate_epochs = [70, 40]: must ascend, as in [40, 70]",
        ),
        (
            "training.erasing.area=[0.4, 0.02]",
            "training.erasing: area and aspect are each [smallest, largest]; "
            "given: area = [0.4, 0.02], aspect = [0.3, 3.33]",
        ),
        ("training.epoch=5", "training.epoch: no such key; nearest: training.epochs (from --set)"),
        ("variant=airnet", "variant: no such key; nearest: model.variant (from --set)"),
        (
            "zzz=1",
            "zzz: no such key; airnet train --preset market1501 --dry-run lists all keys "
            "(from --set)",
        ),
        ("training.seed.x=1", "--set training.seed.x=1: training.seed is not a table"),
        ("training=5", "training = 5: should be an object (from --set)"),
        (
            "training.epochs",
            "--set training.epochs: must be dotted.key=value, as in training.epochs=5",
        ),
        (
            "model.attention=softmax",
            "model.attention: no such key; it was removed, leave it out (from --set)",
        ),
    ],
    ids=lambda value: value.partition(": ")[0],
)
def test_a_mistake_in_an_override_is_one_line(override, expected):
    """The line has the path, the value, what is allowed or nearest, and where it came from."""
    assert problems(override) == [expected]


def test_all_mistakes_are_told_at_once(tmp_path):
    """Mistakes of the file and of the overrides come together, then the file's path."""
    path = tmp_path / "mine.toml"
    path.write_text(
        re.sub(r"^epochs = \d+", "epoch = 12", preset_text("demo"), flags=re.MULTILINE)
        .replace("[data]", "[dada]")
        .replace("weight_decay =", "freeze_epochs = 2\nweight_decay =")
    )
    assert lines(str(path), "model.backbone=resnet51", "seed") == [
        "data: missing",
        "model.backbone = \"resnet51\": should be 'resnet50_ibn', 'resnet50_gc', 'resnet50', "
        "'resnet18', 'resnet18_ibn' or 'mobilenet_v2' (from --set)",
        "training.epochs: missing",
        "training.epoch: no such key; nearest: training.epochs",
        "training.freeze_epochs: no such key; it was removed, leave it out",
        "dada: no such key; nearest: data",
        "--set seed: must be dotted.key=value, as in training.epochs=5",
        f"in the preset {path}",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"epochs = = 3", r"the preset .*mine\.toml is not valid TOML: .*line 1"),
        (b"\xff\xfe", r"the preset .*mine\.toml is not text in UTF-8"),
    ],
    ids=["not TOML", "not text"],
)
def test_a_file_that_is_not_a_preset(content, expected, tmp_path):
    """What can't be read is named with its path."""
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(PresetError, match=expected):
        load_preset(str(path))


def test_a_path_must_exist(tmp_path):
    """A path that the user gave is never replaced by something else."""
    path = tmp_path / "market1501.toml"
    names = ", ".join(preset_names())
    assert lines(str(path)) == [
        f"the preset {path} can't be read: No such file or directory; "
        f"give the path of a .toml file or a name: {names}"
    ]
    assert "can't be read: Is a directory" in lines(f"{tmp_path}/")[0]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("markt1501", "nearest: market1501 or market1501-cpu"),
        ("msmt", "nearest: msmt17"),
        ("zzz", "there are: " + ", ".join(preset_names())),
    ],
)
def test_an_unknown_name_gives_the_nearest(name, hint):
    """A wrong name is answered with the nearest ones, or with all."""
    assert lines(name) == [f'no preset has the name "{name}"; {hint} (airnet presets)']


def test_validate_preset_names_its_source():
    """A preset from a checkpoint is validated in the same words."""
    raw = load_preset("demo").model_dump(mode="json")
    assert validate_preset(raw, source="model.safetensors") == load_preset("demo")
    raw["model"]["variant"] = "air"
    with pytest.raises(
        PresetError, match=r"(?s)^model\.variant = .*in the preset model\.safetensors$"
    ):
        validate_preset(raw, source="model.safetensors")


def test_a_preset_survives_json():
    """What a run folder keeps is what was asked for."""
    for path in Path(find_preset("demo")).parent.glob("*.toml"):
        preset = load_preset(str(path))
        assert validate_preset(preset.model_dump(mode="json"), source="x") == preset


def test_a_stored_preset_with_removed_settings_is_read_if_they_have_the_defaults():
    """Runs and checkpoints of older versions name all of them; another value is another network."""
    preset = load_preset("demo")
    old = preset.model_dump(mode="json")
    for key, default in presets.REMOVED.items():
        section, _, name = key.partition(".")
        old[section][name] = default
    assert validate_preset(old, source="an old run") == preset
    old["model"]["attention"] = "softmax"
    with pytest.raises(
        PresetError, match=r'^model\.attention = "softmax": this setting was removed'
    ):
        validate_preset(old, source="an old run")


def test_a_change_is_validated():
    """A seed or a variant for another run of a plan."""
    preset = load_preset("demo")
    values = {"training.seed": 7, "model.variant": "baseline"}
    expected = load_preset("demo", ["training.seed=7", "model.variant=baseline"])
    assert changed_preset(preset, values, source="x") == expected
    with pytest.raises(PresetError, match=r"^training\.seed = -1: should be greater"):
        changed_preset(preset, {"training.seed": -1}, source="x")
