"""The network: seven variants over six backbones, heads, branches, normalisation, embedding."""

from typing import get_args

import pytest
import torch
from torch import nn

from airnet_cli.core.model.airnet import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VARIANTS,
    AirNet,
    VariantName,
)
from airnet_cli.core.model.backbone import BackboneName, build_backbone

# Table 3 again, by hand: heads in the order of the embedding, and the heads of each branch.
TABLE_3 = {
    "baseline": [["A1"]],
    "baseline_abp": [["I"]],
    "baseline_gc": [["M"]],
    "parallel_gc": [["A1"], ["M"]],
    "parallel_abp": [["A1"], ["I"]],
    "airnet_gc": [["A1"], ["A2", "M"]],
    "airnet": [["A1"], ["A2", "I"]],
}


def build(backbone="resnet18", variant="airnet", identities=5, seed=0) -> AirNet:
    torch.manual_seed(seed)
    return AirNet(build_backbone(backbone), variant=variant, identities=identities)


def without_weights(backbone, variant="airnet", identities=None) -> AirNet:
    with torch.device("meta"):
        return build(backbone, variant, identities)


def crops(number=2, height=64, width=32, seed=0) -> torch.Tensor:
    """Return random uint8 images."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, height, width), generator=random, dtype=torch.uint8)


@pytest.fixture(scope="module")
def network() -> AirNet:
    """AIR-Net over ResNet-18 after one training forward, in evaluation mode."""
    network = build().train()
    with torch.no_grad():
        network(crops(4))
    return network.eval()


def test_table_3_is_complete():
    """The seven rows, no more."""
    assert set(TABLE_3) == set(VARIANTS) == set(get_args(VariantName))


@pytest.fixture(scope="module", params=get_args(BackboneName))
def backbone(request):
    """Each backbone, built once: networks share its trunk and copy its stage 5."""
    torch.manual_seed(0)
    return build_backbone(request.param)


@pytest.mark.parametrize("variant", TABLE_3)
@torch.inference_mode()
def test_every_variant_over_every_backbone(backbone, variant):
    """All 42: heads, shapes, logits; an embedding is the heads' vectors one after the other, and
    each head reads its own branch's map.
    """
    network = AirNet(backbone, variant=variant, identities=7)
    heads = [name for branch in TABLE_3[variant] for name in branch]
    images = crops()
    for output in network.train()(images):
        assert output.pooled.shape == output.normalized.shape == (2, backbone.channels)
        assert output.logits.shape == (2, 7)

    network.eval()
    maps = network.feature_maps(images)
    outputs = {output.name: output for output in network.pool(maps)}
    embedding = network.embed(images)
    assert list(outputs) == list(network.head_names) == heads
    assert len(maps) == len(TABLE_3[variant])
    for branch, names in zip(maps, TABLE_3[variant], strict=True):
        for name in names:
            assert torch.equal(outputs[name].pooled, network.heads[name].pooling(branch))
    in_order = torch.cat([outputs[name].normalized for name in heads], dim=1)
    sliced = torch.cat([embedding[:, network.head_slices[name]] for name in heads], dim=1)
    assert embedding.dtype == torch.float32
    assert embedding.shape == (2, network.embedding_size) == (2, backbone.channels * len(heads))
    assert torch.equal(embedding, in_order)
    assert torch.equal(embedding, sliced)
    assert torch.isfinite(embedding).all()


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("airnet", 42.7), ("baseline", 23.5)],
)
@pytest.mark.parametrize("backbone", ["resnet50_ibn", "resnet50"])
def test_parameter_counts_of_table_2(backbone, variant, millions):
    """Without classifiers; classifiers add heads x C x identities."""

    def count(identities):
        network = without_weights(backbone, variant, identities)
        return sum(parameter.numel() for parameter in network.parameters())

    heads = len(VARIANTS[variant]) if variant == "baseline" else 3
    assert round(count(None) / 1e6, 1) == millions
    assert count(751) - count(None) == heads * 2048 * 751


def test_embedding_of_the_paper_has_6144_numbers():
    """3 x 2048 (paper 4.2), and the positions of A1, A2 and I in it."""
    network = without_weights("resnet50_ibn")
    assert network.embedding_size == 6144
    assert network.head_slices == {
        "A1": slice(0, 2048),
        "A2": slice(2048, 4096),
        "I": slice(4096, 6144),
    }


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_branches_start_equal_and_are_independent(backbone):
    """Copies of one stage 5 that share no memory: training one leaves the other as it was."""
    network = build(backbone)
    first, second = network.branches
    state = second.state_dict()
    assert first.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in first.state_dict().items())
    pointers = [tensor.data_ptr() for tensor in network.state_dict().values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    others = dict(second.named_parameters())
    assert not any(torch.equal(p, others[name]) for name, p in first.named_parameters())


def test_every_parameter_that_is_trained_gets_a_gradient():
    """Nothing is built that the losses do not reach; only the norms' shifts are frozen."""
    network = build().train()
    outputs = network(crops(4))
    sum(
        output.logits.square().sum() + output.pooled.square().sum() for output in outputs
    ).backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {f"heads.{name}.norm.bias" for name in network.head_names}


