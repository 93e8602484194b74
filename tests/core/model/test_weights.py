"""Initial weights: the strict key report, files that are not weights, files that are missing."""

import hashlib
import pickle
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from airnet_cli.core.model.backbone import Backbone, build_backbone
from airnet_cli.core.model.pooling import GlobalContext
from airnet_cli.core.model.weights import IMAGENET_FILES, load_imagenet, load_weights
from airnet_cli.errors import WeightsError


def small_backbone(*, global_context: bool = False) -> Backbone:
    """A backbone of three layers with the key names of the ResNet family."""
    trunk: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, bias=False), bn1=nn.BatchNorm2d(16)
    )
    if global_context:
        trunk["gc3"] = GlobalContext(16)
    stage5 = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32))
    return Backbone(nn.Sequential(trunk), stage5, 32, "", "layer4.", "fc.")


def values_of(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of the backbone's tensors, under public names."""
    trunk, stage5 = backbone.trunk.state_dict(), backbone.stage5.state_dict()
    state = {backbone.trunk_prefix + key: value.clone() for key, value in trunk.items()}
    return state | {backbone.stage5_prefix + key: value.clone() for key, value in stage5.items()}


def public_state(backbone: Backbone) -> dict[str, Tensor]:
    """New values for the backbone under the names of a public file, with its classifier."""
    state = {
        key: torch.rand_like(old) if old.is_floating_point() else old + 7
        for key, old in values_of(backbone).items()
    }
    return state | {f"{backbone.classifier_prefix}weight": torch.rand(10, 32)}


def refusal(backbone: Backbone, path: Path) -> str:
    """The one line, with the path, for a file that is refused; it changes no weight."""
    before = values_of(backbone)
    with pytest.raises(WeightsError) as raised:
        load_weights(backbone, path)
    assert all(torch.equal(value, before[key]) for key, value in values_of(backbone).items())
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# Good files


FORMS = {
    "weights.safetensors": safetensors.torch.save_file,
    "weights.pth": torch.save,
    "old.pth": lambda s, path: torch.save(s, path, _use_new_zipfile_serialization=False),
    "module.pth.tar": lambda s, path: torch.save(
        {"epoch": 90, "state_dict": OrderedDict((f"module.{k}", v) for k, v in s.items())}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_good_file_loads(tmp_path, form):
    """Each tensor arrives; the report counts them and names the classifier as left out."""
    backbone = small_backbone()
    state = public_state(backbone)
    FORMS[form](state, tmp_path / form)
    report = load_weights(backbone, tmp_path / form)
    assert (report.source, report.loaded, report.new) == (tmp_path / form, len(state) - 1, ())
    assert report.left_out == ("fc.weight",)
    assert all(torch.equal(value, state[key]) for key, value in values_of(backbone).items())


def test_new_global_context_blocks_stay_new(tmp_path):
    """Plain ResNet weights fill a GC network; its blocks keep their start and are reported."""
    backbone = small_backbone(global_context=True)
    before, state = values_of(backbone), public_state(small_backbone())
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    report = load_weights(backbone, tmp_path / "w.safetensors")
    assert set(report.new) == {key for key in before if key.startswith("gc3.")}
    assert all(torch.equal(v, (before | state)[k]) for k, v in values_of(backbone).items())


@pytest.mark.parametrize("name", ["resnet18_ibn", "mobilenet_v2"])
def test_real_backbones_load_all_their_keys(tmp_path, name):
    """The keys of a real backbone, stage 5 included, and without the counters of old files."""
    backbone = build_backbone(name)
    state = public_state(backbone)
    state = {key: value for key, value in state.items() if not key.endswith("batches_tracked")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert load_weights(backbone, tmp_path / "w.safetensors").loaded == len(state) - 1
    after = values_of(backbone)
    assert all(torch.equal(after[key], state[key]) for key in state.keys() & after.keys())


# Files that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"conv1.weight": torch.ones(2), "other": s.pop("bn1.bias")}),
            "missing: bn1.bias; left over: other; wrong shape: conv1.weight (2,) for (16, 3, 3, 3)",
        ),
        (lambda s: s.update({f"k{i}": torch.ones(1) for i in range(40)}), "k12, k13 and 34 more"),
        (lambda s: s.update({"bn1.bias": s["bn1.bias"].int()}), "wrong type: bn1.bias int32"),
        (lambda s: s["bn1.bias"].fill_(torch.nan), "NaN or infinity in bn1.bias"),
    ],
    ids=["keys", "many", "type", "nan"],
)
def test_whatever_does_not_fit_is_listed(tmp_path, change, message):
    """All problems at once."""
    state = public_state(small_backbone())
    change(state)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert message in refusal(small_backbone(), tmp_path / "w.safetensors")


def test_plain_weights_never_go_into_an_ibn_network(tmp_path):
    """The mixed norms would stay untrained."""
    state = public_state(build_backbone("resnet18"))
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    text = refusal(build_backbone("resnet18_ibn"), tmp_path / "w.safetensors")
    assert "plain ResNet weights do not fit an IBN network" in text
    assert "bn1.IN.weight" in text


# Files that are not weights


class Payload:
    """A call that runs while a pickle is loaded without `weights_only`."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, is_zip):
    """The control at the end shows that there is code in it."""
    victim, path = tmp_path / "ran", tmp_path / "hostile.pth"
    content = {"conv1.weight": torch.ones(1), "x": Payload(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert "code from a file is never run" in refusal(small_backbone(), path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()


BROKEN = {
    "empty.pth": (b"", "an empty file"),
    "text.pth": (b"Not Found", "a damaged file or a file of another kind"),
    "cut.pth": (b"PK\x03\x04", "a zip archive"),
    "gallery.pth": (b"\x93NUMPY\x01\x00", "a NumPy array"),
    "pickle.safetensors": (pickle.dumps({"conv1.weight": 1}, protocol=2), "a pickle"),
    "cut.safetensors": (safetensors.torch.save({"a": torch.ones(8)})[:-3], "a damaged or truncat"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_another_kind_of_file_is_named(tmp_path, name):
    """The line says what the file looks like."""
    content, looks_like = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert f"it looks like {looks_like}" in refusal(small_backbone(), tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_other_contents_are_named(tmp_path, content):
    """Plain values, but not named tensors."""
    torch.save(content, tmp_path / "w.pth")
    assert "save the state_dict()" in refusal(small_backbone(), tmp_path / "w.pth")


def test_a_path_must_exist(tmp_path):
    """A mistyped path is an error with the three choices, never ImageNet weights instead."""
    text = refusal(small_backbone(), tmp_path / "typo.pth")
    assert "do not exist; model.init is imagenet, none, or the path of" in text


# ImageNet files


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A small file in torch's download folder that stands for `resnet18`'s; no downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def fail(*_args, **_options):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(public_state(small_backbone()), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    path = (folder / "new.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setitem(IMAGENET_FILES, "resnet18", f"https://weights.invalid/{path.name}")
    return path


def test_published_files():
    """IBN backbones take IBN-Net's own files, the others torchvision's first weights."""
    files = {name: url.rsplit("/", 1)[-1] for name, url in IMAGENET_FILES.items()}
    assert files == {
        "resnet50": "resnet50-0676ba61.pth",
        "resnet50_gc": "resnet50-0676ba61.pth",
        "resnet18": "resnet18-f37072fd.pth",
        "mobilenet_v2": "mobilenet_v2-b0353104.pth",
        "resnet50_ibn": "resnet50_ibn_a-d9d0bb7b.pth",
        "resnet18_ibn": "resnet18_ibn_a-2f571257.pth",
    }
    assert all(url.startswith("https://") for url in IMAGENET_FILES.values())
    assert all(("IBN-Net" in url) == ("ibn" in name) for name, url in IMAGENET_FILES.items())


def test_a_missing_file_is_downloaded_once(published, monkeypatch):
    """From the published address into torch's folder, where it is found without a network."""
    assert load_imagenet(small_backbone(), "resnet18").source == published
    content = published.read_bytes()
    published.unlink()
    asked = []

    def download(url, destination, **_options):
        asked.append(url)
        Path(destination).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert load_imagenet(small_backbone(), "resnet18").source == published
    assert asked == [IMAGENET_FILES["resnet18"]]


def test_another_hash_is_refused(published):
    """The line has the path and both hashes."""
    published.write_bytes(published.read_bytes() + b"x")
    found = hashlib.sha256(published.read_bytes()).hexdigest()[:8]
    expected = published.stem.rsplit("-")[-1]
    with pytest.raises(WeightsError, match=f"{found}.*published file {expected}") as raised:
        load_imagenet(small_backbone(), "resnet18")
    assert str(published) in str(raised.value)


def test_without_a_network_one_line_says_what_to_do(published):
    """The file's name, where to put it, and the two other ways."""
    published.unlink()
    with pytest.raises(WeightsError) as raised:
        load_imagenet(small_backbone(), "resnet18")
    text = str(raised.value)
    assert f"put it at {published}" in text
    assert "--set model.init=PATH" in text
    assert "--set model.init=none" in text
