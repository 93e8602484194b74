"""Images by index and the loader of training; the loader of inference is in `test_inference.py`."""

import pytest
import torch
from PIL import Image

from airnet_cli.core.data.dataset import ImageDataset, TrainingLoader
from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import read_image
from airnet_cli.errors import DataError


@pytest.fixture
def dataset(crops) -> ImageDataset:
    return ImageDataset(crops[0], height_px=16, width_px=8)


@pytest.fixture
def sampler(crops) -> IdentitySampler:
    return IdentitySampler(crops[1], identities_per_batch=2, images_per_identity=2, seed=0)


def test_item_is_the_image_and_its_index(crops, dataset):
    """uint8, resized, with its place in the list of paths."""
    index, image = dataset[5]
    assert index == 5
    assert image.dtype == torch.uint8
    assert torch.equal(image, read_image(crops[0][5], height_px=16, width_px=8))
    assert len(dataset) == len(crops[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_the_samplers(dataset, sampler, workers):
    """Each planned batch, in order, of the epoch that is planned now; workers change nothing."""
    loader = TrainingLoader(dataset, sampler, workers=workers, pin_memory=False)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert [list(batch.indices) for batch in batches] == list(sampler)
        for batch in batches:
            assert torch.equal(batch.images, torch.stack([dataset[i][1] for i in batch.indices]))
        assert len(loader) == len(sampler) == len(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_image_is_one_line(tmp_path, workers):
    """Defect 7: the name of the file and no more, from a worker process too."""
    Image.new("RGB", (8, 16)).save(tmp_path / "there.png")
    paths = [tmp_path / name for name in ("there.png", "gone.png", "there.png", "there.png")]
    loader = TrainingLoader(
        ImageDataset(paths, height_px=16, width_px=8),
        IdentitySampler([0, 0, 1, 1], identities_per_batch=2, images_per_identity=2, seed=0),
        workers=workers,
        pin_memory=False,
    )
    with pytest.raises(DataError, match=r"gone\.png") as raised:
        list(loader)
    assert "\n" not in str(raised.value)
