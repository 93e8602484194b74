"""Mean and standard deviation over runs, as the paper reports its three."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a score over runs, fractions."""

    mean: float
    std: float
    """0 for a single run, which says nothing about others."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (0 for a single value) of `values`, at least one.

    >>> spread([0.25, 0.5, 0.75])
    Spread(mean=0.5, std=0.25)
    """
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
