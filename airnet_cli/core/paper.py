"""What the paper reports on its data sets, to stand beside our scores.

Source: *On the Importance of Appearance and Interaction Feature Representations for Person
Re-identification* (Blythman, Zunino, Murray, Murino), Table 3 (the seven variants with
IBN-ResNet-50) and Table 1 (AIR-Net with ResNet-50 and Global Context); sizes of the test sets: its
section 4.1. Scores are means of three runs. Here they are fractions; the paper prints percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HEADLINE_BACKBONE = "resnet50_ibn"
"""The backbone of Table 3."""


@dataclass(frozen=True)
class PaperFigures:
    """One row of the paper's tables on one data set."""

    variant: str
    backbone: str
    mAP: float
    rank1: float


@dataclass(frozen=True)
class PublishedTest:
    """How much the published scores were measured on."""

    query_images: int
    ranked_gallery_images: int
    """Without junk, which is not ranked."""


TEST_SETS: Mapping[str, PublishedTest] = {
    "cuhk03-labeled": PublishedTest(1_400, 5_328),
    "cuhk03-detected": PublishedTest(1_400, 5_332),
    "market1501": PublishedTest(3_368, 15_913),
    "msmt17": PublishedTest(11_659, 82_161),
}
"""By data.name. The preset of the same name is the paper's recipe for it."""

# Rank-1 and mAP in percent on each data set, in the order of TEST_SETS.
_ROWS: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...] = (
    ("baseline", "resnet50_ibn", ((74.0, 71.9), (70.3, 68.7), (94.7, 86.3), (73.4, 48.4))),
    ("baseline_abp", "resnet50_ibn", ((74.9, 72.0), (72.3, 69.7), (94.4, 86.0), (76.9, 52.4))),
    ("baseline_gc", "resnet50_ibn", ((77.2, 74.6), (73.4, 71.4), (95.2, 87.3), (77.1, 53.0))),
    ("parallel_gc", "resnet50_ibn", ((83.8, 82.3), (81.1, 78.8), (95.3, 88.6), (79.9, 56.5))),
    ("parallel_abp", "resnet50_ibn", ((84.8, 82.7), (80.9, 78.9), (95.1, 89.2), (83.0, 61.3))),
    ("airnet_gc", "resnet50_ibn", ((84.9, 82.8), (80.5, 78.6), (95.2, 88.6), (82.5, 60.9))),
    ("airnet", "resnet50_ibn", ((86.8, 84.8), (84.3, 82.0), (95.2, 89.3), (84.7, 64.5))),
    ("airnet", "resnet50_gc", ((85.8, 83.2), (83.0, 80.4), (95.2, 89.3), (84.2, 63.8))),
)

_FIGURES: Mapping[tuple[str, str, str], PaperFigures] = {
    (data, variant, backbone): PaperFigures(
        variant, backbone, mAP=round(mAP / 100, 3), rank1=round(rank1 / 100, 3)
    )
    for variant, backbone, scores in _ROWS
    for data, (rank1, mAP) in zip(TEST_SETS, scores, strict=True)
}


def paper_figures(*, data: str, variant: str, backbone: str) -> PaperFigures | None:
    """The paper's row for this variant; None for a data set or variant that it does not have.

    A backbone that the paper did not train is held against its headline model.

    >>> figures = paper_figures(data="market1501", variant="airnet", backbone="mobilenet_v2")
    >>> (figures.backbone, figures.mAP, figures.rank1)
    ('resnet50_ibn', 0.893, 0.952)
    """
    return _FIGURES.get((data, variant, backbone)) or _FIGURES.get(
        (data, variant, HEADLINE_BACKBONE)
    )
