"""Figures of numbers over epochs, ranks and rates, by matplotlib (the extra `airnet[plots]`).

A figure is a grid of panels, a panel a few named lines. The same name has the same colour and dash
in every panel: eight colours that people with any colour vision can tell apart (Okabe and Ito), and
dashes for those who print in grey.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.core.files import replacing
from airnet_cli.errors import UsageError

SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Line:
    """Points that belong together, in the order of x."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    is_log: bool = False
    """Whether the x axis is logarithmic."""


def draw_panels(path: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draw `panels` (at least one) into the picture at `path`, whole or not at all.

    Raises:
        UsageError: matplotlib is missing, or the name is no picture's.
        OutputError: the place can't be written.
    """
    check_plottable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the machine has
    figure.suptitle(title)
    handles = {}
    for index, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, index)
        for line in panel.lines:
            style = names.index(line.name)
            (handles[line.name],) = axes.plot(
                line.x,
                line.y,
                label=line.name,
                color=_COLOURS[style % len(_COLOURS)],
                linestyle=_DASHES[style % len(_DASHES)],
                marker="o" if len(line.x) <= _FEW else None,
                markersize=4,
            )
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.grid(alpha=0.3)
        if panel.is_log:
            axes.set_xscale("log")
        elif all(x == int(x) for line in panel.lines for x in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), 2 if max(map(len, names)) > _LONG else 4),
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().lstrip("."), dpi=120)


def check_plottable(path: Path) -> None:
    """Refuse, before any work, what `draw_panels` could not write.

    Raises:
        UsageError: matplotlib is missing, or the name is no picture's.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"'{path}' is no picture's name; it ends in one of {', '.join(SUFFIXES)}")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UsageError(
            "curves are drawn by matplotlib, which is not installed: pip install 'airnet[plots]'"
        ) from None


_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#b8a800",
)
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_FEW = 25
"""Lines of so few points show each of them."""
_LONG = 24
"""Longer names than this stand two in a row."""
