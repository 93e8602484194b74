"""`make bench`: hot paths beside their obvious implementations, measured in the same run.

Fixed seed and sizes, one warm-up, the median of several runs on one thread; the sides take turns,
so that a busy machine slows both. Prints a table, then one JSON line with machine and versions.
Each measurement first checks that both sides give the same answer.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

import airnet_cli
from airnet_cli.core.model.pooling import AttentionPooling

RUNS = 7


@dataclass(frozen=True)
class Measurement:
    """Median seconds of one hot path and of the obvious way to the same answer."""

    name: str
    seconds: float
    obvious_seconds: float

    @property
    def ratio(self) -> float:
        """How many times quicker ours is."""
        return self.obvious_seconds / self.seconds


def main() -> None:
    """Run every measurement and print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measurements = [attention_pooling()]
    print(f"{'what':<42} {'ours':>10} {'obvious':>10} {'ratio':>7}")
    for each in measurements:
        ours, obvious = 1e3 * each.seconds, 1e3 * each.obvious_seconds
        print(f"{each.name:<42} {ours:>7.1f} ms {obvious:>7.1f} ms {each.ratio:>6.1f}x")
    machine = {
        "machine": platform.machine(),
        "processor": platform.processor() or "unknown",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "airnet": airnet_cli.__version__,
    }
    print(json.dumps({**machine, "measurements": [asdict(each) for each in measurements]}))


def attention_pooling() -> Measurement:
    """Attention-based pooling, positions collapsed first, beside eq. (3) as it is printed."""
    pooling = AttentionPooling(2048).eval()
    features = torch.rand(4, 2048, 24, 12)

    def literal() -> torch.Tensor:
        positions = features.flatten(2).transpose(1, 2)  # (B, HW, C)
        values, weights = pooling.value(positions), pooling.attention(positions)
        return torch.matmul(values.transpose(1, 2), weights).squeeze(2)  # (B, C)

    with torch.inference_mode():
        torch.testing.assert_close(pooling(features), literal(), rtol=1e-3, atol=1e-3)
        return measure("attention pooling, 4 x 2048 x 24 x 12", lambda: pooling(features), literal)


def measure(name: str, ours: Callable[[], object], obvious: Callable[[], object]) -> Measurement:
    """Time both sides in turn; the medians count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(RUNS + 1):
        for side, function in enumerate((ours, obvious)):
            start = time.perf_counter()
            function()
            if run:  # the first is the warm-up
                seconds[side].append(time.perf_counter() - start)
    return Measurement(name, *(statistics.median(side) for side in seconds))


if __name__ == "__main__":
    main()
