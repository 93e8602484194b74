"""What the paper reports on its data sets, to stand beside our scores.

Source: *On the Importance of Appearance and Interaction Feature Representations for Person
Re-identification* (Blythman, Zunino, Murray, Murino), Table 3 (the seven variants with
IBN-ResNet-50) and Table 1 (AIR-Net with ResNet-50 and Global Context); sizes of the test sets: its
section 4.1. Scores are means of three runs. Here they are fractions; the paper prints percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperFigures:
    """One row of the paper's tables on one data set."""

    variant: str
    backbone: str
    mAP: float
    rank1: float


TEST_SETS: Mapping[str, tuple[int, int]] = {
    "cuhk03-labeled": (1_400, 5_328),
    "cuhk03-detected": (1_400, 5_332),
    "market1501": (3_368, 15_913),
    "msmt17": (11_659, 82_161),
}
"""Query images, and gallery images without junk (which is not ranked), by data.name.

The preset of the same name is the paper's recipe for it.
"""

# Rank-1 and mAP in percent on each data set, in the order of TEST_SETS.
_TABLE_3: Mapping[str, tuple[tuple[float, float], ...]] = {
    "baseline": ((74.0, 71.9), (70.3, 68.7), (94.7, 86.3), (73.4, 48.4)),
    "baseline_abp": ((74.9, 72.0), (72.3, 69.7), (94.4, 86.0), (76.9, 52.4)),
    "baseline_gc": ((77.2, 74.6), (73.4, 71.4), (95.2, 87.3), (77.1, 53.0)),
    "parallel_gc": ((83.8, 82.3), (81.1, 78.8), (95.3, 88.6), (79.9, 56.5)),
    "parallel_abp": ((84.8, 82.7), (80.9, 78.9), (95.1, 89.2), (83.0, 61.3)),
    "airnet_gc": ((84.9, 82.8), (80.5, 78.6), (95.2, 88.6), (82.5, 60.9)),
    "airnet": ((86.8, 84.8), (84.3, 82.0), (95.2, 89.3), (84.7, 64.5)),
}
_TABLE_1_GC = ((85.8, 83.2), (83.0, 80.4), (95.2, 89.3), (84.2, 63.8))


def paper_figures(*, data: str, variant: str, backbone: str) -> PaperFigures | None:
    """The paper's row for this variant; None for a data set or variant that it does not have.

    A backbone that the paper did not train stands beside IBN-ResNet-50.

    >>> figures = paper_figures(data="market1501", variant="airnet", backbone="mobilenet_v2")
    >>> (figures.backbone, figures.mAP, figures.rank1)
    ('resnet50_ibn', 0.893, 0.952)
    """
    if data not in TEST_SETS or variant not in _TABLE_3:
        return None
    is_gc = (variant, backbone) == ("airnet", "resnet50_gc")
    figures = _TABLE_1_GC if is_gc else _TABLE_3[variant]
    rank1, mAP = figures[list(TEST_SETS).index(data)]
    name = "resnet50_gc" if is_gc else "resnet50_ibn"
    return PaperFigures(variant, name, mAP=round(mAP / 100, 3), rank1=round(rank1 / 100, 3))
