"""What the examples in docstrings and how-to pages start from: a run that costs no training.

Here and not in `tests/`, since the examples are collected from `airnet_cli/` itself.
"""

import pytest


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory):
    """A run folder that looks finished, of an untrained AIR-Net (ResNet-18, 64 x 32)."""
    import torch

    from airnet_cli.config.presets import load_preset
    from airnet_cli.core.checkpoint import write_checkpoint
    from airnet_cli.workflows.build import build_network

    overrides = ["data.height_px=64", "data.width_px=32", "model.backbone=resnet18"]
    preset = load_preset("demo", overrides)
    torch.manual_seed(1)
    run = tmp_path_factory.mktemp("runs") / "demo-20261123-120000"
    run.mkdir()
    write_checkpoint(
        run / "model.safetensors",
        build_network(preset, identities=4),
        preset=preset.model_dump(mode="json"),
        height_px=64,
        width_px=32,
        identities=(1, 2, 3, 4),
        training={"data": "demo", "finished_epochs": 0},
    )
    for name in ("preset.json", "scores.json"):
        (run / name).write_text("{}\n")
    return run


@pytest.fixture(autouse=True)
def _names_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, object]):
    """Give the embedder's example its `Embedder`, `run` and `crop`."""
    if request.node.name != "airnet_cli.workflows.embedder.Embedder":
        return
    from PIL import Image

    doctest_namespace["run"] = request.getfixturevalue("untrained_run")
    doctest_namespace["crop"] = Image.linear_gradient("L").resize((40, 100))