def test_heads_follow_the_bnneck_convention():
    """Frozen shift at zero, classifier without bias, weights N(0, 0.001)."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet18")
    for head in AirNet(backbone, variant="airnet", identities=200).heads.values():
        assert not head.norm.bias.requires_grad
        assert head.norm.bias.abs().max() == 0
        assert head.norm.weight.requires_grad
        assert head.classifier.bias is None
        assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
        assert head.classifier.weight.mean().abs().item() < 1e-5


def test_logits_are_of_the_normalised_vector(network):
    """The classifier reads what comes out of the batch norm; batch statistics in training."""
    network.train()
    for output in network(crops(4)):
        head = network.heads[output.name]
        normed = nn.functional.batch_norm(
            output.pooled, None, None, head.norm.weight, training=True
        )
        torch.testing.assert_close(output.normalized, normed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.logits, output.normalized @ head.classifier.weight.T)
    network.eval()


@pytest.mark.parametrize("identities", [None, 5], ids=["no-classifiers", "classifiers"])
def test_no_logits_outside_training(identities):
    """In evaluation mode, and without classifiers in any mode, logits are None."""
    network = build("mobilenet_v2", "baseline", identities)
    has_logits = {
        mode: network.train(mode == "train")(crops())[0].logits is not None
        for mode in ("train", "eval")
    }
    assert has_logits == {"train": identities is not None, "eval": False}


# Normalisation


def test_normalisation_is_imagenets(network):
    """(value / 255 - mean) / std for each channel; zero for an image in the mean colour."""
    pixels = torch.tensor([10, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in zip((10, 128, 255), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    assert network.normalize(pixels).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    neutral = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 4, 2)
    assert network.normalize(neutral).abs().max() == 0


@torch.inference_mode()
def test_uint8_and_0_to_1_are_the_same_image(network):
    """The network takes both, and says the same of both."""
    images = crops()
    assert torch.equal(network.embed(images), network.embed(images.float() / 255))


@pytest.mark.parametrize("dtype", ["uint8", "float"])
@torch.inference_mode()
def test_normalisation_leaves_the_image_alone(network, dtype):
    """Defect 5: embedding one tensor twice gives the same twice, and the tensor is unchanged."""
    images = crops() if dtype == "uint8" else crops().float() / 255
    before = images.clone()
    first, second = network.embed(images), network.embed(images)
    assert torch.equal(first, second)
    assert torch.equal(images, before)


@torch.inference_mode()
def test_mirrored_symmetric_image_gives_the_plain_embedding(network):
    """Defect 5: flip testing of a symmetric image, mirrored after the first embedding."""
    half = crops(width=16).float() / 255
    symmetric = torch.cat((half, half.flip(3)), dim=3)
    plain = network.embed(symmetric)
    assert torch.equal(network.embed(symmetric.flip(3)), plain)


def test_normalisation_follows_the_network_but_is_not_learnt(network):
    """Buffers that move with `.to()`, in no state dict."""
    assert {"pixel_mean", "pixel_std"} <= dict(network.named_buffers()).keys()
    assert not any("pixel" in key for key in network.state_dict())


# Embedding


@torch.inference_mode()
def test_normalized_heads_weigh_the_same(network):
    """Each head's slice has length 1 and its direction; off by default (paper 4.2)."""
    images = crops(3)
    plain, even = network.embed(images), network.embed(images, normalize_heads=True)
    for part in network.head_slices.values():
        torch.testing.assert_close(even[:, part].norm(dim=1), torch.ones(3))
        torch.testing.assert_close(even[:, part], nn.functional.normalize(plain[:, part], dim=1))


@torch.inference_mode()
def test_embedding_does_not_depend_on_the_batch(network, assert_near):
    """Alone or among others, an image has one embedding."""
    images = crops(4)
    alone = torch.cat([network.embed(image[None]) for image in images])
    assert_near(alone, network.embed(images), tolerance=1e-5)


@torch.inference_mode()
def test_embedding_is_float32_and_close_under_bfloat16(network):
    """Autocast changes the speed, hardly the direction."""
    images = crops()
    plain = network.embed(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network.embed(images)
    assert low.dtype == torch.float32
    for part in network.head_slices.values():
        cosine = nn.functional.cosine_similarity(low[:, part], plain[:, part])
        assert cosine.min() > 0.99


@torch.inference_mode()
def test_memory_layout_does_not_matter(network, assert_near):
    """Channels-last weights (the faster layout) give the same embedding."""
    other = build()
    other.load_state_dict(network.state_dict())
    other.eval().to(memory_format=torch.channels_last)
    assert_near(other.embed(crops()), network.embed(crops()), tolerance=1e-4)
