"""What the command line shows: data on stdout (tables or JSON), everything else on stderr.

The only place that turns fractions into percent. Rich is imported where it draws: most of a
command's life, and all of `--help`, needs none of it.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from airnet_cli.cli.stopping import stop_if_told
from airnet_cli.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 30.0
"""How often progress writes a line where it can't draw a bar (a log file, CI)."""


def print_json(data: Mapping[str, object]) -> None:
    """Write `data` to stdout as JSON; a number that JSON can't hold (NaN) is a bug of ours."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name that is no UTF-8, or a stream that is not
        text = json.dumps(data, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


def print_text(text: str) -> None:
    """Write `text` to stdout as it is."""
    sys.stdout.write(_encodable(text if text.endswith("\n") else text + "\n"))


def print_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout, whatever file names are in them."""
    sys.stdout.write("".join(f"{_encodable(printable(line))}\n" for line in lines))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """Write a table to stdout: numbers to the right, words to the left, nothing cut in a pipe."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for index, name in enumerate(columns):
        column = _encodable(printable(name))
        cells = [row[index] for row in rows]
        is_number = _is_number_column(cells)
        # fold: a long word (a path, a key) goes on in the next line instead of being cut
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        # Text: a cell such as "[40, 70]" is no markup
        table.add_row(*(Text(_cell(cell)) for cell in row))
    _console(sys.stdout).print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for a Markdown document, numbers to the right.

    >>> print(markdown_table(["", "mAP"], [["airnet", "67.7 ± 0.3"], ["a|b", "1.0"]]))
    | | mAP |
    |---|---:|
    | airnet | 67.7 ± 0.3 |
    | a\\|b | 1.0 |
    """
    aligned = [_is_number_column([row[i] for row in rows]) for i in range(len(columns))]
    lines = [
        list(columns),
        *([_cell(cell).replace("|", "\\|") for cell in row] for row in rows),
    ]
    shown = ["|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines]
    rule = "|" + "|".join("---:" if is_number else "---" for is_number in aligned) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def percent(fraction: float) -> str:
    """A fraction as the percentage that papers print.

    >>> percent(0.8934)
    '89.3'
    """
    return f"{100 * fraction:.1f}"


def signed_percent(fraction: float) -> str:
    """A difference of fractions in percent points; its sign is always there.

    >>> signed_percent(0.022), signed_percent(-0.0004), signed_percent(-0.13)
    ('+2.2', '-0.0', '-13.0')
    """
    return f"{100 * fraction:+.1f}"


def note(text: str) -> None:
    """Write a line to stderr, where it disturbs no pipe."""
    sys.stderr.write(printable(text) + "\n")  # Python's stderr takes every sign
    sys.stderr.flush()


class ProgressBars:
    """A progress callback for workflows: a bar with rate and time left for each stage, on stderr.

    Where stderr is no terminal, a stage writes one line now and then instead.
    """

    def __init__(self, drawing: "Progress | None") -> None:
        self._drawing = drawing
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._last_line: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Show that `done` of `total` (None: not known) `unit`s of `stage` are finished.

        Raises:
            Stopped: the command was told to stop, and it was not heard.
        """
        stop_if_told()
        now = time.monotonic()
        started = self._started.setdefault(stage, now)
        seconds = now - started
        rate = f"{done / seconds:,.0f} {unit}/s" if seconds > 0 and done else ""
        if self._drawing is not None:
            self._draw(self._drawing, stage, done, total, rate)
        elif now - self._last_line.setdefault(stage, started) >= SECONDS_BETWEEN_LINES:
            self._last_line[stage] = now
            note(f"{stage}: {_count(done, total)} {unit}, {rate}{_time_left(done, total, seconds)}")
        if done == total:  # the same stage may come again, as reading does in each epoch
            del self._started[stage]
            self._last_line.pop(stage, None)

    def _draw(
        self, drawing: "Progress", stage: str, done: int, total: int | None, rate: str
    ) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = drawing.add_task(stage, total=total, amount="", rate="")
        drawing.update(
            self._tasks[stage], completed=done, total=total, amount=_count(done, total), rate=rate
        )
        if done == total:
            drawing.remove_task(self._tasks.pop(stage))


@contextmanager
def progress_bars() -> Iterator[ProgressBars]:
    """Draw progress on stderr while the block runs; gives the callback for the workflow."""
    if not sys.stderr.isatty():
        yield ProgressBars(None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        console=_console(sys.stderr),
        transient=True,  # the lines that stay are those of the command
    ) as drawing:
        yield ProgressBars(drawing)


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    # A pipe has no width: nothing may be wrapped or cut there.
    return Console(file=stream, width=None if stream.isatty() else 10_000, highlight=False)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as TOML and --set have it
    return f"{value:,}" if isinstance(value, int) else _encodable(printable(str(value)))


def _encodable(text: str) -> str:
    """`text` in the signs that stdout has: `\\xfc` and the like where it is not UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _is_number_column(cells: Sequence[object]) -> bool:
    return bool(cells) and all(_looks_like_number(cell) for cell in cells)


def _looks_like_number(value: object) -> bool:
    # "67.7 ± 0.3 (2)": a mean with its deviation and how many it is of
    mean = _cell(value).partition(" ±")[0].partition(" (")[0]
    try:
        float(mean.replace(",", ""))
    except ValueError:
        return value in ("", "-", None)
    return True


def _count(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"


def _time_left(done: int, total: int | None, seconds: float) -> str:
    if not total or not done:
        return ""
    left = round(seconds * (total - done) / done)
    return f", {left // 60}:{left % 60:02} left"
