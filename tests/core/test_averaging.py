"""The moving average of a network's weights, next to the sum written out."""

import torch

from airnet_cli.core.averaging import WeightAverage
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import build_backbone


def small_network() -> AirNet:
    torch.manual_seed(0)
    return AirNet(build_backbone("mobilenet_v2"), variant="baseline", identities=3)


def test_average_is_the_sum_written_out():
    """d^3 w0 + (1 - d) (d^2 w1 + d w2 + w3), for weights and running statistics; counts are
    copied.
    """
    network, decay = small_network(), 0.9
    average = WeightAverage(network, decay=decay)
    seen = [{k: t.clone() for k, t in network.state_dict().items()}]
    for step in range(1, 4):
        random = torch.Generator().manual_seed(step)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=random))
            else:
                tensor.fill_(step)
        average.update(network)
        seen.append({k: t.clone() for k, t in network.state_dict().items()})
    for name, found in average.network.state_dict().items():
        weights = [state[name] for state in seen]
        if not found.is_floating_point():
            assert found == 3, name
            continue
        later = sum(decay ** (3 - step) * weights[step] for step in (1, 2, 3))
        torch.testing.assert_close(found, decay**3 * weights[0] + (1 - decay) * later)
