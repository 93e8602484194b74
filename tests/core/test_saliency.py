"""Grad-CAM against captum and against loops; attention against equation (3)."""

import copy
import functools

import numpy as np
import pytest
import torch

from airnet_cli.core.model.airnet import VARIANTS, AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.core.saliency import (
    attention_maps,
    explain_identity,
    explain_similarity,
    has_attention,
)

BRANCH_OF = {"A1": 0, "A2": 1, "I": 1, "M": 1}
"""For two branches; with one, everything is in branch 0."""


@functools.cache
def build(variant="airnet", backbone="resnet18", identities=7):
    torch.manual_seed(0)
    network = AirNet(build_backbone(backbone), variant=variant, identities=identities)
    for module in network.modules():  # a trained network's statistics are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def pictures(count=2):
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 64, 32), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module")
def airnet():
    return build()


def branch_of(network, name):
    return network.branches[min(BRANCH_OF[name], len(network.branches) - 1)]


@pytest.mark.parametrize(
    ("variant", "backbone"),
    [
        ("airnet", "resnet18"),
        ("airnet", "mobilenet_v2"),
        ("airnet_gc", "resnet18_ibn"),
        ("baseline_abp", "resnet18"),
    ],
)
@pytest.mark.parametrize("kind", ["identity", "similarity"])
def test_gradcam_is_captums(variant, backbone, kind):
    """The same network and the same score give the map of captum's LayerGradCam."""
    pytest.importorskip("captum", reason="captum is in the dev extra")
    from captum.attr import LayerGradCam

    network, images = build(variant, backbone), pictures()
    other = pictures(3)[2:]
    if kind == "identity":
        explained = explain_identity(network, images)
    else:
        explained = explain_similarity(network, images, other)
    for position, name in enumerate(network.head_names):
        head = network.heads[name]

        def logits(batch, position=position, head=head):
            return head.classifier(network(batch)[position].normalized)

        def cosine(batch, position=position):
            fixed = network(other)[position].normalized.detach()
            return torch.cosine_similarity(network(batch)[position].normalized, fixed)

        scores = logits if kind == "identity" else cosine
        target = logits(images).argmax(dim=1) if kind == "identity" else None
        judge = LayerGradCam(scores, branch_of(network, name))
        maps = judge.attribute(images.float() / 255, target=target).detach()  # (B, 1, h, w)
        for index, of_image in enumerate(explained):
            theirs = maps[index, 0].numpy()
            assert of_image[position].head == name
            np.testing.assert_allclose(
                of_image[position].heat, theirs.clip(0), rtol=0, atol=1e-5 * abs(theirs).max()
            )
    assert any(saliency.heat.any() for of_image in explained for saliency in of_image)


def test_gradcam_is_the_weighted_sum(airnet):
    """Channel by channel: mean gradient times map, summed, and cut at zero."""
    images = pictures(1)
    (explained,) = explain_identity(airnet, images)
    maps = [features.detach().requires_grad_() for features in airnet.feature_maps(images)]
    for saliency, output in zip(explained, airnet.pool(maps), strict=True):
        logits = airnet.heads[output.name].classifier(output.normalized)[0]
        identity = int(logits.argmax())
        features = maps[BRANCH_OF[output.name]]
        (gradient,) = torch.autograd.grad(logits[identity], features, retain_graph=True)
        expected = np.zeros(saliency.heat.shape)
        for channel in range(features.shape[1]):
            weight = gradient[0, channel].mean().item()
            expected += weight * features[0, channel].detach().numpy()
        np.testing.assert_allclose(
            saliency.heat, expected.clip(0), rtol=0, atol=1e-5 * expected.max()
        )
        assert saliency.identity == identity
        assert saliency.score == pytest.approx(logits[identity].item(), abs=1e-6)
        assert saliency.probability == pytest.approx(logits.softmax(0)[identity].item())


def test_images_do_not_change_each_other(airnet):
    """An image's maps are the same alone and in a batch."""
    images = pictures(3)
    together = explain_identity(airnet, images)
    for index in range(3):
        (alone,) = explain_identity(airnet, images[index : index + 1])
        for one, other in zip(alone, together[index], strict=True):
            np.testing.assert_allclose(one.heat, other.heat, rtol=1e-3, atol=1e-7)


def test_similarity_is_the_cosine_of_the_heads_slice(airnet):
    """The score is that of the embeddings' slices, both ways round; 1 with itself."""
    images = pictures(2)
    with torch.no_grad():
        first, second = airnet.embed(images)
    (there,) = explain_similarity(airnet, images[:1], images[1:])
    (back,) = explain_similarity(airnet, images[1:], images[:1])
    (same,) = explain_similarity(airnet, images[:1], images[:1])
    for name, one, two, itself in zip(airnet.head_names, there, back, same, strict=True):
        part = airnet.head_slices[name]
        expected = torch.cosine_similarity(first[part], second[part], dim=0).item()
        assert one.score == pytest.approx(expected, abs=1e-5)
        assert two.score == pytest.approx(expected, abs=1e-5)
        assert itself.score == pytest.approx(1, abs=1e-5)
        assert one.identity is None
        assert one.probability is None


def test_one_other_picture_for_all_or_one_each(airnet):
    """`others` may be one image for the whole batch."""
    images, other = pictures(2), pictures(3)[2:]
    for_all = explain_similarity(airnet, images, other)
    each = explain_similarity(airnet, images, other.expand_as(images))
    for one, two in zip(for_all, each, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a.heat, b.heat, rtol=1e-4, atol=1e-8)


def test_attention_weighs_the_positions_of_equation_3(airnet):
    """Summing (Wv^T x) times the map over all positions gives what the head pooled."""
    images = pictures(2)
    explained = attention_maps(airnet, images)
    with torch.no_grad():
        features = airnet.feature_maps(images)[1]
        pooled = airnet.heads["I"](features, "I").pooled
        values = torch.einsum(
            "bchw,dc->bdhw", features, airnet.heads["I"].pooling.value.weight
        ).numpy()
    for index, (attention,) in enumerate(explained):
        assert attention.head == "I"
        assert attention.heat.shape == features.shape[2:]
        summed = (values[index] * attention.heat).sum(axis=(1, 2))
        expected = pooled[index].numpy()
        np.testing.assert_allclose(summed, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_which_variants_have_attention(variant):
    """Exactly those with attention-based pooling."""
    with torch.device("meta"):
        network = AirNet(build_backbone("resnet18"), variant=variant, identities=None)
    assert has_attention(network) == ("abp" in str(VARIANTS[variant]))


def test_explaining_leaves_no_trace(airnet):
    """No gradient stays on the weights, and the network stays in evaluation mode."""
    explain_identity(airnet, pictures(1))
    assert all(parameter.grad is None for parameter in airnet.parameters())
    assert not airnet.training


@pytest.mark.parametrize("explain", [explain_identity, attention_maps])
def test_training_mode_is_refused(explain):
    """In training mode the maps would depend on the other images of the batch."""
    with pytest.raises(ValueError, match="training mode"):
        explain(copy.deepcopy(build()).train(), pictures(1))


def test_without_classifiers_there_is_no_identity():
    """A network for embedding alone has nothing that predicts."""
    with pytest.raises(ValueError, match="no classifiers"):
        explain_identity(build(identities=None), pictures(1))
