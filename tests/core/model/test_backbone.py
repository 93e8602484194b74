"""Backbones: the IBN and GC family against the authors' blocks, keys and whole forwards."""

import types
import zlib
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from airnet_cli.core.model.backbone import (
    Backbone,
    BackboneName,
    InstanceBatchNorm,
    StridedDepthwiseConv2d,
    _with_ibn_a,
    build_backbone,
)
from airnet_cli.core.model.pooling import GlobalContext

GOLDEN_NAMES = {"resnet50": "torchvision_resnet50", "resnet50_ibn": "ibnnet_resnet50_ibn_a"}


def without_weights(name: str) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name)


def public_state(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names of the public weight files."""
    return {
        prefix + key: value
        for prefix, part in (
            (backbone.trunk_prefix, backbone.trunk),
            (backbone.stage5_prefix, backbone.stage5),
        )
        for key, value in part.state_dict().items()
    }


def bottleneck(inplanes: int, *, stride: int) -> Bottleneck:
    """Return torchvision's block with 16 inner channels, as in the golden blocks."""
    downsample = None
    if stride > 1:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, 64, 1, stride=stride, bias=False), nn.BatchNorm2d(64)
        )
    return Bottleneck(inplanes, 16, stride=stride, downsample=downsample)


def with_ibn(block: Bottleneck) -> Bottleneck:
    """Send one block through the code that changes whole networks."""
    _with_ibn_a(types.SimpleNamespace(layer1=[block], layer2=[], layer3=[]))
    return block


def test_instance_batch_norm_equals_the_release(golden_block, check_block):
    """IBN-Net's layer: first half instance norm, second half batch norm."""
    check_block(InstanceBatchNorm(64), golden_block("ibn_layer_c64"))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("bottleneck_ibn_a_identity", lambda: with_ibn(bottleneck(64, stride=1))),
        ("bottleneck_ibn_a_stride2", lambda: with_ibn(bottleneck(48, stride=2))),
        ("bottleneck_plain_stride2", lambda: bottleneck(48, stride=2)),
    ],
    ids=["ibn-identity", "ibn-stride2", "plain-stride2"],
)
def test_bottlenecks_equal_the_release(name, block, golden_block, check_block):
    """Outputs, gradients and buffers of IBN-Net's and torchvision's blocks."""
    check_block(block(), golden_block(name))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_keys_are_those_of_the_public_files(name, golden_json):
    """Trunk and stage 5 together have every key and shape of the file but the classifier's."""
    published = {
        key: tuple(shape)
        for key, shape, *_ in golden_json("state_dict_keys")[GOLDEN_NAMES[name]]["keys"]
        if not key.startswith("fc.")
    }
    ours = {k: tuple(v.shape) for k, v in public_state(without_weights(name)).items()}
    assert ours == published


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_small_backbones_have_torchvisions_keys(name):
    """Nothing but the classifier is missing, nothing is renamed."""
    backbone = without_weights(name)
    with torch.device("meta"):
        whole = getattr(torchvision.models, name)().state_dict()
    expected = [key for key in whole if not key.startswith(backbone.classifier_prefix)]
    assert sorted(public_state(backbone)) == sorted(expected)


def test_global_context_adds_keys_and_renames_none():
    """`resnet50_gc` is `resnet50` with blocks of 512 and 1024 channels after stages 3 and 4."""
    plain, gc = (public_state(without_weights(n)) for n in ("resnet50", "resnet50_gc"))
    trunk = without_weights("resnet50_gc").trunk
    order = [name for name, _ in trunk.named_children()]
    added = {key.split(".")[0] for key in gc.keys() - plain.keys()}
    assert added == {"gc3", "gc4"}
    assert plain.keys() <= gc.keys()
    assert order[-4:] == ["layer2", "gc3", "layer3", "gc4"]
    assert isinstance(trunk.gc3, GlobalContext)
    assert (trunk.gc3.conv_mask.in_channels, trunk.gc4.conv_mask.in_channels) == (512, 1024)


