"""Where a network looked: Grad-CAM for each head, and the attention of attention-based pooling.

Grad-CAM (Selvaraju et al. 2017) of a score: the map that a head pools, its channels weighted by
the mean gradient of the score over all positions, summed, and what is under zero left out. The
score is a choice:

- `explain_identity`: the head's own logit of the identity that it predicts (the paper's Figure 4);
- `explain_similarity`: the head's cosine with another picture: why do these two match?

The map is that of the head's copy of stage 5, at the network's own resolution; enlarging and
colouring it is `drawing.py`'s. Only the heads are differentiated: trunk and branches run without.

Letters: B images, H x W pixels, h x w positions of the map (H/16 x W/16), C channels, N identities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from airnet_cli.core.model.airnet import VARIANTS, AirNet, Head, HeadOutput
from airnet_cli.core.model.pooling import AttentionPooling

Heat = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class HeadSaliency:
    """What one head's score of one image rests on."""

    head: str
    """A1, A2, I or M."""
    heat: Heat
    """(h, w), not negative, not scaled: all zero where nothing speaks for the score."""
    score: float
    """What is explained: a logit, or a cosine."""
    identity: int | None
    """The predicted class, from 0; None where a cosine is explained."""
    probability: float | None
    """The softmax of the predicted class, 0-1; None where a cosine is explained."""


@dataclass(frozen=True, eq=False)
class HeadAttention:
    """The weight that attention-based pooling gives each position of one image."""

    head: str
    heat: Heat
    """(h, w): X Wu of eq. (3), signed (positions of opposite sign count against each other)."""


def explain_identity(network: AirNet, images: Tensor) -> list[tuple[HeadSaliency, ...]]:
    """Explain, for each image and head, the logit of the identity which that head predicts.

    Args:
        network: in evaluation mode, with classifiers.
        images: (B, 3, H, W) RGB, uint8 or floating point in 0-1, on the network's device.

    Raises:
        ValueError: the network is in training mode, or has no classifiers.
    """

    def predict(head: Head, output: HeadOutput) -> _Scores:
        if head.classifier is None:
            raise ValueError("the network has no classifiers: there is no identity to explain")
        logits: Tensor = head.classifier(output.normalized)  # (B, N); forward gives it in training
        scores, identities = logits.max(dim=1)
        probabilities = logits.softmax(dim=1).gather(1, identities[:, None])[:, 0]
        return _Scores(scores, identities.tolist(), probabilities.tolist())

    return _gradcam(network, images, predict)


def explain_similarity(
    network: AirNet, images: Tensor, others: Tensor
) -> list[tuple[HeadSaliency, ...]]:
    """Explain, for each image and head, that head's cosine with another image.

    The other image's vector is held fixed: the map says what in `images` makes them alike. Call it
    again the other way round for the other image's map; the scores are the same.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W) RGB, uint8 or floating point in 0-1, on the network's device.
        others: the same; one for each of `images`, or one for all.

    Raises:
        ValueError: the network is in training mode.
    """
    with torch.no_grad():
        fixed = {output.name: output.normalized for output in network(others)}

    def compare(_: Head, output: HeadOutput) -> _Scores:
        scores = torch.cosine_similarity(output.normalized, fixed[output.name], dim=1)
        return _Scores(scores, [None] * len(scores), [None] * len(scores))

    return _gradcam(network, images, compare)


def has_attention(network: AirNet) -> bool:
    """Whether a head of `network` pools by attention."""
    return any(isinstance(head.pooling, AttentionPooling) for _, head, _ in _heads(network))


def attention_maps(network: AirNet, images: Tensor) -> list[tuple[HeadAttention, ...]]:
    """The attention of each head that has one, for each image: X Wu.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W) RGB, uint8 or floating point in 0-1, on the network's device.

    Raises:
        ValueError: the network is in training mode.
    """
    _check_mode(network)
    with torch.no_grad():
        maps = network.feature_maps(images)
        attentions = [
            (name, head.pooling.attention_map(maps[branch]).cpu().numpy())  # (B, h, w)
            for name, head, branch in _heads(network)
            if isinstance(head.pooling, AttentionPooling)
        ]
    return [
        tuple(HeadAttention(name, heat[index]) for name, heat in attentions)
        for index in range(len(images))
    ]


@dataclass(frozen=True, eq=False)
class _Scores:
    """What is explained, for one head."""

    values: Tensor
    """(B,), differentiable."""
    identities: list[int] | list[None]
    probabilities: list[float] | list[None]


def _gradcam(
    network: AirNet, images: Tensor, score: Callable[[Head, HeadOutput], _Scores]
) -> list[tuple[HeadSaliency, ...]]:
    _check_mode(network)
    with torch.no_grad():
        maps = [features.float() for features in network.feature_maps(images)]  # (B, C, h, w)
    explained: list[list[HeadSaliency]] = [[] for _ in images]
    with torch.enable_grad():
        for name, head, branch in _heads(network):
            features = maps[branch].requires_grad_()
            scores = score(head, head(features, name))
            # One image's score depends on its own map only, so the sum has each one's gradient.
            (gradient,) = torch.autograd.grad(scores.values.sum(), features)
            weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
            heat = (weights * features).sum(dim=1).relu().detach().cpu().numpy()  # (B, h, w)
            values = scores.values.detach().cpu()
            for index, of_image in enumerate(explained):
                of_image.append(
                    HeadSaliency(
                        head=name,
                        heat=heat[index],
                        score=float(values[index]),
                        identity=scores.identities[index],
                        probability=scores.probabilities[index],
                    )
                )
    return [tuple(of_image) for of_image in explained]


def _heads(network: AirNet) -> list[tuple[str, Head, int]]:
    """Name, head and number of the branch of each head, in the order of the embedding."""
    branches = [
        branch for branch, poolings in enumerate(VARIANTS[network.variant]) for _ in poolings
    ]
    heads = [network.heads[name] for name in network.head_names]
    return list(zip(network.head_names, heads, branches, strict=True))  # type: ignore[arg-type]


def _check_mode(network: AirNet) -> None:
    if network.training:
        raise ValueError(
            "the network is in training mode, where images change each other's batch norm; "
            "call eval() first"
        )
