"""Augmentation: the golden ranges of random erasing, mirrors, what erased pixels become.

How one image is read is in `test_reading.py`.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from airnet_cli.core.data.transforms import Augmentation, read_image
from airnet_cli.core.model.airnet import IMAGENET_MEAN, AirNet
from airnet_cli.core.model.backbone import build_backbone
from airnet_cli.errors import DataError


def augmentation(
    flip=0.0, erasing=0.0, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), frame=0
) -> Augmentation:
    return Augmentation(
        flip_probability=flip,
        erasing_probability=erasing,
        erasing_area=area,
        erasing_aspect=aspect,
        pad_crop_px=frame,
    )


def images_of(number=6, height=16, width=8, seed=0) -> torch.Tensor:
    """Return images without the values of the mean colour, so that erased pixels stand out."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 100, (number, 3, height, width), generator=random, dtype=torch.uint8)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


PERCENTILES = {"p05": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}


@pytest.mark.parametrize("size", ["384x192", "256x128"])
def test_erasing_has_the_golden_ranges(size, golden_json):
    """Share of images, area, aspect, sizes and places of 20,000 draws beside the reference's."""
    golden = golden_json("random_erasing")["torchreid"]["measured"][size]
    height, width = map(int, size.split("x"))
    random, draw = rng(1), augmentation(erasing=0.5)._draw_patch
    drawn = [draw(height, width, random) for _ in range(20_000)]
    patches = [patch for patch in drawn if patch is not None]
    heights = np.array([patch.bottom - patch.top for patch in patches])
    widths = np.array([patch.right - patch.left for patch in patches])
    found = {
        "area_fraction": heights * widths / (height * width),
        "aspect_h_over_w": heights / widths,
        "height": heights,
        "width": widths,
        "top": np.array([patch.top for patch in patches]),
        "left": np.array([patch.left for patch in patches]),
    }
    assert len(patches) / len(drawn) == pytest.approx(golden["erased_fraction"], abs=0.015)
    assert found["area_fraction"].mean() == pytest.approx(golden["mean_area_fraction"], abs=0.004)
    for name, values in found.items():
        span = golden[name]["max"] - golden[name]["min"]
        for key, percentile in PERCENTILES.items():
            near = pytest.approx(golden[name][key], abs=0.02 * span)
            assert np.percentile(values, percentile) == near, (name, key)
        assert values.min() >= golden[name]["min"] - 0.02 * span
        assert values.max() <= golden[name]["max"] + 0.02 * span


def test_erased_pixels_are_zero_for_the_network():
    """Defect 4: exactly the neutral colour after normalisation, in every channel; one rectangle."""
    with torch.device("cpu"):
        network = AirNet(build_backbone("mobilenet_v2"), variant="baseline", identities=None)
    images = images_of(20, 32, 16)
    augmented = augmentation(erasing=1.0)(images, rng())
    plain = network.normalize(images)
    normalized = network.normalize(augmented)
    for before, after in zip(plain, normalized, strict=True):
        erased = (after == 0).all(dim=0)
        rows, columns = torch.where(erased)
        box = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        assert erased.sum() == box.numel() < erased.numel()
        assert torch.equal(after[:, ~erased], before[:, ~erased])


def test_flip_mirrors_left_and_right():
    """Each image is itself or its mirror image, drawn apart; at 0 and 1 all are the one."""
    images = images_of(40)
    as_float = images.float() / 255
    assert torch.equal(augmentation(flip=0.0)(images, rng()), as_float)
    assert torch.equal(augmentation(flip=1.0)(images, rng()), as_float.flip(3))
    some = augmentation(flip=0.5)(images, rng())
    is_mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(some, as_float, strict=True)]
    is_plain = [torch.equal(a, b) for a, b in zip(some, as_float, strict=True)]
    assert all(a != b for a, b in zip(is_mirrored, is_plain, strict=True))
    assert 10 < sum(is_mirrored) < 30


