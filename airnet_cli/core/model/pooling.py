"""From a feature map to a vector: global max pooling, attention-based pooling, and the Global
Context block.

Letters: B images, C channels, H x W positions of the feature map.
"""

import torch
from torch import Tensor, nn


class GlobalMaxPooling(nn.Module):
    """The maximum of each channel over all positions: eq. (2)."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool `features` (B, C, H, W) to (B, C)."""
        return features.amax(dim=(2, 3))


class AttentionPooling(nn.Module):
    """Attention-based pooling: I = (X Wv)^T (X Wu), eq. (3), with X as HW x C, no bias, no softmax.

    Computed as Wv^T (X^T (X Wu)): collapsing the positions first gives the same vector for HW*C*2
    + C*C multiplications instead of HW*C*C, about 220 times fewer at 2048 x 24 x 12. Always in
    float32: under autocast the sums over positions would overflow float16 and lose bits in
    bfloat16.

    (The paper writes X as C x HW; only HW x C makes the product C x 1. See docs/method.md.)
    """

    def __init__(self, channels: int) -> None:
        """Take feature maps of `channels` channels."""
        super().__init__()
        self.value = nn.Linear(channels, channels, bias=False)  # weight = Wv^T
        self.attention = nn.Linear(channels, 1, bias=False)  # weight = Wu^T

    def attention_map(self, features: Tensor) -> Tensor:
        """The weight of each position, (B, H, W), for `features` (B, C, H, W): X Wu, signed."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.einsum("bchw,c->bhw", features.float(), self.attention.weight[0])

    def forward(self, features: Tensor) -> Tensor:
        """Pool `features` (B, C, H, W) to (B, C)."""
        with torch.autocast(features.device.type, enabled=False):
            # X (B, HW, C): a view of channels-last maps, in which both products read each position
            # in one piece; three to four times as fast as a product with (B, C, HW).
            positions = features.float().flatten(2).transpose(1, 2)
            weights = self.attention(positions).transpose(1, 2)  # (B, 1, HW): (X Wu)^T
            context = torch.matmul(weights, positions).squeeze(1)  # (B, C): X^T X Wu
            return nn.functional.linear(context, self.value.weight)


class GlobalContext(nn.Module):
    """Global Context block (Cao et al. 2019, GCNet): softmax attention pooling, bottleneck, added
    everywhere.

    Parameter names are those of the authors' `ContextBlock`. A new block returns its input
    unchanged, since its last convolution starts at zero.
    """

    REDUCTION = 16

    def __init__(self, channels: int) -> None:
        """Take feature maps of `channels` channels; the bottleneck has `channels // 16`."""
        super().__init__()
        inner = channels // self.REDUCTION
        self.conv_mask = nn.Conv2d(channels, 1, kernel_size=1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, inner, kernel_size=1),
            nn.LayerNorm([inner, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, kernel_size=1),
        )
        nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.conv_mask.bias)  # type: ignore[arg-type]  # Conv2d has a bias by default
        for parameter in self.channel_add_conv[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Add the context of the whole map to each position of `features` (B, C, H, W)."""
        mask = self.conv_mask(features).flatten(2).softmax(dim=2)  # (B, 1, HW)
        context = torch.matmul(features.flatten(2), mask.transpose(1, 2))  # (B, C, 1)
        transformed: Tensor = self.channel_add_conv(context.unsqueeze(3))  # (B, C, 1, 1)
        return features + transformed
