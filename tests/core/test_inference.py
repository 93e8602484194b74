"""Images to embeddings: in order, independent of batches and workers, broken files named."""

import pytest
import torch
from torch import nn

from airnet_cli.core.data.transforms import read_image
from airnet_cli.core.inference import embed_batches, embed_images, embed_tensor
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.errors import DataError

CPU = torch.device("cpu")
SIZE = {"height_px": 32, "width_px": 32}


@pytest.fixture(scope="module")
def network() -> AirNet:
    """AIR-Net over MobileNetV2 after a training forward, left in training mode."""
    torch.manual_seed(0)
    network = AirNet(build_backbone("mobilenet_v2"), variant="airnet", identities=3).train()
    with torch.no_grad():
        network(torch.rand(4, 3, 32, 32))
    return network


def embed(network, paths, **changes):
    options = {
        "batch_size": 4,
        "workers": 0,
        "device": CPU,
        "precision": "fp32",
        "normalize_heads": False,
    }
    return embed_images(network, paths, **SIZE, **(options | changes))


def pixels(paths):
    return torch.stack([read_image(path, **SIZE) for path in paths])


def test_embeddings_are_the_networks_in_the_order_of_the_paths(network, crops, assert_near):
    """One row for each path, as the network in evaluation mode embeds the pixels."""
    paths = crops[0][:7][::-1]
    found = embed(network, paths)
    with torch.no_grad():
        expected = network.eval().embed(pixels(paths))
    assert (found.dtype, found.shape) == (torch.float32, (7, network.embedding_size))
    assert_near(found, expected, tolerance=1e-5)
    found.add_(1)  # an ordinary tensor: the caller may change it


def test_training_mode_of_the_network_does_not_matter(network, crops):
    """Batch statistics are neither used nor changed."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plain = embed(network.eval(), crops[0][:4])
    assert torch.equal(embed(network.train(), crops[0][:4]), plain)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"batch_size": 100}, {"workers": 2}],
    ids=["one-by-one", "all-at-once", "workers"],
)
def test_batches_and_workers_change_nothing(network, crops, changes, assert_near):
    """The same embeddings in the same order; the last batch may be smaller."""
    paths = crops[0][:9]
    assert_near(embed(network, paths, **changes), embed(network, paths), tolerance=1e-5)


def test_no_images_no_rows(network):
    """An empty list is an empty answer of the right width."""
    assert embed(network, []).shape == (0, network.embedding_size)


def test_progress_counts_images(network, crops):
    """After each batch, up to the total."""
    told = []
    embed(network, crops[0][:9], stage="gallery", progress=lambda *call: told.append(call))
    assert told == [("gallery", done, 9, "images") for done in (4, 8, 9)]


def test_heads_of_length_1_where_asked(network, crops):
    """Each head's slice is normalised by itself."""
    paths = crops[0][:3]
    even, plain = embed(network, paths, normalize_heads=True), embed(network, paths)
    for part in network.head_slices.values():
        torch.testing.assert_close(even[:, part], nn.functional.normalize(plain[:, part], dim=1))


def test_bfloat16_is_close_and_given_as_float32(network, crops):
    """The precision is that of the computation, not of the result."""
    low, plain = embed(network, crops[0][:3], precision="bf16"), embed(network, crops[0][:3])
    assert low.dtype == torch.float32
    assert not torch.equal(low, plain)
    assert nn.functional.cosine_similarity(low, plain).min() > 0.98


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named(network, crops, tmp_path, workers):
    """Defect 7: one line with the path and why, from a worker process too."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(crops[0][0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"broken\.jpg' can't be read") as raised:
        embed(network, [*crops[0][:2], broken], workers=workers)
    assert "\n" not in str(raised.value)


def test_batches_tell_bad_images_apart(crops, tmp_path):
    """Rows for what could be read, position and reason for what could not, in order."""
    paths = [crops[0][0], tmp_path / "gone.jpg", crops[0][1], tmp_path / "gone too.jpg"]
    batches = list(
        embed_batches(
            lambda images: images.float().mean(dim=(2, 3)),
            paths,
            **SIZE,
            batch_size=3,
            workers=0,
            device=CPU,
        )
    )
    assert [batch.indices for batch in batches] == [(0, 2), ()]
    assert [[index for index, _ in batch.bad] for batch in batches] == [[1], [3]]
    assert all("no such file" in reason for batch in batches for _, reason in batch.bad)
    expected = pixels([paths[0], paths[2]]).float().mean(dim=(2, 3))
    assert torch.equal(batches[0].embeddings, expected)


def tensor_of(network, images, **changes):
    options = {"device": CPU, "precision": "fp32", "normalize_heads": False}
    return embed_tensor(network.eval(), images, **(options | changes))


def test_flip_is_the_mean_with_the_mirror_image(network, crops, assert_near):
    """Before any normalisation of the vectors."""
    images = pixels(crops[0][:3])
    plain, mirrored = tensor_of(network, images), tensor_of(network, images.flip(3))
    flipped = tensor_of(network, images, flip=True)
    assert_near(flipped, (plain + mirrored) / 2, tolerance=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float"])
def test_flip_of_a_symmetric_image_is_its_plain_embedding(network, crops, assert_near, dtype):
    """Defect 5: the mirrored batch is normalised once, and the caller's images stay."""
    half = pixels(crops[0][:2])[..., :16]
    images = torch.cat((half, half.flip(3)), dim=3)
    images = images if dtype == "uint8" else images.float() / 255
    before = images.clone()
    plain = tensor_of(network, images)
    assert_near(tensor_of(network, images, flip=True), plain, tolerance=1e-6)
    assert torch.equal(images, before)


def test_chosen_heads_are_their_slices(network, crops):
    """In the network's order, whatever the order of the names."""
    images = pixels(crops[0][:2])
    whole, slices = tensor_of(network, images), network.head_slices
    chosen = tensor_of(network, images, heads=["I", "A1"])
    assert torch.equal(chosen, torch.cat((whole[:, slices["A1"]], whole[:, slices["I"]]), dim=1))
