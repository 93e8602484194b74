"""How long a command takes before it does anything, each in a fresh process."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.embed import write_images
from benchmarks.measure import Row, Sizes, in_turn

FORWARD = """
import torch, torchvision
network = torchvision.models.mobilenet_v2().eval()
with torch.inference_mode():
    network(torch.rand(1, 3, 128, 64))
"""


def rows(sizes: Sizes) -> Iterator[Row]:
    """`airnet --help`, and `airnet match` from start to answer."""
    turns = sizes.pick(7, 1)
    command = [sys.executable, "-m", "airnet_cli"]
    seconds, rival_seconds = in_turn(
        lambda: run([*command, "--help"]),
        lambda: run([sys.executable, "-c", "import typer"]),
        turns=turns,
    )
    yield Row(
        path="startup",
        case="airnet --help",
        rival='python -c "import typer"',
        seconds=seconds,
        rival_seconds=rival_seconds,
        target="at most 2.0",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_untrained(folder)
        images = write_images(folder, 8)
        gallery = str(folder / "gallery.npy")
        run([*command, "embed", *map(str, images), "-o", gallery, "--checkpoint", checkpoint])
        match = [*command, "match", str(images[0]), "--gallery", gallery]
        match += ["--checkpoint", checkpoint, "--json"]
        seconds, rival_seconds = in_turn(
            lambda: run(match),
            lambda: run([sys.executable, "-c", FORWARD]),
            turns=turns,
            is_warm=True,  # by `embed`
        )
    yield Row(
        path="startup",
        case="airnet match, start to answer, mobilenet_v2",
        rival="import torch and torchvision, one forward of the backbone",
        seconds=seconds,
        rival_seconds=rival_seconds,
        target="at most 1.3",
    )


def run(command: list[str]) -> None:
    """Run to the end; an error is an error here."""
    subprocess.run(command, check=True, capture_output=True)


def write_untrained(folder: Path) -> str:
    """A checkpoint of the light model with random weights; its path."""
    from airnet_cli.config.presets import load_preset
    from airnet_cli.core.checkpoint import write_checkpoint
    from airnet_cli.workflows.build import build_network

    preset = load_preset("market1501-cpu", ["model.init=none"])
    path = folder / "model.safetensors"
    write_checkpoint(
        path,
        build_network(preset, identities=2),
        preset=preset.model_dump(mode="json"),
        height_px=preset.data.height_px,
        width_px=preset.data.width_px,
        identities=(1, 2),
        training={},
    )
    return str(path)