def deterministic_fill(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the weights of the goldens' whole-network forwards (their README)."""
    random = np.random.default_rng([41, zlib.crc32(key.encode())])
    if key.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        values = random.normal(0, 0.3, shape)
    elif len(shape) < 2 and key.endswith("weight"):
        values = random.uniform(0.5, 1.5, shape)
    elif len(shape) < 2:
        values = random.normal(0, 0.2, shape)
    else:
        values = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    if key.endswith("bn3.weight"):
        values = values * 0.25
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
@torch.inference_mode()
def test_whole_network_forward_equals_the_release(name, golden_block, assert_near):
    """Each stage's map, the pooled feature and the logits of the public network, ReLU of the stem
    included (defect 15); for the comparison stage 5 gets back the stride that we take out.
    """
    golden = golden_block(f"forward_{GOLDEN_NAMES[name]}")
    backbone = build_backbone(name)
    for key, tensor in public_state(backbone).items():
        if not key.endswith("num_batches_tracked"):
            tensor.copy_(deterministic_fill(key, tuple(tensor.shape)))
    first = backbone.stage5[0]
    assert first.conv2.stride == first.downsample[0].stride == (1, 1)
    first.conv2.stride = first.downsample[0].stride = (2, 2)

    x = np.random.default_rng([9, 12345]).standard_normal((2, 3, 256, 128)).astype(np.float32)
    maps = torch.from_numpy(x)
    assert torch.equal(maps[0, :, :2, :2], golden["x_first"])
    backbone.trunk.eval()
    backbone.stage5.eval()
    stages = dict(backbone.trunk.named_children()) | {"layer4": backbone.stage5}
    steps = {"layer1": 4, "layer2": 4, "layer3": 2, "layer4": 2}  # of the samples' positions
    for stage, module in stages.items():
        maps = module(maps)
        if stage == "maxpool":
            assert_near(maps[:, ::16, ::16, ::8], golden["stem_sample"], tolerance=1e-5)
        if stage in steps:
            step = steps[stage]
            mean_std = torch.stack([maps.mean(), maps.std()])
            assert maps.shape == tuple(golden[f"{stage}_shape"])
            assert_near(mean_std, golden[f"{stage}_mean_std"], tolerance=1e-5)
            assert_near(maps[:, ::64, ::step, ::step], golden[f"{stage}_sample"], tolerance=1e-4)
    pooled = maps.mean(dim=(2, 3))
    logits = pooled @ deterministic_fill("fc.weight", (1000, 2048)).T
    logits += deterministic_fill("fc.bias", (1000,))
    assert_near(pooled, golden["gap_feature"], tolerance=1e-4)
    assert_near(logits, golden["logits"], tolerance=1e-4)


@pytest.mark.parametrize("name", ["resnet50_ibn", "resnet18_ibn"])
def test_ibn_is_in_stages_2_to_4_alone(name):
    """The first norm of each block there; plain in the stem, in stage 5 and everywhere else."""
    backbone = without_weights(name)
    with_ibn = {
        key
        for key, module in backbone.trunk.named_modules()
        if isinstance(module, InstanceBatchNorm)
    }
    first_norms = {
        f"layer{stage}.{block}.bn1"
        for stage in (1, 2, 3)
        for block in range(len(getattr(backbone.trunk, f"layer{stage}")))
    }
    assert with_ibn == first_norms
    assert len(with_ibn) == (13 if name == "resnet50_ibn" else 6)
    assert not any(isinstance(module, InstanceBatchNorm) for module in backbone.stage5.modules())


@pytest.mark.parametrize("name", get_args(BackboneName))
def test_maps_are_a_sixteenth_of_the_image(name):
    """Stage 5 does not downsample (paper 3.1): 384 x 192 gives 24 x 12, with C channels."""
    # No shapes without weights for MobileNetV2: its float32 convolutions ask for a real device.
    device = "cpu" if name == "mobilenet_v2" else "meta"
    with torch.device(device):
        backbone = build_backbone(name)
        shared = backbone.trunk(torch.zeros(1, 3, 384, 192))
    channels = {"resnet18": 512, "resnet18_ibn": 512, "mobilenet_v2": 1280}.get(name, 2048)
    assert shared.shape[2:] == (24, 12)
    assert backbone.stage5(shared).shape == (1, channels, 24, 12)
    assert backbone.channels == channels


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_stem_ends_with_its_activation(name):
    """Defect 15: what is negative is cut off before the next layer sees it."""
    trunk = build_backbone(name).trunk
    stem = trunk[:3] if name == "resnet18" else trunk[0]
    with torch.no_grad():
        out = stem(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert out.min() == 0 < out.max()


@pytest.mark.parametrize("name", [n for n in get_args(BackboneName) if n != "mobilenet_v2"])
def test_every_resnet_has_the_whole_stem(name):
    """Defect 15: no layer of torchvision's is left out."""
    layers = [layer for layer, _ in without_weights(name).trunk.named_children()]
    assert layers[:4] == ["conv1", "bn1", "relu", "maxpool"]


def test_strided_depthwise_convolutions_stay_in_float32(assert_near):
    """MobileNetV2's three in the trunk: torchvision's result; under autocast their own dtype."""
    backbone = build_backbone("mobilenet_v2")
    ours = [m for m in backbone.trunk.modules() if isinstance(m, StridedDepthwiseConv2d)]
    assert [conv.in_channels for conv in ours] == [96, 144, 192]
    conv = ours[0]
    features = torch.randn(1, 96, 8, 4)
    with torch.no_grad():
        expected = nn.functional.conv2d(features, conv.weight, stride=2, padding=1, groups=96)
        assert torch.equal(conv(features), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(conv(features), expected)  # float32 stays float32, bit for bit
            low = conv(features.bfloat16())
    assert low.dtype == torch.bfloat16
    assert_near(low.float(), expected, tolerance=2e-2)
