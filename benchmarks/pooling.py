"""Attention-based pooling, positions collapsed first, beside eq. (3) as it is printed."""

from collections.abc import Iterator
from functools import partial

import torch

from airnet_cli.core.model.pooling import AttentionPooling
from benchmarks.measure import Row, Sizes, in_turn


def rows(sizes: Sizes) -> Iterator[Row]:
    """Maps of stage 5 at full size, channels-last as the network gives them."""
    channels, height, width = 2048, 24, 12
    pooling = AttentionPooling(channels).eval()
    for images in sizes.pick((1, 4, 16, 64), (4,)):
        features = torch.rand(images, channels, height, width)
        features = features.contiguous(memory_format=torch.channels_last)
        ours, printed = partial(pooling, features), partial(literal, pooling, features)
        with torch.inference_mode():
            expected = printed()
            scale = float(expected.abs().max())
            torch.testing.assert_close(ours() / scale, expected / scale, rtol=0, atol=1e-5)
            seconds, rival_seconds = in_turn(ours, printed, turns=40 if images < 16 else 3)
        yield Row(
            path="pooling",
            case=f"{images} x {channels} x {height} x {width}",
            rival="eq. (3) as printed",
            seconds=seconds,
            rival_seconds=rival_seconds,
            ratio_is="rival / ours",
            target="at least 20",
        )


def literal(pooling: AttentionPooling, features: torch.Tensor) -> torch.Tensor:
    """(X Wv)^T (X Wu)."""
    positions = features.flatten(2).transpose(1, 2)  # (B, HW, C)
    values, weights = pooling.value(positions), pooling.attention(positions)
    return torch.matmul(values.transpose(1, 2), weights).squeeze(2)  # (B, C)
