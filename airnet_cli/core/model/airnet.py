"""AIR-Net: a trunk, copies of stage 5 as branches, heads on each branch (paper 3.1, 3.2, 4.4).

- A model is a list of branches, a branch a copy of stage 5 with one or more heads, a head a
  pooling with its own batch norm and classifier. The seven rows of Table 3 are seven such lists
  (`VARIANTS`).
- Heads have the paper's names: A1, A2 (appearance), I (interaction); M (mixed, eq. (4)) for a GC
  head.
- The network normalises images by ImageNet mean and standard deviation: it takes uint8 or 0-1 RGB.

Letters: B images, H x W pixels, C channels of stage 5, N identities, D = C times the number of
heads.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from airnet_cli.core.model.backbone import Backbone
from airnet_cli.core.model.pooling import AttentionPooling, GlobalContext, GlobalMaxPooling

PoolingName = Literal["gmp", "gc", "abp"]
VariantName = Literal[
    "baseline", "baseline_abp", "baseline_gc", "parallel_gc", "parallel_abp", "airnet_gc", "airnet"
]

VARIANTS: dict[VariantName, tuple[tuple[PoolingName, ...], ...]] = {
    "baseline": (("gmp",),),
    "baseline_abp": (("abp",),),
    "baseline_gc": (("gc",),),
    "parallel_gc": (("gmp",), ("gc",)),
    "parallel_abp": (("gmp",), ("abp",)),
    "airnet_gc": (("gmp",), ("gmp", "gc")),
    "airnet": (("gmp",), ("gmp", "abp")),
}
"""Table 3, row by row: the poolings of each branch."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""RGB, of values in 0-1."""
IMAGENET_STD = (0.229, 0.224, 0.225)

CLASSIFIER_STD = 0.001
"""Classifier weights start as N(0, 0.001): the BNNeck convention (docs/method.md)."""


@dataclass(frozen=True)
class HeadOutput:
    """The outputs of one head for a batch."""

    name: str
    """A1, A2, I or M."""
    pooled: Tensor
    """(B, C), before batch norm: what the triplet loss compares."""
    normalized: Tensor
    """(B, C), after batch norm: the head's slice of the embedding."""
    logits: Tensor | None
    """(B, N) in training; None in evaluation mode or without classifiers."""


class Head(nn.Module):
    """A pooling, a batch norm without trainable shift, and a classifier without bias."""

    def __init__(self, pooling: PoolingName, *, channels: int, identities: int | None) -> None:
        """Take maps of `channels` channels; without `identities` there is no classifier."""
        super().__init__()
        self.pooling = _build_pooling(pooling, channels)
        self.norm = nn.BatchNorm1d(channels)
        self.norm.bias.requires_grad_(False)
        self.classifier = (
            None if identities is None else nn.Linear(channels, identities, bias=False)
        )
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=CLASSIFIER_STD)

    def forward(self, features: Tensor, name: str) -> HeadOutput:
        """Pool, normalise and (in training) classify `features` (B, C, H, W)."""
        pooled = self.pooling(features)
        normalized = self.norm(pooled)
        classify = self.training and self.classifier is not None
        logits = self.classifier(normalized) if classify else None  # type: ignore[misc]
        return HeadOutput(name=name, pooled=pooled, normalized=normalized, logits=logits)


class AirNet(nn.Module):
    """The network of the paper and its ablations."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, *, variant: VariantName, identities: int | None) -> None:
        """Duplicate stage 5 of `backbone` into the branches of `variant`.

        Every branch starts from the weights that stage 5 has now, and is trained on its own.
        `identities` is the number of people to tell apart in training; None builds no classifiers.
        """
        super().__init__()
        poolings = VARIANTS[variant]
        self.variant = variant
        self.backbone = backbone.name
        self.head_names = name_heads(variant)
        self.channels = backbone.channels
        self.trunk = backbone.trunk
        self.branches = nn.ModuleList(copy.deepcopy(backbone.stage5) for _ in poolings)
        self.heads = nn.ModuleDict()
        self._heads_of_branch: list[list[str]] = []
        names = iter(self.head_names)
        for branch in poolings:
            self._heads_of_branch.append([])
            for pooling in branch:
                name = next(names)
                self.heads[name] = Head(pooling, channels=backbone.channels, identities=identities)
                self._heads_of_branch[-1].append(name)
        # Constants of the method, so they are not in checkpoints. On the CPU even if the network is
        # built on the meta device, because no checkpoint's tensors will replace them.
        mean, std = (
            torch.tensor(rgb, device="cpu").view(1, 3, 1, 1)
            for rgb in (IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def embedding_size(self) -> int:
        """D, the length of `embed()`'s vectors."""
        return self.channels * len(self.head_names)

    @property
    def head_slices(self) -> dict[str, slice]:
        """Where each head's vector lies in the embedding."""
        size = self.channels
        return {name: slice(i * size, (i + 1) * size) for i, name in enumerate(self.head_names)}

    def normalize(self, images: Tensor) -> Tensor:
        """ImageNet-normalise RGB `images` (B, 3, H, W), uint8 in 0-255 or floating point in 0-1."""
        if images.dtype == torch.uint8:
            images = images.to(self.pixel_mean.dtype) / 255  # not in place: exporters can't
        return (images - self.pixel_mean) / self.pixel_std  # not in place: the caller's images

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The map of each branch, (B, C, H/16, W/16), for RGB `images` as in `normalize`."""
        x = self.normalize(images).contiguous(memory_format=torch.channels_last)
        shared = self.trunk(x)  # (B, C4, H/16, W/16): X0 of eq. (1)
        return [branch(shared) for branch in self.branches]

    def pool(self, feature_maps: list[Tensor]) -> tuple[HeadOutput, ...]:
        """All heads' outputs for the maps of `feature_maps`."""
        return tuple(
            self.heads[name](features, name)
            for features, names in zip(feature_maps, self._heads_of_branch, strict=True)
            for name in names
        )

    def forward(self, images: Tensor) -> tuple[HeadOutput, ...]:
        """One output per head for RGB `images` (B, 3, H, W), uint8 or floating point in 0-1."""
        return self.pool(self.feature_maps(images))

    def embed(self, images: Tensor, *, normalize_heads: bool = False) -> Tensor:
        """The embedding (B, D), float32: the normalised vectors of all heads, concatenated (paper
        4.2).

        With `normalize_heads` each head's vector gets length 1 first, so that all heads weigh the
        same in the cosine of the whole; the paper does not do it.
        """
        vectors = [output.normalized.float() for output in self(images)]
        if normalize_heads:
            vectors = [nn.functional.normalize(vector, dim=1) for vector in vectors]
        return torch.cat(vectors, dim=1)


def name_heads(variant: VariantName) -> tuple[str, ...]:
    """The heads of `variant` in the order of the embedding.

    >>> name_heads("airnet"), name_heads("airnet_gc"), name_heads("baseline_abp")
    (('A1', 'A2', 'I'), ('A1', 'A2', 'M'), ('I',))
    """
    names: list[str] = []
    for pooling in (pooling for branch in VARIANTS[variant] for pooling in branch):
        match pooling:
            case "gmp":
                names.append(f"A{sum(name.startswith('A') for name in names) + 1}")
            case "abp":
                names.append("I")
            case "gc":
                names.append("M")
    return tuple(names)


def _build_pooling(name: PoolingName, channels: int) -> nn.Module:
    match name:
        case "gmp":
            return GlobalMaxPooling()
        case "gc":
            return nn.Sequential(GlobalContext(channels), GlobalMaxPooling())
        case "abp":
            return AttentionPooling(channels)
