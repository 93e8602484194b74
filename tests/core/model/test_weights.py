"""Initial weights: the strict key report, files that can't be trusted, files that are not there."""

import hashlib
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import nn

from airnet_cli.core.model import weights
from airnet_cli.core.model.backbone import Backbone, InstanceBatchNorm, build_backbone
from airnet_cli.core.model.pooling import GlobalContext
from airnet_cli.core.model.weights import (
    IMAGENET_FILES,
    imagenet_file,
    load_imagenet,
    load_weights,
    read_state_dict,
)
from airnet_cli.errors import WeightsError


def small_backbone(*, ibn: bool = False, global_context: bool = False) -> Backbone:
    """Return a backbone of three layers with the key names of the ResNet family."""
    trunk: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, bias=False),
        bn1=InstanceBatchNorm(16) if ibn else nn.BatchNorm2d(16),
    )
    if global_context:
        trunk["gc3"] = GlobalContext(16)
    return Backbone(
        trunk=nn.Sequential(trunk),
        stage5=nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32)),
        channels=32,
        trunk_prefix="",
        stage5_prefix="layer4.",
        classifier_prefix="fc.",
    )


def public_state(backbone: Backbone, *, classifier: bool = True) -> dict[str, torch.Tensor]:
    """Return new values for the backbone under the names of a public file, classifier included."""
    random = torch.Generator().manual_seed(1)
    state = {
        key: torch.rand(old.shape, generator=random) if old.is_floating_point() else old + 7
        for key, old in held(backbone).items()
    }
    if classifier:
        state |= {"fc.weight": torch.rand(10, 32), "fc.bias": torch.rand(10)}
    return state


def held(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Return the values that the backbone holds, under public names."""
    return {
        **{backbone.trunk_prefix + k: v.clone() for k, v in backbone.trunk.state_dict().items()},
        **{backbone.stage5_prefix + k: v.clone() for k, v in backbone.stage5.state_dict().items()},
    }


def one_line(raised: pytest.ExceptionInfo[WeightsError]) -> str:
    text = str(raised.value)
    assert text
    assert "\n" not in text
    return text


# Good files


def as_pth(state, path, **options):
    torch.save(state, path, **options)


FORMS = {
    "weights.safetensors": lambda state, path: safetensors.torch.save_file(state, path),
    "weights.pth": as_pth,
    "ordered.pth": lambda state, path: as_pth(OrderedDict(state), path),
    "legacy.pth": lambda state, path: as_pth(state, path, _use_new_zipfile_serialization=False),
    "wrapped.pth": lambda state, path: as_pth({"epoch": 90, "state_dict": state}, path),
    "module.pth.tar": lambda state, path: as_pth(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}}, path
    ),
    "module.safetensors": lambda state, path: safetensors.torch.save_file(
        {f"module.{key}": value for key, value in state.items()}, path
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_good_file_loads(tmp_path, name):
    """Each tensor arrives; the report counts them and names the classifier as left out."""
    backbone = small_backbone()
    state = public_state(backbone)
    path = tmp_path / name
    FORMS[name](state, path)
    report = load_weights(backbone, path)
    assert report.source == path
    assert report.loaded == len(state) - 2
    assert set(report.left_out) == {"fc.weight", "fc.bias"}
    assert report.new == ()
    after = held(backbone)
    assert all(torch.equal(after[key], state[key]) for key in after)


@pytest.mark.parametrize("absent", ["classifier", "num_batches_tracked"])
def test_what_a_file_may_lack(tmp_path, absent):
    """The classifier, and the counters that files from before PyTorch 0.4 do not have."""
    backbone = small_backbone()
    state = public_state(backbone, classifier=absent != "classifier")
    state = {key: value for key, value in state.items() if not key.endswith(absent)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    load_weights(backbone, tmp_path / "w.safetensors")
    assert torch.equal(held(backbone)["layer4.0.weight"], state["layer4.0.weight"])


def test_new_global_context_blocks_stay_new(tmp_path):
    """Plain ResNet weights fill a GC network; its blocks keep their start and are reported."""
    backbone = small_backbone(global_context=True)
    before = held(backbone)
    state = public_state(small_backbone())
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    report = load_weights(backbone, tmp_path / "w.safetensors")
    after = held(backbone)
    blocks = {key for key in after if key.startswith("gc3.")}
    assert set(report.new) == blocks
    assert len(blocks) == 8
    assert all(torch.equal(after[key], before[key]) for key in blocks)
    assert all(torch.equal(after[key], state[key]) for key in after.keys() - blocks)


def test_global_context_weights_load_where_a_file_has_them(tmp_path):
    """A file of a GC network fills its blocks too."""
    backbone = small_backbone(global_context=True)
    state = public_state(backbone)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert load_weights(backbone, tmp_path / "w.safetensors").new == ()
    after = held(backbone)
    assert torch.equal(after["gc3.conv_mask.weight"], state["gc3.conv_mask.weight"])


@pytest.mark.parametrize("name", ["resnet18_ibn", "mobilenet_v2"])
def test_real_backbones_load_all_their_keys(tmp_path, name):
    """The key names of a whole backbone, stage 5's included, fit their own public names."""
    backbone = build_backbone(name)
    state = public_state(backbone, classifier=False)
    state |= {f"{backbone.classifier_prefix}weight": torch.zeros(2, 2)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    report = load_weights(backbone, tmp_path / "w.safetensors")
    after = held(backbone)
    assert report.loaded == len(after) == len(state) - 1
    assert all(torch.equal(after[key], state[key]) for key in after)


# Files that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.weight"), "missing: conv1.weight"),
        (lambda s: s.pop("layer4.1.running_var"), "missing: layer4.1.running_var"),
        (lambda s: s.update({"layer5.0.weight": torch.ones(1)}), "left over: layer5.0.weight"),
        (
            lambda s: s.update({"conv1.weight": torch.ones(16, 1, 3, 3)}),
            "wrong shape: conv1.weight (16, 1, 3, 3) for (16, 3, 3, 3)",
        ),
    ],
    ids=["missing", "missing-buffer", "left-over", "wrong-shape"],
)
def test_whatever_does_not_fit_is_an_error_that_lists_it(tmp_path, change, message):
    """One line with the key; and nothing of the file is taken over."""
    backbone = small_backbone()
    before = held(backbone)
    state = public_state(backbone)
    change(state)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=re.escape(message)) as raised:
        load_weights(backbone, tmp_path / "w.safetensors")
    assert str(tmp_path / "w.safetensors") in one_line(raised)
    assert all(torch.equal(value, before[key]) for key, value in held(backbone).items())


