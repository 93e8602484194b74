"""Poolings and the Global Context block: printed equations and the authors' block as judges."""

import pytest
import torch
from torch import nn

from airnet_cli.core.model.pooling import AttentionPooling, GlobalContext, GlobalMaxPooling


def literal_equation_3(features, value, attention):
    """I = (X Wv)^T (X Wu) as printed, one image at a time, with X as HW x C."""
    vectors = []
    for image in features:
        x = image.permute(1, 2, 0).reshape(-1, image.shape[0])  # (HW, C)
        vectors.append((x @ value).T @ (x @ attention))  # (C, 1)
    return torch.stack(vectors).squeeze(2)


def pooling_of(channels: int, seed: int = 0) -> AttentionPooling:
    torch.manual_seed(seed)
    return AttentionPooling(channels)


def test_global_max_pooling_takes_each_channels_maximum():
    """Eq. (2), with the plain loop as the judge."""
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = [[max(channel.flatten().tolist()) for channel in image] for image in features]
    assert GlobalMaxPooling()(features).tolist() == expected


@pytest.mark.parametrize(
    "shape",
    [(3, 16, 4, 2), (2, 8, 1, 1), (1, 5, 3, 7), (1, 2048, 24, 12)],
    ids=["small", "one-position", "odd", "paper"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_attention_pooling_equals_the_equation_as_printed(shape, layout, assert_near):
    """Collapsing the positions first gives the vector of eq. (3), to 1e-5, in either layout."""
    pooling = pooling_of(shape[1])
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)).relu()
    features = features.contiguous(memory_format=layout)
    with torch.no_grad():
        expected = literal_equation_3(features, pooling.value.weight.T, pooling.attention.weight.T)
        assert_near(pooling(features), expected, tolerance=1e-5)


def test_attention_pooling_has_neither_bias_nor_softmax():
    """Twice the features give four times the vector; the parameters are Wv and Wu alone."""
    pooling = pooling_of(6)
    features = torch.rand(2, 6, 3, 2)
    torch.testing.assert_close(pooling(2 * features), 4 * pooling(features))
    assert {name: tuple(p.shape) for name, p in pooling.named_parameters()} == {
        "value.weight": (6, 6),
        "attention.weight": (1, 6),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_attention_pooling_is_float32_under_autocast(dtype):
    """Bit for bit the float32 result, where the sums over positions pass float16's largest."""
    pooling = pooling_of(32)
    features = (100 * torch.rand(1, 32, 24, 12)).to(dtype)
    with torch.no_grad():
        expected = pooling(features.float())
        with torch.autocast("cpu", dtype=dtype):
            pooled, attention = pooling(features), pooling.attention_map(features)
    assert expected.abs().max() > torch.finfo(torch.float16).max
    assert pooled.dtype == attention.dtype == torch.float32
    assert torch.equal(pooled, expected)


def test_attention_pooling_gradients(monkeypatch):
    """Analytic gradients equal numerical ones in float64, for features and both matrices."""
    # The module computes in float32 by design; float64 is what numerical gradients need.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    pooling = pooling_of(4).double()
    features = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)

    def pooled(features, value, attention):
        weights = {"value.weight": value, "attention.weight": attention}
        return torch.func.functional_call(pooling, weights, (features,))

    value, attention = pooling.value.weight, pooling.attention.weight
    assert torch.autograd.gradcheck(pooled, (features, value, attention))


def test_attention_map_is_signed_and_belongs_to_the_vector():
    """X Wu at each position, negative ones too; summing Wv^T X by it gives the pooled vector."""
    pooling = pooling_of(6)
    features = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        attention = pooling.attention_map(features)
        by_hand = [
            [
                [float(image[:, y, x] @ pooling.attention.weight[0]) for x in range(3)]
                for y in range(5)
            ]
            for image in features
        ]
        pooled = torch.einsum("bhw,bchw->bc", attention, features) @ pooling.value.weight.T
        torch.testing.assert_close(attention, torch.tensor(by_hand))
        torch.testing.assert_close(pooled, pooling(features))
    assert attention.shape == (2, 5, 3)
    assert attention.min() < 0 < attention.max()


@pytest.mark.parametrize("channels", [64, 256])
def test_global_context_equals_the_authors_block(channels, golden_block, check_block):
    """Outputs, gradients and parameter names of GCNet's ContextBlock (ratio 1/16, att, add)."""
    check_block(GlobalContext(channels), golden_block(f"gc_block_c{channels}_att_add"))


def test_new_global_context_changes_nothing():
    """Its last convolution starts at zero; its bottleneck is C/16 wide (defect 6: not 1)."""
    block = GlobalContext(64)
    features = torch.randn(2, 64, 4, 3)
    assert torch.equal(block(features), features)
    widths = [m.out_channels for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [1, 4, 64]
    assert block.conv_mask.weight.abs().max() > 0  # so that it can learn where to look
