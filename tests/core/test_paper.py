"""The paper's figures as its tables print them, for what was trained and what was not."""

import pytest

from airnet_cli.config.presets import load_preset
from airnet_cli.core.paper import TEST_SETS, paper_figures


@pytest.mark.parametrize(
    ("data", "variant", "backbone", "expected"),
    [
        ("market1501", "baseline", "resnet50_ibn", (0.863, 0.947)),
        ("cuhk03-labeled", "airnet", "resnet50_gc", (0.832, 0.858)),
        ("cuhk03-detected", "parallel_gc", "resnet50_ibn", (0.788, 0.811)),
        ("msmt17", "airnet", "resnet50_ibn", (0.645, 0.847)),
        ("msmt17", "baseline_abp", "resnet18", (0.524, 0.769)),
    ],
)
def test_figures_of_the_tables(data, variant, backbone, expected):
    """Samples from each column; a backbone that the paper lacks gets the row of Table 3."""
    figures = paper_figures(data=data, variant=variant, backbone=backbone)
    assert (figures.mAP, figures.rank1) == pytest.approx(expected)
    assert figures.backbone == ("resnet50_gc" if backbone == "resnet50_gc" else "resnet50_ibn")


def test_no_figures():
    """Of another data set the paper says nothing."""
    assert paper_figures(data="demo", variant="airnet", backbone="resnet50_ibn") is None


@pytest.mark.parametrize("data", TEST_SETS)
def test_each_data_set_has_the_preset_of_its_recipe(data):
    """What differs from the paper is read off the preset of the same name."""
    preset = load_preset(data)
    assert preset.data.name == data
    assert (preset.model.variant, preset.model.backbone) == ("airnet", "resnet50_ibn")
    assert (preset.data.height_px, preset.training.epochs) == (384, 200)