def test_all_problems_are_reported_at_once(tmp_path):
    """Missing, left over and misshapen keys in one message."""
    backbone = small_backbone()
    state = public_state(backbone)
    del state["bn1.weight"]
    state |= {"other": torch.ones(1), "conv1.weight": torch.ones(2)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as raised:
        load_weights(backbone, tmp_path / "w.safetensors")
    text = one_line(raised)
    assert all(f"{label}: {key}" in text for label, key in [
        ("missing", "bn1.weight"), ("left over", "other"), ("wrong shape", "conv1.weight (2,)"),
    ])  # fmt: skip


def test_long_lists_are_cut_with_their_length(tmp_path):
    """Another network's file is not a screen full of keys."""
    state = {f"block{i:02}.weight": torch.ones(1) for i in range(40)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"block05\.weight and 34 more") as raised:
        load_weights(small_backbone(), tmp_path / "w.safetensors")
    assert "block06" not in one_line(raised)


@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_plain_weights_never_go_into_an_ibn_network(tmp_path, network):
    """Defect 1: the mixed norms would stay untrained; refused, with what to do about it."""
    if network == "small":
        plain, ibn = small_backbone(), small_backbone(ibn=True)
    else:
        plain, ibn = build_backbone("resnet18"), build_backbone("resnet18_ibn")
    before = held(ibn)
    safetensors.torch.save_file(public_state(plain), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="plain ResNet weights do not fit an IBN") as raised:
        load_weights(ibn, tmp_path / "w.safetensors")
    assert "bn1.IN.weight" in one_line(raised)
    assert all(torch.equal(value, before[key]) for key, value in held(ibn).items())


def test_ibn_weights_never_go_into_a_plain_network(tmp_path):
    """The other way round is refused as well, its keys named."""
    state = public_state(small_backbone(ibn=True))
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing: bn1\.weight.*left over: .*bn1\.BN\.weight"):
        load_weights(small_backbone(), tmp_path / "w.safetensors")


# Files that can't be trusted, read or found


class Payload:
    """What a hostile file has inside: a call that runs while it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, form):
    """The same file does run its code in a reader that trusts it: the control."""
    victim, path = tmp_path / "ran", tmp_path / "hostile.pth"
    content = {"conv1.weight": torch.ones(1), "x": Payload(victim)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"hostile\.pth.*never run") as raised:
        load_weights(small_backbone(), path)
    one_line(raised)
    assert not victim.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert victim.exists()


def broken_files() -> dict[str, bytes]:
    """Return what may lie under a weights file's name, by name."""
    state = {"conv1.weight": torch.arange(8.0), "bn1.weight": torch.ones(4)}
    good = safetensors.torch.save(state)
    return {
        "empty.pth": b"",
        "text.pth": b"Not Found",
        "zeros.pth": bytes(100),
        "newlines.pth": b"\n" * 20,
        "cut-pickle.pth": b"\x80\x02]",
        "opcode.pth": b"c",
        "unknown-opcode.pth": b"e",
        "not-utf-8.pth": b"\x80\x02ctor\xc3h\nsize\n.",
        "zip.pth": b"PK\x03\x04",
        "empty.safetensors": b"",
        "html.safetensors": b"<!doctype html><title>404</title>",
        "cut.safetensors": good[:-3],
        "header.safetensors": b"\xff" * 8 + good[8:],
        "pickle.safetensors": pickle.dumps({"conv1.weight": 1}),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_files_are_one_line(tmp_path, name):
    """Whatever the decoders raise on broken bytes, a person reads the file's name."""
    (tmp_path / name).write_bytes(broken_files()[name])
    with pytest.raises(WeightsError, match=re.escape(name)) as raised:
        read_state_dict(tmp_path / name)
    one_line(raised)


@pytest.mark.parametrize(
    "content",
    [[torch.ones(1)], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.ones(2)],
    ids=["list", "no-tensors", "no-tensors-inside", "tensor"],
)
def test_other_contents_are_one_line(tmp_path, content):
    """Harmless, but no named tensors."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no plain dictionary of named tensors") as raised:
        read_state_dict(tmp_path / "w.pth")
    one_line(raised)


def test_a_path_must_exist(tmp_path):
    """A mistyped path is an error with the three choices, never ImageNet weights instead."""
    with pytest.raises(WeightsError, match=r"typo\.pth' do not exist; .*imagenet, none, or") as it:
        load_weights(small_backbone(), tmp_path / "typo.pth")
    one_line(it)


# ImageNet files


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch's download folder, empty and elsewhere; downloads fail the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def refuse(*_args, **_options):
        pytest.fail("asked for a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(hub, monkeypatch) -> Path:
    """A small file that plays `resnet18`'s, in its place, named by its hash."""
    hub.mkdir(parents=True)
    torch.save(public_state(small_backbone()), hub / "new.pth")
    content = (hub / "new.pth").read_bytes()
    path = hub / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (hub / "new.pth").rename(path)
    monkeypatch.setitem(IMAGENET_FILES, "resnet18", f"https://weights.invalid/models/{path.name}")
    return path


@pytest.mark.parametrize(
    ("name", "filename"),
    [
        ("resnet50", "resnet50-0676ba61.pth"),
        ("resnet50_gc", "resnet50-0676ba61.pth"),
        ("resnet18", "resnet18-f37072fd.pth"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth"),
        ("resnet50_ibn", "resnet50_ibn_a-d9d0bb7b.pth"),
        ("resnet18_ibn", "resnet18_ibn_a-2f571257.pth"),
    ],
)
def test_published_files(name, filename):
    """Defect 1: IBN backbones take IBN-Net's own files; the others torchvision's first weights."""
    assert IMAGENET_FILES[name].endswith(f"/{filename}")
    assert IMAGENET_FILES[name].startswith("https://")
    assert ("IBN-Net" in IMAGENET_FILES[name]) == ("ibn" in name)


def test_a_good_file_needs_no_network(published):
    """Found in torch's folder, its hash checked, loaded."""
    assert imagenet_file("resnet18") == published
    backbone = small_backbone()
    assert load_imagenet(backbone, "resnet18").source == published
    assert torch.equal(held(backbone)["bn1.bias"], read_state_dict(published)["bn1.bias"])


def test_a_missing_file_is_downloaded_to_its_place(published, monkeypatch):
    """From the published address, and then its hash is checked like any other."""
    content = published.read_bytes()
    published.unlink()
    asked = []

    def download(url, destination, **_options):
        asked.append(url)
        Path(destination).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert imagenet_file("resnet18") == published
    assert asked == [IMAGENET_FILES["resnet18"]]


def test_another_hash_is_refused(published):
    """A file that was changed, or another one under this name, with both hashes."""
    published.write_bytes(published.read_bytes() + b"x")
    found = hashlib.sha256(published.read_bytes()).hexdigest()[:8]
    expected = published.stem.rsplit("-")[-1]
    with pytest.raises(WeightsError, match=f"sha256 {found}.*published file {expected}") as raised:
        imagenet_file("resnet18")
    assert str(published) in one_line(raised)


@pytest.mark.parametrize(
    "failure",
    [URLError("Name or service not known"), TimeoutError("timed out"), OSError(28, "No space")],
    ids=["no-network", "timeout", "disk-full"],
)
def test_without_a_network_one_line_says_what_to_do(hub, monkeypatch, failure):
    """File name, its place, and the two other ways."""

    def fail(*_args, **_options):
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError) as raised:
        load_imagenet(small_backbone(), "resnet50_ibn")
    text = one_line(raised)
    assert f"put it at {hub / 'resnet50_ibn_a-d9d0bb7b.pth'}" in text
    assert "--set model.init=PATH" in text
    assert "--set model.init=none" in text


def test_a_folder_that_cant_be_made_is_one_line(tmp_path, hub):
    """A cache that can't be written is like no network: a line, not a traceback."""
    (tmp_path / "hub").write_text("in the way")
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth") as raised:
        imagenet_file("resnet18")
    one_line(raised)


def test_nothing_unpickles_without_weights_only():
    """One reader of foreign files, and it says `weights_only=True`."""
    source = Path(weights.__file__).read_text("utf-8")
    assert source.count("torch.load(") == source.count("weights_only=True)") == 1
