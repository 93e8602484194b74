"""The image check: good images pass, each kind of bad one is named."""

from pathlib import Path

import pytest
from PIL import Image

from airnet_cli.core.data import verify
from airnet_cli.core.data.verify import BadImage, raise_for_bad, verify_images
from airnet_cli.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five good images of different kinds and four bad ones."""
    (tmp_path / "sub").mkdir()
    for name, mode in [
        ("rgb.jpg", "RGB"),
        ("grey.png", "L"),
        ("palette.png", "P"),
        ("alpha.png", "RGBA"),
        ("sub/rgb.bmp", "RGB"),
    ]:
        Image.effect_noise((24, 48), 90).convert(mode).save(tmp_path / name)
    whole = (tmp_path / "rgb.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>")
    return tmp_path


GOOD = ["rgb.jpg", "grey.png", "palette.png", "alpha.png", "sub/rgb.bmp"]
BAD = ["page.jpg", "cut.jpg", "empty.jpg", "none.jpg"]
REASONS = {
    "cut.jpg": "truncated",
    "empty.jpg": "empty file",
    "none.jpg": "no such file",
    "page.jpg": "not an image",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_names_the_bad(folder: Path, monkeypatch, workers: int) -> None:
    """The same answer in this process and in others, sorted, with a reason each."""
    monkeypatch.setattr(verify, "CHUNK", 3)
    reports: list[tuple[int, int | None]] = []
    bad = verify_images(
        folder,
        GOOD + BAD + GOOD,
        workers=workers,
        progress=lambda stage, done, total, unit: reports.append((done, total)),
    )
    assert [image.path for image in bad] == sorted(BAD)
    for image in bad:
        assert REASONS[image.path] in image.reason
    assert reports[0] == (0, 9)
    assert reports[-1] == (9, 9)


def test_error_lists_ten(tmp_path: Path) -> None:
    """Ten with their reasons, the others counted, in one line."""
    bad = [BadImage(f"{index:02}.jpg", "empty file") for index in range(12)]
    with pytest.raises(DataError) as caught:
        raise_for_bad(tmp_path, bad)
    message = str(caught.value)
    assert message.startswith(f"12 images under {tmp_path} can't be read: 00.jpg (empty file), ")
    assert "09.jpg (empty file) and 2 more" in message
    assert "10.jpg" not in message
