"""Attention-based pooling, positions collapsed first, beside eq. (3) as it is printed."""

from collections.abc import Iterator

import torch

from airnet_cli.core.model.pooling import AttentionPooling
from benchmarks.measure import Row, Sizes, in_turn


def rows(sizes: Sizes) -> Iterator[Row]:
    """One map of stage 5 at full size."""
    channels, height, width = sizes.pick((2048, 24, 12), (2048, 24, 12), (64, 4, 3))
    pooling = AttentionPooling(channels).eval()
    features = torch.rand(4, channels, height, width)

    def literal() -> torch.Tensor:
        positions = features.flatten(2).transpose(1, 2)  # (B, HW, C)
        values, weights = pooling.value(positions), pooling.attention(positions)
        return torch.matmul(values.transpose(1, 2), weights).squeeze(2)  # (B, C)

    with torch.inference_mode():
        expected = literal()
        scale = float(expected.abs().max())
        torch.testing.assert_close(pooling(features) / scale, expected / scale, rtol=0, atol=1e-5)
        seconds, rival_seconds = in_turn(lambda: pooling(features), literal, turns=7)
    yield Row(
        path="pooling",
        case=f"4 x {channels} x {height} x {width}",
        rival="eq. (3) as printed",
        seconds=seconds,
        rival_seconds=rival_seconds,
        ratio_is="rival / ours",
        target="at least 20",
    )
