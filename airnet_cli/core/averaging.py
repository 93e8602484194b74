"""The exponential moving average (EMA) of a network's weights: what is scored and saved instead.

After each step, average = decay * average + (1 - decay) * weights, from the initial weights on. The
running statistics of batch norms are averaged like weights, since they belong to them. The
training itself goes on with the weights and never sees the average.
"""

import copy

import torch

from airnet_cli.core.model.airnet import AirNet


class WeightAverage:
    """The average of the weights that a network has had."""

    def __init__(self, network: AirNet, *, decay: float) -> None:
        """Start from the weights that `network` has now; `decay` is 0-1, as in 0.999."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        """The network with the averaged weights, in evaluation mode."""
        self._decay = decay

    @torch.no_grad()
    def update(self, network: AirNet) -> None:
        """Take in the weights that `network` has after a step."""
        averages, weights = self.network.state_dict(), network.state_dict()
        floating = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [averages[name] for name in floating],
            [weights[name] for name in floating],
            1 - self._decay,
        )
        for name in weights.keys() - set(floating):  # batches that were counted: no mean of them
            averages[name].copy_(weights[name])