def test_pad_and_crop_shifts_inside_a_frame():
    """Each result is one of the (2 n + 1)^2 crops of the framed image, and all shifts occur; what
    comes from the frame is exactly zero for the network.
    """
    with torch.device("cpu"):
        network = AirNet(build_backbone("mobilenet_v2"), variant="baseline", identities=None)
    frame, images = 2, images_of(1, 12, 6).expand(600, -1, -1, -1)
    shifted = augmentation(frame=frame)(images, rng())
    assert shifted.shape == images.shape
    padded = torch.tensor(IMAGENET_MEAN).view(3, 1, 1).repeat(1, 12 + 2 * frame, 6 + 2 * frame)
    padded[:, frame:-frame, frame:-frame] = images[0].float() / 255
    crops = {
        (top, left): padded[:, top : top + 12, left : left + 6]
        for top in range(2 * frame + 1)
        for left in range(2 * frame + 1)
    }
    found = [
        [corner for corner, crop in crops.items() if torch.equal(image, crop)] for image in shifted
    ]
    assert all(len(corners) == 1 for corners in found)
    counts = [sum(corners == [corner] for corners in found) for corner in crops]
    assert min(counts) > 600 / 25 / 3
    up = next(i for i, corners in enumerate(found) if corners[0][0] == 0)
    assert network.normalize(shifted)[up, :, :frame].abs().max() == 0


def test_without_pad_and_crop_nothing_is_drawn_for_it():
    """Runs of before this setting have the same numbers; with it, flips and patches stay."""
    images, plain, framed = images_of(8, 32, 16), rng(3), rng(3)
    augmentation(flip=0.5, erasing=0.5)(images, plain)
    draws = rng(3)
    draws.random(8)
    draw = augmentation(flip=0.5, erasing=0.5)._draw_patch
    patches = [draw(32, 16, draws) for _ in range(8)]
    assert plain.bit_generator.state == draws.bit_generator.state
    shifted = augmentation(flip=0.5, erasing=0.5, frame=3)(images, framed)
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    for patch, image in zip(patches, shifted, strict=True):
        if patch is not None:
            inside = image[:, patch.top : patch.bottom, patch.left : patch.right]
            assert torch.equal(inside, mean.expand_as(inside))
    assert framed.bit_generator.state != plain.bit_generator.state


def test_result_is_float_in_0_1_of_the_same_shape():
    """Whatever comes in as uint8."""
    images = torch.full((2, 3, 8, 4), 255, dtype=torch.uint8)
    augmented = augmentation(flip=0.5, erasing=0.5)(images, rng())
    assert augmented.dtype == torch.float32
    assert augmented.shape == images.shape
    assert 0 < augmented.min() <= augmented.max() == 1


def test_batch_is_never_changed_in_place():
    """The loader's images stay what they were."""
    images = images_of()
    before = images.clone()
    augmentation(flip=1.0, erasing=1.0)(images, rng())
    assert torch.equal(images, before)


def test_same_generator_same_augmentation():
    """Defect 11: all chance comes from the generator that is handed in, none from torch's."""
    images = images_of(20)
    augment = augmentation(flip=0.5, erasing=0.5)
    torch.manual_seed(1)
    first = augment(images, rng(7))
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(augment(images, rng(7)), first)
    assert not torch.equal(augment(images, rng(8)), first)
    random = rng(7)
    assert torch.equal(augment(images, random), first)
    assert not torch.equal(augment(images, random), first)  # the generator goes on


def test_patch_that_never_fits_leaves_the_image_whole():
    """Where no draw can fit, the image stays as it is instead of a loop without end."""
    images = images_of(3, 4, 4)
    impossible = augmentation(erasing=1.0, area=(0.9, 0.9), aspect=(50, 50))
    assert torch.equal(impossible(images, rng()), images.float() / 255)


def test_broken_image_is_opened_once(tmp_path, monkeypatch):
    """Defect 7: no retry without end; one try, and the file's name in the error."""
    tries = []
    opened = Image.open

    def count(path, *args, **options):
        tries.append(path)
        return opened(path, *args, **options)

    monkeypatch.setattr(Image, "open", count)
    (tmp_path / "0001_c1s1_000001_00.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    with pytest.raises(DataError, match=r"0001_c1s1_000001_00\.jpg") as raised:
        read_image(tmp_path / "0001_c1s1_000001_00.jpg", height_px=8, width_px=4)
    assert len(tries) == 1
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("frame", [0, 2], ids=["no frame", "frame"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_part_of_a_batch_becomes_what_it_is_in_the_whole(size, frame):
    """Processes that share a batch draw the same numbers, each for its images."""
    augment = augmentation(flip=0.5, erasing=0.5, frame=frame)
    images = images_of(6)
    whole = augment(images, rng())
    parts = [
        augment(part, rng(), first=first, drawn=6)
        for first, part in zip(range(0, 6, 6 // size), images.chunk(size), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)
