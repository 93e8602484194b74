"""Identity and batch-hard cosine triplet loss, per head and in total (paper 3.3).

Letters: B images of a P x K batch, C channels of a head's vector, N identities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airnet_cli.core.model.airnet import HeadOutput


@dataclass(frozen=True)
class TripletTerm:
    """What batch-hard mining found for one head; scalars (0-d tensors)."""

    loss: Tensor
    """Mean over anchors of max(0, D(hardest positive) + margin - D(hardest negative))."""
    active: Tensor
    """Share (0-1) of anchors whose term is above 0; stuck at 1 with loss = margin: collapse."""


@dataclass(frozen=True)
class HeadLoss:
    """The terms of one head; scalars (0-d tensors)."""

    name: str
    identity: Tensor
    triplet: Tensor
    active: Tensor


@dataclass(frozen=True)
class Loss:
    """Eq. (7): mean over heads of the identity losses + mean over heads of the triplet losses."""

    total: Tensor
    heads: tuple[HeadLoss, ...]


def batch_hard_triplet(vectors: Tensor, person_ids: Tensor, *, margin: float) -> TripletTerm:
    """Batch-hard triplet loss (Hermans et al. 2017) on the cosine distance 1 - cos, which lies in
    0-2.

    Eq. (6) prints "+ D_min"; its reference has the minus, and so have we. An anchor counts as its
    own positive (distance 0), so that an identity with one image has a hardest positive of about
    0. An anchor without a negative (one identity in the batch) has a loss of 0. Computed in
    float32 under autocast.

    Args:
        vectors: (B, C), before batch norm.
        person_ids: (B,), any integers.
        margin: of the cosine distance.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = nn.functional.normalize(vectors.float(), dim=1)
        distances = 1 - unit @ unit.T  # (B, B)
        same = person_ids[:, None] == person_ids[None, :]  # (B, B)
        hardest_positive = distances.masked_fill(~same, float("-inf")).amax(dim=1)  # (B,)
        hardest_negative = distances.masked_fill(same, float("inf")).amin(dim=1)  # (B,)
        terms = nn.functional.relu(hardest_positive + margin - hardest_negative)
        return TripletTerm(loss=terms.mean(), active=(terms.detach() > 0).float().mean())


def compute_loss(
    outputs: Sequence[HeadOutput],
    labels: Tensor,
    *,
    triplet_margin: float,
    label_smoothing: float,
) -> Loss:
    """The loss of a batch, eq. (7), with every term of every head.

    Args:
        outputs: one per head, with logits (training mode).
        labels: (B,), the classes 0..N-1.
        triplet_margin: of the cosine distance 1 - cos.
        label_smoothing: share of the target spread over all classes, as
            `torch.nn.functional.cross_entropy` has it (eps / N); 0 for the paper.

    Raises:
        ValueError: a head has no logits: the network is in evaluation mode or has no classifiers.
    """
    heads = []
    for output in outputs:
        if output.logits is None:
            raise ValueError(f"head {output.name} has no logits; train() a network with identities")
        identity = nn.functional.cross_entropy(
            output.logits.float(), labels, label_smoothing=label_smoothing
        )
        triplet = batch_hard_triplet(output.pooled, labels, margin=triplet_margin)
        heads.append(HeadLoss(output.name, identity, triplet.loss, triplet.active))
    total = torch.stack([head.identity + head.triplet for head in heads]).mean()
    return Loss(total=total, heads=tuple(heads))
