"""The ResNet / IBN / GC family and MobileNetV2, cut in two: the trunk (stages 1-4) and stage 5.

Layers come from torchvision. This module adds the cut, the stride of stage 5 (1: the map of stage
4 is not downsampled, paper 3.1), IBN-a (Pan et al. 2018) and the places of the GC blocks (paper
4.2). Keys inside trunk and stage 5 are those of the public weight files; `weights.py` adds a
prefix.

Letters: B images, H x W pixels, C channels of stage 5.
"""

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from airnet_cli.core.model.pooling import GlobalContext

BackboneName = Literal[
    "resnet50_ibn", "resnet50_gc", "resnet50", "resnet18", "resnet18_ibn", "mobilenet_v2"
]


@dataclass(frozen=True)
class Backbone:
    """A backbone before its stage 5 is duplicated."""

    trunk: nn.Module
    """Stages 1-4: (B, 3, H, W) to (B, C4, H/16, W/16)."""
    stage5: nn.Module
    """Stage 5 with stride 1: (B, C4, H/16, W/16) to (B, C, H/16, W/16)."""
    channels: int
    """C."""
    trunk_prefix: str
    """Prefix of the trunk's keys in a public weight file."""
    stage5_prefix: str
    """Prefix of the keys of stage 5 in a public weight file."""
    classifier_prefix: str
    """Prefix of the ImageNet classifier's keys in a public weight file: they are not loaded."""
    name: str = ""
    """What `build_backbone` takes; empty if it did not build this one."""


class InstanceBatchNorm(nn.Module):
    """IBN: the first half of the channels instance-normalised, the rest batch-normalised.

    Pan et al. 2018, "Two at once"; parameter names `IN` and `BN` as in their release.
    """

    def __init__(self, channels: int) -> None:
        """Take maps of `channels` channels."""
        super().__init__()
        self.instance_channels = channels // 2
        self.IN = nn.InstanceNorm2d(self.instance_channels, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.instance_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise `features` (B, C, H, W); same shape."""
        instance, batch = features.tensor_split((self.instance_channels,), dim=1)
        return torch.cat((self.IN(instance.contiguous()), self.BN(batch.contiguous())), dim=1)


class StridedDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that stays in float32 under autocast.

    Measured on a CPU with AVX512-BF16 (torch 2.14, 96 channels, stride 2): forward and backward
    take 149 ms in bfloat16 and 32 ms in float32; the three of MobileNetV2 are the slowest part of
    a bfloat16 training step.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convolve `features` (B, C, H, W); the result has their dtype."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float()).to(features.dtype)


def build_backbone(name: BackboneName) -> Backbone:
    """A new backbone with random weights (He initialisation, as torchvision has it)."""
    return dataclasses.replace(_cut(name), name=name)


def _cut(name: BackboneName) -> Backbone:
    match name:
        case "resnet50":
            return _cut_resnet(torchvision.models.resnet50())
        case "resnet50_ibn":
            return _cut_resnet(_with_ibn_a(torchvision.models.resnet50()))
        case "resnet50_gc":
            return _cut_resnet(torchvision.models.resnet50(), global_context=True)
        case "resnet18":
            return _cut_resnet(torchvision.models.resnet18())
        case "resnet18_ibn":
            return _cut_resnet(_with_ibn_a(torchvision.models.resnet18()))
        case "mobilenet_v2":
            return _cut_mobilenet_v2()


def _with_ibn_a(resnet: ResNet) -> ResNet:
    """Put IBN into the first norm of each block of stages 2-4; stage 5 keeps batch norm."""
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3):
        for block in stage:
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
    return resnet


def _cut_resnet(resnet: ResNet, *, global_context: bool = False) -> Backbone:
    trunk: OrderedDict[str, nn.Module] = OrderedDict(
        (name, getattr(resnet, name))
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    )
    if global_context:  # after stage 3 (layer2) and after stage 4 (layer3): paper 4.2
        trunk["gc3"] = GlobalContext(_channels_out(resnet.layer2))
        trunk.move_to_end("layer3")
        trunk["gc4"] = GlobalContext(_channels_out(resnet.layer3))
    for module in resnet.layer4[0].modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
    return Backbone(
        trunk=nn.Sequential(trunk),
        stage5=resnet.layer4,
        channels=_channels_out(resnet.layer4),
        trunk_prefix="",
        stage5_prefix="layer4.",
        classifier_prefix="fc.",
    )


def _channels_out(stage: nn.Sequential) -> int:
    """Output channels of a stage: its last block's last norm."""
    norms = [module for module in stage[-1].modules() if isinstance(module, nn.BatchNorm2d)]
    return norms[-1].num_features


def _cut_mobilenet_v2() -> Backbone:
    """Stages 1-4 are torchvision's `features` 0-13, stage 5 is 14-18 (docs/method.md)."""
    layers = list(torchvision.models.mobilenet_v2().features)
    for module in layers[14].modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)

    for layer in layers[:14]:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.groups > 1:
                module.__class__ = StridedDepthwiseConv2d  # same weights, another forward

    def sequence(start: int, stop: int) -> nn.Sequential:
        return nn.Sequential(OrderedDict((str(i), layers[i]) for i in range(start, stop)))

    return Backbone(
        trunk=sequence(0, 14),
        stage5=sequence(14, 19),
        channels=1280,
        trunk_prefix="features.",
        stage5_prefix="features.",
        classifier_prefix="classifier.",
    )
